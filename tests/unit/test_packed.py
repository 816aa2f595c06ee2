"""Packed weights as recipes: any box of the plain weight, and the codes as they are."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.architecture.kept import kept
from checkpoint.architecture.packed import Dequantize, plain_view, same_tensors
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, Copy, whole
from checkpoint.shards import read_catalog
from configs.errors import ModelConfigError, SourceError

FORMS = {
    f"{mode} {bits} {group}": {"bits": bits, "group_size": group, "mode": mode}
    for bits, group, mode in (
        *((bits, 32, "affine") for bits in (2, 3, 4, 5, 6, 8)),
        (4, 64, "affine"),
        (4, 32, "mxfp4"),
        (4, 16, "nvfp4"),
        (8, 32, "mxfp8"),
    )
}
SHAPES = {"matrix": (5, 128), "stack": (3, 4, 128)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed")
    mx.random.seed(1)
    tensors = {"norm.weight": mx.ones((8,), mx.bfloat16)}
    for name, form in FORMS.items():
        for kind, shape in SHAPES.items():
            weight = mx.random.normal(shape).astype(mx.bfloat16)
            parts = mx.quantize(weight, **form)
            for part, array in zip(("weight", "scales", "biases"), parts, strict=False):
                tensors[f"{kind} {name}.{part}"] = array
    mx.save_safetensors(str(path / "model.safetensors"), tensors, metadata={"format": "mlx"})
    return path


def config() -> dict[str, object]:
    own = {f"{kind} {name}": form for name, form in FORMS.items() for kind in SHAPES}
    return {"quantization": {"bits": 4, "group_size": 64, **own}}


def parts_of(folder: Path, module: str) -> list[mx.array]:
    tensors = mx.load(str(folder / "model.safetensors"))
    names = (f"{module}.{part}" for part in ("weight", "scales", "biases"))
    return [tensors[name] for name in names if name in tensors]  # type: ignore[index, operator]


def values(folder: Path, module: str, form: dict[str, object]) -> mx.array:
    codes, scales, *biases = parts_of(folder, module)
    if biases:
        scales, biases = scales.astype(mx.float32), [biases[0].astype(mx.float32)]
    return mx.dequantize(codes, scales, *biases, **form, dtype=mx.float32)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_box(name: str, kind: str, folder: Path, data: st.DataObject) -> None:
    recipe = plain_view(config(), read_catalog(folder), None)[f"{kind} {name}.weight"]
    assert (recipe.shape, recipe.dtype) == (SHAPES[kind], mx.bfloat16)
    box: Box = tuple(
        tuple(
            sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True)))
        )
        for size in recipe.shape
    )  # type: ignore[assignment]
    with TensorReader() as reader:
        found = recipe.read(box, reader)
    expected = values(folder, f"{kind} {name}", FORMS[name])[tuple(slice(*cut) for cut in box)]
    assert mx.array_equal(found, expected.astype(mx.bfloat16)).item()


@pytest.mark.parametrize("name", FORMS)
def test_codes_as_they_are(name: str, folder: Path) -> None:
    for dtype in (None, mx.float32):
        recipe = plain_view(config(), read_catalog(folder), dtype)[f"stack {name}.weight"]
        assert isinstance(recipe, Dequantize)
        with TensorReader() as reader:
            packed = kept(recipe)
            assert packed is not None
            found = packed.read(((1, 3), (0, 4), (0, 128)), reader)
        for array, expected in zip(found, parts_of(folder, f"stack {name}"), strict=True):
            floating = mx.issubdtype(expected.dtype, mx.floating)
            assert array.dtype == (dtype if dtype and floating else expected.dtype)
            assert mx.array_equal(array, expected[1:3].astype(array.dtype)).item()


def test_a_factor_for_each_expert(tmp_path: Path) -> None:
    mx.random.seed(2)
    weight = mx.random.normal((3, 4, 64)) * mx.array([0.01, 1.0, 30.0]).reshape(3, 1, 1)
    factors = mx.max(mx.abs(weight), axis=(1, 2))
    form = {"bits": 4, "group_size": 16, "mode": "nvfp4"}
    made = [mx.quantize(weight[e], **form, global_scale=factors[e]) for e in range(3)]
    tensors = {
        "m.weight": mx.stack([codes for codes, _ in made]),
        "m.scales": mx.stack([scales for _, scales in made]),
        "m.global_scale": factors,
    }
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors, metadata={"format": "mlx"})
    recipe = plain_view({"quantization": form}, read_catalog(tmp_path), mx.float32)["m.weight"]
    with TensorReader() as reader:
        found = recipe.read(((1, 3), (0, 4), (8, 40)), reader)
    expected = mx.stack(
        [
            mx.dequantize(*made[e], **form, global_scale=factors[e], dtype=mx.float32)
            for e in range(3)
        ]
    )
    assert mx.array_equal(found, expected[1:3, :, 8:40]).item()
    assert mx.abs(expected - weight).max().item() < 12


def test_what_is_the_same(folder: Path, tmp_path: Path) -> None:
    one = plain_view(config(), read_catalog(folder), None)
    tensors = mx.load(str(folder / "model.safetensors"))
    biases = tensors["matrix affine 4 64.biases"]  # type: ignore[index, call-overload]
    tensors["matrix affine 4 64.biases"] = biases + 1  # type: ignore[index, call-overload]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors, metadata={"format": "mlx"})
    other = plain_view(config(), read_catalog(tmp_path), None)
    differing = [name for name in one if not same_tensors(one[name], other[name])]
    assert differing == ["matrix affine 4 64.weight"]
    assert not same_tensors(one["norm.weight"], one["matrix affine 4 64.weight"])
    assert isinstance(one["norm.weight"], Copy)
    with TensorReader() as reader:
        assert one["norm.weight"].read(whole((8,)), reader).tolist() == [1.0] * 8


def test_faults_are_raised(folder: Path) -> None:
    catalog = read_catalog(folder)
    with pytest.raises(ModelConfigError, match="bits 7"):
        plain_view({"quantization": {"bits": 7, "group_size": 64}}, catalog, None)
    with pytest.raises(SourceError, match="has scales"):
        plain_view({"quantization": {"bits": 4, "group_size": 64}}, catalog, None)
