"""gpt-oss in MXFP4, as its makers release it: its experts keep their codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.architectures_table import TABLE
from tests.factories_models import write_tokenizer
from tests.factories_quantized import Array
from tests.formats.conversion import converted, distance, held, refusal

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def blocks(weight: Array) -> tuple[Array, Array, Array]:
    """Blocks [..., groups, 16], exponents [..., groups] and values of [..., columns]."""
    groups = weight.reshape(*weight.shape[:-1], -1, 32)
    powers = np.ceil(np.log2(np.abs(groups).max(-1) / 6))
    scaled = groups / np.exp2(powers)[..., None]
    codes = np.abs(scaled[..., None] - FP4).argmin(-1).astype(np.uint8)
    values = FP4[codes] * np.exp2(powers)[..., None]
    exponents = (powers + 127).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, exponents, values.reshape(weight.shape)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The checkpoint in MXFP4, and the plain one of its values."""
    root = tmp_path_factory.mktemp("gpt_oss")
    source, twin = root / "mxfp4", root / "plain"
    transformers.logging.disable_progress_bar()
    model: Any = TABLE["gpt-oss"].build()
    model.save_pretrained(twin)
    source.mkdir()
    weights = load_file(twin / "model.safetensors")
    packed = {}
    for name, tensor in list(weights.items()):
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = tensor
            continue
        rows_first = np.ascontiguousarray(tensor.numpy().swapaxes(1, 2))
        codes, exponents, values = blocks(rows_first)
        packed[f"{name}_blocks"] = torch.tensor(codes)
        packed[f"{name}_scales"] = torch.tensor(exponents)
        weights[name] = torch.tensor(np.ascontiguousarray(values.swapaxes(1, 2), np.float32))
    save_file(weights, twin / "model.safetensors", {"format": "pt"})
    save_file(packed, source / "model.safetensors", {"format": "pt"})
    config = json.loads((twin / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (source / "config.json").write_text(json.dumps(config))
    for folder in (source, twin):
        write_tokenizer(folder)
    yield source, twin


def test_the_experts_keep_their_codes(pair: tuple[Path, Path]) -> None:
    source, twin = pair
    config, receipt, out = converted(source)
    assert config["quantization"] == {"bits": 4, "group_size": 32, "mode": "mxfp4"}
    (form,) = receipt["source_quantization"]
    assert form["became"] == "kept: the same numbers"
    tensors = held(out)
    name = "model.layers.0.mlp.experts"
    whole = held(twin)[f"{name}.gate_up_proj"].swapaxes(1, 2)
    for part, expected in (("gate_proj", whole[:, ::2]), ("up_proj", whole[:, 1::2])):
        found = mx.dequantize(
            tensors[f"{name}.{part}.weight"],
            tensors[f"{name}.{part}.scales"],
            group_size=32,
            bits=4,
            mode="mxfp4",
            dtype=mx.float32,
        )
        assert mx.array_equal(found, expected).item()
    assert distance(out, converted(twin).folder) < 1e-5


def test_they_are_quantized_anew_where_that_is_asked(pair: tuple[Path, Path]) -> None:
    source, twin = pair
    flags = ("-q", "--bits", "8", "--group-size", "32")
    assert distance(converted(source, *flags).folder, converted(twin, *flags).folder) == 0


def test_blocks_without_scales_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "broken"
    source.mkdir()
    for file in pair[0].iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    assert "down_proj_scales" in refusal(source, capfd)
