"""Cases 19 to 22: a config.json that is not one, names no model, or names code to run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from checkpoint.model_config import read_model_config
from configs.errors import ArchitectureError, ModelConfigError, SourceError

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def written(folder: Path, config: dict[str, Any] | bytes) -> Path:
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(text)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"head_dim": None, "num_key_value_heads": None, "num_local_experts": 0},
        {"hidden_size": 60, "head_dim": 16},  # heads need not divide with their own size
        {"hidden_size": 60, "kv_lora_rank": 16},
        {"intermediate_size": [128, 64], "num_key_value_heads": [2, None]},
        {"time_step_limit": [0.0, math.inf]},
        {"time_step_limit": [0.0, {"__float__": "Infinity"}]},
        {"max_position_embeddings": 10_485_760},
        {"rope_theta": 10_000, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": None}},
        {"text_config": {"hidden_size": 64}},
        {"auto_map": {"AutoModel": "modeling_llama.LlamaModel"}},  # not needed: mlx-lm has it
        {"model_type": "mistral"},
        {"architectures": None},
    ],
    ids=str,
)
def test_right(tmp_path: Path, change: dict[str, Any]) -> None:
    config = LLAMA | change
    assert read_model_config(written(tmp_path, config)) == config


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf{}", "starts with a byte-order mark"),
        (b'{"model_type": "llama", "rope_theta": NaN}', "it has NaN, which JSON does not allow"),
        (b'{"model_type": "llama", "rope_theta": 1e999}', "the number '1e999' is out of range"),
        (b'{"model_type": "llama", "model_type": "os"}', "key 'model_type' is given twice"),
        (b'{"model_type": "llama"', "is not valid JSON"),
        (b'{"model_type": "ll\xffama"}', "is not valid UTF-8 at byte 18"),
        (b"[" * 100_000, "nested too deep"),
        (b"[]", "holds an array where an object was expected"),
        (b"null", "holds null where an object was expected"),
        (b"<!DOCTYPE html>", "is not valid JSON"),
        (b'{"a": "\\udc00"}', "half of a surrogate pair"),
    ],
)
def test_not_json(tmp_path: Path, text: bytes, reason: str) -> None:
    """Case 19."""
    with pytest.raises(ModelConfigError, match=reason) as caught:
        read_model_config(written(tmp_path, text))
    assert caught.value.where == str(tmp_path / "config.json")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"config\.json: is missing"):
        read_model_config(tmp_path)


def test_too_large(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(SourceError, match="is 100,000,000 bytes long, more than the 10,000,000"):
        read_model_config(tmp_path)


def test_link_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    written(tmp_path, LLAMA)
    (folder / "config.json").symlink_to("../config.json")
    with pytest.raises(SourceError, match="leaves the folder"):
        read_model_config(folder)


@pytest.mark.parametrize(
    "model_type",
    [
        "os",
        "../x",
        "llama.py",
        "mlx_lm.models.llama",
        "__init__",
        "base",
        "cache",
        "",
        "ü" * 200_000,
    ],
    ids=lambda name: name[:20],
)
def test_model_type_that_mlx_lm_has_not(tmp_path: Path, model_type: str) -> None:
    """Case 20: the nearest are listed, and nothing is imported for the name."""
    before = set(sys.modules)
    with pytest.raises(ArchitectureError, match="is not one mlx-lm has") as caught:
        read_model_config(written(tmp_path, LLAMA | {"model_type": model_type}))
    assert set(sys.modules) - before <= {"mlx_lm"}
    assert caught.value.mend.startswith("the nearest supported are ")
    assert caught.value.mend.count(",") == 2
    assert len(str(caught.value)) < 500


def test_nearest_model_types(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="nearest supported are qwen2, ") as caught:
        read_model_config(written(tmp_path, LLAMA | {"model_type": "qwen2x"}))
    assert caught.value.where == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": None}, "has no model_type"),
        ({"model_type": 7}, "model_type is not a string"),
        ({"model_type": ["llama"]}, "model_type is not a string"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is not an array of strings"),
        ({"architectures": [1]}, "architectures is not an array of strings"),
        ({"text_config": []}, "text_config is an array, not an object"),
    ],
    ids=str,
)
def test_wrong_types(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelConfigError, match=reason):
        read_model_config(written(tmp_path, LLAMA | change))


@pytest.mark.parametrize(
    "key, value",
    [("auto_map", {"AutoModel": "modeling_evil.Evil"}), ("model_file", "modeling_evil.py")],
)
def test_custom_code_is_never_run(tmp_path: Path, key: str, value: object) -> None:
    """Case 21."""
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('it ran')")
    config = LLAMA | {"model_type": "evil", key: value, "trust_remote_code": True}
    with pytest.raises(ArchitectureError, match=rf"own code \({key}\) is never run"):
        read_model_config(written(tmp_path, config))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": 0}, "hidden_size is 0, outside 1 to"),
        ({"hidden_size": -64}, "hidden_size is -64, outside 1 to"),
        ({"hidden_size": "64"}, 'hidden_size is "64", not an integer'),
        ({"hidden_size": 64.0}, "hidden_size is 64.0, not an integer"),
        ({"hidden_size": math.inf}, "hidden_size is Infinity, not an integer"),
        ({"hidden_size": True}, "hidden_size is true, not an integer"),
        ({"hidden_size": {}}, "hidden_size is an object, not an integer"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000, outside 1 to"),
        ({"hidden_size": 10**4000}, "hidden_size is 100000000000000000000000000000…, outside 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, outside 1 to"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, outside 1 to"),
        ({"num_attention_heads": 10**9}, "num_attention_heads is 1000000000, outside 1 to"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0, outside 1 to"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000, outside 1 to"),
        ({"vocab_size": -1}, "vocab_size is -1, outside 1 to"),
        ({"intermediate_size": [64, 0]}, "intermediate_size is 0, outside 1 to"),
        ({"intermediate_size": [[64]]}, "intermediate_size is an array, not an integer"),
        ({"num_experts": -1}, "num_experts is -1, outside 0 to"),
        ({"num_experts": 10**9}, "num_experts is 1000000000, outside 0 to"),
        ({"head_dim": 0}, "head_dim is 0, outside 1 to"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings is 1099511627776, outside"),
        ({"num_attention_heads": 7}, "num_attention_heads 7 does not divide hidden_size 64"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 8"),
        ({"text_config": {"hidden_size": -1}}, "text_config.hidden_size is -1, outside 1 to"),
        (
            {"text_config": {"hidden_size": 10, "num_attention_heads": 3}},
            "text_config.num_attention_heads 3 does not divide text_config.hidden_size 10",
        ),
        ({"n_embd": 0}, "n_embd is 0, outside 1 to"),
        ({"rope_theta": "x"}, 'rope_theta is "x", not a number'),
        ({"rope_theta": math.inf}, "rope_theta is Infinity, which no factor can be"),
        ({"rms_norm_eps": True}, "rms_norm_eps is true, not a number"),
        ({"partial_rotary_factor": -0.5}, "partial_rotary_factor is -0.5, which no factor can be"),
        ({"rope_scaling": {"factor": "8"}}, 'rope_scaling.factor is "8", not a number'),
        (
            {"text_config": {"rope_parameters": {"full_attention": {"rope_theta": {}}}}},
            "text_config.rope_parameters.full_attention.rope_theta",
        ),
    ],
    ids=str,
)
def test_dimensions(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    """Case 22."""
    with pytest.raises(ModelConfigError) as caught:
        read_model_config(written(tmp_path, LLAMA | change))
    assert reason in caught.value.what
