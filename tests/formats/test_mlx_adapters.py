"""mlx-lm's adapters: the logits that mlx-lm gives with them, beside the weights and fused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from mlx_lm.tuner.utils import load_adapters

from convert.cli import main
from inference.device import place
from inference.load import load, open_folder
from tests.factories_adapters import mlx_pairs, write_mlx_adapter
from tests.factories_inference import write_mlx
from tests.factories_models import tiny_model

IDS = [5, 3, 200, 7, 11, 250, 1, 90]
CLOSE = 1e-4
IN_FULL = ("--dtype", "float32")
AFFINE = {"group_size": 32, "bits": 4}

# Modules that are adapted, and their shapes, for mlx-lm's keys.
LLAMA = {
    f"model.layers.{layer}.{name}": shape
    for layer in (1, 2)
    for name, shape in {
        "self_attn.q_proj": (128, 64),
        "self_attn.v_proj": (64, 64),
        "mlp.down_proj": (64, 128),
    }.items()
}
EXPERTS = {
    f"model.layers.{layer}.{name}": shape
    for layer in (1, 2)
    for name, shape in {
        "mlp.switch_mlp.gate_proj": (4, 32, 64),
        "mlp.switch_mlp.down_proj": (4, 64, 32),
        "mlp.gate": (4, 64),
    }.items()
}
KEYS = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
EXPERT_KEYS = ["mlp.switch_mlp.gate_proj", "mlp.switch_mlp.down_proj", "mlp.gate"]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"quantization": AFFINE},
    "mxfp4": {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}},
}


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):
        yield


def ours(folder: Path, adapter: Path | None = None, **how: Any) -> np.ndarray:
    loaded = load(open_folder(folder, adapter=adapter, **how), place("cpu", "float32"))
    return np.array(loaded.model(mx.array([IDS]))[0])


def theirs(folder: Path, adapter: Path | None = None) -> np.ndarray:
    model, _ = mlx_lm.utils.load_model(folder)
    model = model if adapter is None else load_adapters(model, str(adapter))
    model.eval()
    return np.array(model(mx.array([IDS]))[0].astype(mx.float32))


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("way", WAYS)
def test_logits_are_mlx_lm_s_own(kind: str, way: str, tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "model", **WAYS[way])
    pairs = mlx_pairs(LLAMA, magnitudes=kind == "dora")
    adapter = write_mlx_adapter(tmp_path / "a", pairs, kind=kind, layers=2, keys=KEYS)
    if way == "mxfp4" and kind == "dora":
        expected = ours(fused(folder, adapter, tmp_path / "out", "--dequantize", *IN_FULL))
    else:  # mlx-lm's own can't dequantize without biases
        expected = theirs(folder, adapter)
    assert error(ours(folder, adapter), expected) < CLOSE
    assert error(ours(folder), expected) > 100 * CLOSE


@pytest.mark.parametrize("way", ["plain", "packed"])
def test_stacks_of_experts(way: str, tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "model", "qwen3_moe", **WAYS[way])
    adapter = write_mlx_adapter(
        tmp_path / "adapter", mlx_pairs(EXPERTS), layers=2, keys=EXPERT_KEYS
    )
    expected = theirs(folder, adapter)
    assert error(ours(folder, adapter), expected) < CLOSE
    assert error(ours(folder), expected) > 100 * CLOSE


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_embeddings_that_are_the_head_too(kind: str, tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "model", "qwen2")
    made = mlx_pairs({"model.embed_tokens": (64, 320)}, magnitudes=kind == "dora")
    if kind == "dora":
        made["model.embed_tokens.m"] = np.linspace(0.5, 1.5, 320).astype(np.float32)
    adapter = write_mlx_adapter(tmp_path / "adapter", made, kind=kind, keys=["model.embed_tokens"])
    expected = theirs(folder, adapter)
    assert error(ours(folder, adapter), expected) < CLOSE
    assert error(theirs(fused(folder, adapter, tmp_path / "out")), expected) < CLOSE


def fused(source: Path, adapter: Path, out: Path, *flags: str) -> Path:
    command = ["--hf-path", str(source), "--mlx-path", str(out), "--quiet"]
    assert main([*command, "--fuse-adapter", str(adapter), *flags]) == 0
    return out


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fused_into_a_folder_it_gives_the_same(kind: str, tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "model")
    adapter = write_mlx_adapter(
        tmp_path / "a", mlx_pairs(LLAMA, magnitudes=kind == "dora"), kind=kind, layers=2, keys=KEYS
    )
    out = fused(folder, adapter, tmp_path / "out")
    assert error(theirs(out), theirs(folder, adapter)) < CLOSE
    receipt = json.loads((out / "conversion.json").read_text())["adapter"]
    assert receipt == {
        "given": str(adapter),
        "format": "mlx",
        "base": "org/base",
        "modules": 6,
        "sha256": open_folder(folder, adapter=adapter).adapter.digest,  # type: ignore[union-attr]
    }


def test_fused_into_stacks_of_experts_of_a_checkpoint(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source", "qwen3_moe", dtype=mx.float32)
    shapes = {
        "model.layers.1.mlp.switch_mlp.up_proj": (4, 64, 128),
        "model.layers.1.self_attn.o_proj": (128, 128),
    }
    adapter = write_mlx_adapter(tmp_path / "adapter", mlx_pairs(shapes), layers=1)
    out = fused(source, adapter, tmp_path / "out")
    assert error(theirs(out), ours(source, adapter)) < CLOSE
    assert error(ours(source), ours(source, adapter)) > 100 * CLOSE


def test_fused_into_a_packed_folder(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "model", quantization=AFFINE)
    adapter = write_mlx_adapter(tmp_path / "adapter", mlx_pairs(LLAMA), layers=2, keys=KEYS)
    expected = theirs(folder, adapter)
    plain = fused(folder, adapter, tmp_path / "plain", "--dequantize")
    assert error(ours(plain), expected) < CLOSE
    # Packed as the folder is: what is adapted anew, the codes of the rest as they were.
    packed = fused(folder, adapter, tmp_path / "packed")
    before, after = (mx.load(str(each / "model.safetensors")) for each in (folder, packed))
    assert isinstance(before, dict) and isinstance(after, dict)
    changed = {
        name.removesuffix(".weight")
        for name, value in before.items()
        if name.endswith(".weight") and not mx.array_equal(value, after[name])
    }
    assert changed == set(LLAMA)
    assert error(theirs(packed), expected) < error(theirs(folder), expected) / 2
    again = fused(folder, adapter, tmp_path / "again", "-q", "--bits", "8", "--group-size", "32")
    assert error(theirs(again), expected) < 0.05


def test_a_checkpoint_quantized_as_it_is_read(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source", "llama", dtype=mx.float32)
    shapes = {"model.layers.1.self_attn.q_proj": (128, 128)}
    adapter = write_mlx_adapter(tmp_path / "adapter", mlx_pairs(shapes), layers=1)
    exact = ours(source, adapter)
    assert error(ours(source, adapter, load_bits=8), exact) < 0.05
    assert error(ours(source, load_bits=8), exact) > 0.1


def test_a_half_precision_model_computes_in_it(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "model", dtype=mx.bfloat16)
    adapter = write_mlx_adapter(tmp_path / "adapter", mlx_pairs(LLAMA), layers=2, keys=KEYS)
    loaded = load(open_folder(folder, adapter=adapter), place("cpu", "bfloat16"))
    found = loaded.model(mx.array([IDS]))[0]
    assert found.dtype == mx.bfloat16
    assert error(np.array(found.astype(mx.float32)), ours(folder, adapter)) < 0.05
