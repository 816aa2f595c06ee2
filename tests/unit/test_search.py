"""The search for scales and biases: never worse than rounding, the same however it is cut."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from convert import search as search_module
from convert.codes import pack
from convert.plan import Quantization
from convert.quantize import QUANTIZERS, round_to_nearest
from convert.search import search

BITS = (2, 3, 4, 5, 6, 8)
FLOATS = (("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32))
FORMS = [
    *(Quantization(bits, group, "affine") for bits in BITS for group in (32, 64, 128)),
    *(Quantization(bits, group, mode) for mode, bits, group in FLOATS),
]
DTYPES = (mx.bfloat16, mx.float16, mx.float32)


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):
        yield


def streams() -> tuple[mx.Stream, ...]:
    return (mx.default_stream(mx.cpu),)


def normal(*shape: int, scale: float = 0.02) -> mx.array:
    rng = np.random.default_rng(0)
    return mx.array(rng.standard_normal(shape).astype(np.float32) * scale)


def awkward(dtype: mx.Dtype) -> mx.array:
    """[rows, 128] of weights that a search may stumble over."""
    rng = np.random.default_rng(1)
    row = rng.standard_normal(128).astype(np.float32)
    spike = np.where(np.arange(128) % 32 == 3, 100, row)
    rows = [0 * row, 0 * row + 0.3, 0 * row - 7, spike, -spike, row + 1000, row - 300]
    rows += [np.abs(row), -np.abs(row), row * 1e-6, row**5, np.sign(row)]
    rows += [np.where(np.arange(128) < 100, 0, row), np.round(row * 2), row * 1e4]
    if dtype != mx.float16:
        rows += [row * 1e-20, row * 1e-30, row * 1e20, row * 1e36, 0 * row + 1e35]
    return mx.array(np.stack(rows)).astype(dtype)


def plain(parts: tuple[mx.array, ...], form: Quantization) -> np.ndarray:
    """The weights that MLX reads, from the stored values, in float64."""
    scales = parts[1].astype(mx.float32) if form.mode == "affine" else parts[1]
    biases = parts[2].astype(mx.float32) if len(parts) == 3 else None
    arguments = {"group_size": form.group_size, "bits": form.bits, "mode": form.mode}
    return np.array(
        mx.dequantize(parts[0], scales, biases, **arguments, dtype=mx.float32), np.float64
    )


def errors(parts: tuple[mx.array, ...], weights: mx.array, form: Quantization) -> np.ndarray:
    """Each group's weighted error, relative to its weights."""
    wide = np.array(weights.astype(mx.float32), np.float64).reshape(-1, form.group_size)
    rest = plain(parts, form).reshape(-1, form.group_size) - wide
    squares = np.mean(wide**2, -1, keepdims=True)
    share = 1 + 0.25 * wide**2 / np.where(squares == 0, 1, squares)
    return np.sqrt(np.sum(share * rest**2, -1) / np.where(squares == 0, 1, squares)[:, 0])


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_packed_as_mlx_reads_them(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 5, 96), np.uint8)
    packed = pack(mx.array(codes), bits)
    assert (packed.shape, packed.dtype) == ((3, 5, 3 * bits), mx.uint32)
    ones = mx.ones((3, 5, 3))
    read = mx.dequantize(packed, ones, ones * 0, group_size=32, bits=bits)
    assert np.array_equal(np.array(read), codes)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_laid_out_like_rounding(form: Quantization, dtype: mx.Dtype) -> None:
    weights = normal(2, 3, 256).astype(dtype)
    ours, theirs = search(weights, form, streams()), round_to_nearest(weights, form)
    assert [(a.shape, a.dtype) for a in ours] == [(a.shape, a.dtype) for a in theirs]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_group_is_worse_than_rounded_to_nearest(form: Quantization, dtype: mx.Dtype) -> None:
    for weights in (awkward(dtype), normal(64, 128).astype(dtype)):
        ours = errors(search(weights, form, streams()), weights, form)
        theirs = errors(round_to_nearest(weights, form), weights, form)
        assert np.all(np.isfinite(ours))
        assert np.all(ours <= theirs * (1 + 1e-4) + 1e-6), int(np.argmax(ours - theirs))


@pytest.mark.parametrize("form", [Quantization(bits, 32, "affine") for bits in BITS], ids=str)
def test_zeros_and_constants_come_out_exactly(form: Quantization) -> None:
    weights = mx.array([[0.0], [0.3125], [-7.0]]) * mx.ones((3, 64))
    for dtype in DTYPES:
        parts = search(weights.astype(dtype), form, streams())
        assert np.array_equal(plain(parts, form), np.array(weights))


# The mean squared error of Gaussian weights, relative to rounding to nearest.
GAINED = {2: 0.76, 3: 0.84, 4: 0.87, 5: 0.89, 6: 0.89, 8: 0.6}


@pytest.mark.parametrize(("bits", "ratio"), GAINED.items())
def test_it_loses_less_than_rounding(bits: int, ratio: float) -> None:
    form, weights = Quantization(bits, 64, "affine"), normal(64, 1024).astype(mx.bfloat16)
    wide = np.array(weights.astype(mx.float32), np.float64)
    ours, theirs = (
        np.mean((plain(quantize(weights, form, streams()), form) - wide) ** 2)
        for quantize in (QUANTIZERS["search"], QUANTIZERS["rtn"])
    )
    assert ours < ratio * theirs


@pytest.mark.parametrize(("mode", "bits", "group"), FLOATS[:2])
def test_scales_of_floats_are_searched_too(mode: str, bits: int, group: int) -> None:
    form, weights = Quantization(bits, group, mode), normal(64, 512).astype(mx.bfloat16)
    ours = errors(search(weights, form, streams()), weights, form)
    theirs = errors(round_to_nearest(weights, form), weights, form)
    assert np.mean(ours**2) < 0.95 * np.mean(theirs**2)


@pytest.mark.parametrize("form", FORMS[::4] + FORMS[-3:], ids=str)
def test_the_result_does_not_depend_on_how_it_is_cut(
    form: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = normal(12, 256).astype(mx.bfloat16)
    whole = search(weights, form, streams())
    two = (*streams(), mx.new_stream(mx.cpu))
    for size in (form.group_size, 5 * form.group_size, 1 << 20):
        monkeypatch.setattr(search_module, "_CPU_WEIGHTS", size)
        for ours, theirs in zip(search(weights, form, two), whole, strict=True):
            assert mx.array_equal(ours, theirs)
    for rows in (1, 5):
        pieces = [
            search(weights[start : start + rows], form, streams()) for start in range(0, 12, rows)
        ]
        for ours, theirs in zip(zip(*pieces, strict=True), whole, strict=True):
            assert mx.array_equal(mx.concatenate(list(ours)), theirs)


@pytest.mark.parametrize("bits", BITS)
def test_one_of_the_candidates_is_mlx_own(bits: int) -> None:
    weights = normal(64, 128)
    for dtype in DTYPES:
        groups = weights.astype(dtype).reshape(-1, 64)
        scale, bias = search_module._rounded_to_nearest(
            search_module._look_at(groups), (1 << bits) - 1, dtype
        )
        _, scales, biases = mx.quantize(groups, group_size=64, bits=bits)
        assert mx.array_equal(scale.astype(dtype), scales)
        assert mx.array_equal(bias.astype(dtype), biases)
