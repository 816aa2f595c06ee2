from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from configs.errors import (
    ArchitectureError,
    GenerationError,
    HeaderError,
    ModelConfigError,
    SourceError,
    UsageError,
)
from inference.device import Placement, allocating, cast, parameters, place, wired
from inference.load import LoadedModel, load, open_folder
from tests.factories_inference import KINDS, edit_json, tiny_config, tiny_network, write_mlx

CPU = Placement("cpu", "float32")


def loaded(folder: Path, placement: Placement = CPU) -> LoadedModel:
    return load(open_folder(folder), placement)


def logits(model: nn.Module) -> mx.array:
    return model(mx.array([[5, 6, 7]])).astype(mx.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_the_one_that_was_saved(tmp_path: Path, kind: str) -> None:
    model = loaded(write_mlx(tmp_path, kind)).model
    assert mx.array_equal(logits(model), logits(tiny_network(tiny_config(kind))))


@pytest.mark.parametrize(
    "quantization",
    [
        {"group_size": 64, "bits": 4},
        {"group_size": 32, "bits": 8, "mode": "affine"},
        {"group_size": 32, "bits": 4, "mode": "mxfp4"},
        {
            "group_size": 64,
            "bits": 4,
            "model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 8},
            "model.layers.1.self_attn.q_proj": False,
            "model.layers.2.self_attn.q_proj": True,
        },
    ],
)
def test_quantized_folders_run_as_in_mlx_lm(tmp_path: Path, quantization: dict[str, Any]) -> None:
    from mlx_lm.utils import load_model

    folder = write_mlx(tmp_path, quantization=quantization)
    model = loaded(folder).model
    reference, _ = load_model(folder)
    assert mx.array_equal(logits(model), logits(reference))
    rules = {key: value for key, value in quantization.items() if "." in key}
    for path, rule in rules.items():
        layer = dict(model.named_modules())[path]
        assert isinstance(layer, nn.QuantizedLinear) == bool(rule)
        if isinstance(rule, dict):
            assert (layer.group_size, layer.bits) == (rule["group_size"], rule["bits"])


def test_the_cpu_computes_in_float32(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path, dtype=mx.bfloat16, quantization={"group_size": 64, "bits": 4})
    found = loaded(folder)
    assert found.dtype == "float32"
    dtypes = {value.dtype for value in parameters(found.model).values()}
    assert dtypes == {mx.float32, mx.uint32}
    assert logits(found.model).dtype == mx.float32
    assert found.score_heads == 4


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (Placement("metal", None), "bfloat16"),
        (Placement("cpu", "float16"), "float16"),
        (Placement("cuda", "float32"), "float32"),
    ],
)
def test_dtype_is_kept_or_as_asked(tmp_path: Path, placement: Placement, expected: str) -> None:
    found = loaded(write_mlx(tmp_path, dtype=mx.bfloat16), placement)
    assert found.dtype == expected


def test_packed_scales_of_mxfp4_are_not_cast(tmp_path: Path) -> None:
    quantization = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    found = loaded(write_mlx(tmp_path, dtype=mx.bfloat16, quantization=quantization))
    assert found.model.lm_head.scales.dtype == mx.uint8


def test_placement_without_a_gpu() -> None:
    assert place("cpu") == CPU
    assert place("cpu", "bfloat16") == Placement("cpu", "bfloat16")
    if not mx.is_available(mx.gpu):
        assert place() == CPU
        with pytest.raises(UsageError, match="no GPU"):
            place("gpu")


def test_a_memory_limit_reaches_mlx() -> None:
    before = mx.set_memory_limit(2**40)
    try:
        place("cpu", memory_limit=3 * 2**30)
        assert mx.set_memory_limit(before) == 3 * 2**30
    finally:
        mx.set_memory_limit(before)


def test_wiring_memory_is_for_metal_alone() -> None:
    with wired(CPU):
        pass


def test_no_memory_is_an_error_of_one_line() -> None:
    with pytest.raises(GenerationError, match="not enough"), allocating():
        raise RuntimeError("[metal::malloc] Attempting to allocate 99 bytes")
    with pytest.raises(RuntimeError, match="else"), allocating():
        raise RuntimeError("something else")


def test_a_model_without_floats_has_a_dtype() -> None:
    assert cast(nn.Module(), CPU) == "float32"


def test_context_and_vocabulary_are_read_from_the_config(tmp_path: Path) -> None:
    folder = open_folder(write_mlx(tmp_path))
    assert (folder.context, folder.vocabulary, folder.attention_heads) == (256, 320, 4)
    edit_json(tmp_path / "config.json", max_position_embeddings=None)
    assert open_folder(tmp_path).context is None
    edit_json(tmp_path / "config.json", vocab_size=None)
    with pytest.raises(ModelConfigError, match="vocab_size"):
        _ = open_folder(tmp_path).vocabulary


# What is refused.


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"hidden_size": 128},
            ArchitectureError,
            r"tensor lm_head.weight has shape [320, 64], and config.json makes it [320, 128]",
        ),
        ({"num_key_value_heads": 4}, ArchitectureError, "self_attn.k_proj.weight has shape"),
        ({"num_hidden_layers": 4}, ArchitectureError, "9 tensors of the architecture are missing"),
        ({"num_hidden_layers": 2}, ArchitectureError, "9 tensors are not of the architecture"),
        ({"model_file": "x.py"}, ArchitectureError, "custom code"),
        ({"quantize_activations": True}, ArchitectureError, "quantize_activations"),
        ({"rms_norm_eps": None}, ModelConfigError, "does not describe a model"),
        ({"model_type": "os"}, ArchitectureError, "model_type"),
        ({"quantization": 7}, ModelConfigError, "quantization"),
        ({"quantization": {"group_size": "x", "bits": 4}}, ModelConfigError, "quantization"),
        (
            {"quantization": {"group_size": 64, "bits": 4, "lm_head": 7}},
            ModelConfigError,
            "quantization of lm_head",
        ),
        (
            {"quantization": {"group_size": 64, "bits": 4, "lm_head": {"bits": 4}}},
            ArchitectureError,
            "lm_head.weight has shape",
        ),
    ],
)
def test_config_against_tensors(
    tmp_path: Path, changes: dict[str, Any], error: type[SourceError], message: str
) -> None:
    folder = write_mlx(tmp_path)
    edit_json(folder / "config.json", **changes)
    with pytest.raises(error, match=re.escape(message)):
        loaded(folder)


def test_a_group_size_that_does_not_divide(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path, quantization={"group_size": 64, "bits": 4})
    edit_json(folder / "config.json", quantization={"group_size": 128, "bits": 4})
    with pytest.raises(ModelConfigError, match="quantization does not fit"):
        loaded(folder)


def test_headers_are_checked_before_weights_are_read(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HeaderError):
        open_folder(folder)


def test_a_staged_folder_is_refused(tmp_path: Path) -> None:
    from checkpoint.folder import staging_path

    staged = staging_path(tmp_path / "model")
    write_mlx(staged)
    with pytest.raises(SourceError, match="never finished"):
        open_folder(staged)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(json.dumps({}))
    with pytest.raises(SourceError, match="not a folder"):
        open_folder(tmp_path / "x")
