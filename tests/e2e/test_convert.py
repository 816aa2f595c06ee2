"""Conversions held against mlx-lm's own: same tensors to the bit, same tokens, same config."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
import mlx_lm.utils
import pytest
from mlx_lm.generate import generate_step

from convert.cli import main
from tests.factories_models import tiny_model

KINDS = ("llama", "qwen2", "qwen3_moe")
AFFINE = [(bits, group, "affine") for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
MODES = [(4, 32, "mxfp4"), (4, 16, "nvfp4"), (8, 32, "mxfp8")]
OPTIONS = [("llama", *how) for how in AFFINE + MODES] + [
    (kind, *how)
    for kind in ("qwen2", "qwen3_moe")
    for how in [(2, 64, "affine"), (4, 64, "affine"), (8, 32, "affine"), *MODES]
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {kind: tiny_model(folder / kind, kind) for kind in KINDS}


def load(folder: Path) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for path in folder.glob("model*.safetensors"):
        tensors |= mx.load(str(path))  # type: ignore[arg-type]
    return tensors


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    got, expected = load(ours), load(theirs)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        raw = mx.uint32 if array.itemsize == 4 else mx.uint16 if array.itemsize == 2 else mx.uint8
        assert mx.array_equal(got[name].view(raw), array.view(raw)).item(), name


@pytest.mark.parametrize(("kind", "bits", "group", "mode"), OPTIONS)
def test_rtn_writes_what_mlx_lm_writes(
    kind: str, bits: int, group: int, mode: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    flags = ["-q", "--bits", f"{bits}", "--group-size", f"{group}", "--mode", mode, "--quiet"]
    flags += ["--method", "rtn"]
    assert main(["--hf-path", str(sources[kind]), "--mlx-path", str(ours), *flags]) == 0
    mlx_lm.convert(
        str(sources[kind]), str(theirs), quantize=True, q_bits=bits, q_group_size=group, q_mode=mode
    )
    assert_same_tensors(ours, theirs)
    own = json.loads((ours / "config.json").read_text())
    expected = json.loads((theirs / "config.json").read_text())
    assert own["quantization"] == own["quantization_config"]
    for module, how in expected["quantization"].items():
        # mlx-lm leaves out a mode that is the default one.
        assert own["quantization"][module] == (
            {"mode": "affine"} | how if isinstance(how, dict) else how
        )
    assert own["quantization"].keys() == expected["quantization"].keys()
    index = json.loads((ours / "model.safetensors.index.json").read_text())
    reference = json.loads((theirs / "model.safetensors.index.json").read_text())
    assert index == reference


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16", "float32"])
def test_plain_conversion_writes_what_mlx_lm_writes(
    kind: str, dtype: str | None, sources: dict[str, Path], tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    flags = ["--dtype", dtype] if dtype else []
    assert main(["--hf-path", str(sources[kind]), "--mlx-path", str(ours), "--quiet", *flags]) == 0
    mlx_lm.convert(str(sources[kind]), str(theirs), dtype=dtype)
    assert_same_tensors(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_stock_mlx_lm_loads_it_and_goes_on_the_same(
    kind: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    flags = ["-q", "--dtype", "float32", "--max-shard-size", "200KB", "--method", "rtn", "--quiet"]
    assert main(["--hf-path", str(sources[kind]), "--mlx-path", str(ours), *flags]) == 0
    assert len(list(ours.glob("model-*-of-*.safetensors"))) > 1
    mlx_lm.convert(str(sources[kind]), str(theirs), quantize=True, dtype="float32")
    tokens = []
    for folder in (ours, theirs):
        model, tokenizer = mlx_lm.utils.load(str(folder))
        prompt = mx.array(tokenizer.encode("def main():"))
        steps = generate_step(prompt, model, max_tokens=16)
        tokens.append([int(token) for token, _ in steps])
    assert tokens[0] == tokens[1]
