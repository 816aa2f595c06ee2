"""`--method search`: the same folder as by rounding, closer to the source, read by mlx-lm."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import pytest

from checkpoint.architecture import explicit
from convert import blocks
from convert.cli import main
from tests.factories_models import tiny_model
from tests.meaning_in_process import meaning_in_process

FORMS = [
    *(["--bits", f"{bits}"] for bits in (2, 3, 4, 8)),
    *(["--mode", mode] for mode in ("mxfp4", "nvfp4", "mxfp8")),
]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(explicit, "transformers_meaning", meaning_in_process)
    with mx.stream(mx.cpu):
        yield


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("source") / "experts", "qwen3_moe")


def convert(source: Path, out: Path, *flags: str) -> Path:
    assert main(["--hf-path", str(source), "--mlx-path", str(out), "--quiet", *flags]) == 0
    return out


def load(folder: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(folder / "model.safetensors")))  # type: ignore[arg-type]


def plain(folder: Path) -> dict[str, mx.array]:
    """What the stored weights stand for, in float32."""
    tensors, told = load(folder), json.loads((folder / "config.json").read_text())["quantization"]
    found = {}
    for name in [name for name in tensors if name.endswith(".scales")]:
        module = name.removesuffix(".scales")
        form = told[module] if isinstance(told.get(module), dict) else told
        scales, biases = tensors[name], tensors.get(f"{module}.biases")
        if biases is not None:
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        found[f"{module}.weight"] = mx.dequantize(
            tensors[f"{module}.weight"],
            scales,
            biases,
            **{name: form[name] for name in ("group_size", "bits", "mode")},
            dtype=mx.float32,
        )
    return found


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_closer_to_the_source_than_rounding(form: list[str], experts: Path, tmp_path: Path) -> None:
    source = load(convert(experts, tmp_path / "plain"))
    ours = convert(experts, tmp_path / "ours", "-q", "--method", "search", *form)
    theirs = convert(experts, tmp_path / "theirs", "-q", "--method", "rtn", *form)
    assert {name: (a.shape, a.dtype) for name, a in load(ours).items()} == {
        name: (a.shape, a.dtype) for name, a in load(theirs).items()
    }
    assert (ours / "config.json").read_text() == (theirs / "config.json").read_text()
    searched, rounded = plain(ours), plain(theirs)
    lost = [
        math.fsum(mx.sum(mx.square(found[name] - source[name])).item() for name in found)
        for found in (searched, rounded)
    ]
    assert lost[0] < lost[1] or (lost[0] == lost[1] and "mxfp8" in form)
    mlx_lm.utils.load_model(ours)


def test_it_is_the_default_and_the_receipt_says_so(llama: Path, tmp_path: Path) -> None:
    out = convert(llama, tmp_path / "out", "-q")
    asked = convert(llama, tmp_path / "asked", "-q", "--method", "search")
    assert json.loads((out / "conversion.json").read_text())["options"]["method"] == "search"
    assert (out / "model.safetensors").read_bytes() == (asked / "model.safetensors").read_bytes()


def test_how_rows_are_cut_into_blocks_changes_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(llama, tmp_path / "whole", "-q", "--bits", "3")
    for size in (1, 20_000):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
        out = convert(llama, tmp_path / f"{size}", "-q", "--bits", "3")
        assert (out / "model.safetensors").read_bytes() == (
            whole / "model.safetensors"
        ).read_bytes()


def test_a_folder_that_is_quantized_already(llama: Path, tmp_path: Path) -> None:
    """The same form keeps its codes; another is searched, from what the folder stands for."""
    packed = convert(llama, tmp_path / "packed", "-q", "--bits", "8", "--method", "rtn")
    kept = load(convert(packed, tmp_path / "kept", "-q", "--bits", "8"))
    assert all(mx.array_equal(kept[name], array) for name, array in load(packed).items())
    anew = convert(packed, tmp_path / "anew", "-q", "--bits", "4")
    back = convert(packed, tmp_path / "back", "--dequantize")
    direct = convert(back, tmp_path / "direct", "-q", "--bits", "4")
    assert (anew / "model.safetensors").read_bytes() == (direct / "model.safetensors").read_bytes()
