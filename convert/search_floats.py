"""Searches each group for the scale that loses least, for mxfp4, nvfp4 and mxfp8.

What counts is the squared error, weighted by `convert.importance`. These formats have no
bias and few scales: powers of two (e8m0) for mxfp4 and mxfp8, floats of eight bits (e4m3)
for nvfp4. So the scales next to MLX's own are tried, that one included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import mlx.core as mx

from convert.codes import pack
from convert.importance import importance

_E4M3_LARGEST = 448.0
_E2M1_LARGEST = 6.0


class _Format(NamedTuple):
    """A format of floats.

    Attributes:
        largest: The largest magnitude of an element.
        bits: Of an element.
        e4m3_scales: Whether scales are e4m3, not e8m0.
        neighbours: Which scales are tried, counted from MLX's own.
    """

    largest: float
    bits: int
    e4m3_scales: bool
    neighbours: tuple[int, ...]


_FORMATS = {
    "mxfp4": _Format(_E2M1_LARGEST, 4, False, (-1, 1)),
    "nvfp4": _Format(_E2M1_LARGEST, 4, True, (-3, -2, -1, 1, 2, 3, 4)),
    "mxfp8": _Format(_E4M3_LARGEST, 8, False, (-1,)),
}


@cache
def search_floats(mode: str, fused: bool) -> Callable[[mx.array], tuple[mx.array, ...]]:
    """The search of a mode: takes groups [groups, group_size], gives codes and scales.

    Args:
        mode: `mxfp4`, `nvfp4` or `mxfp8`.
        fused: Whether to compile it, as pays on a GPU.
    """
    form = _FORMATS[mode]

    def kernel(groups: mx.array) -> tuple[mx.array, ...]:
        weights = groups.astype(mx.float32)
        magnitudes = mx.abs(weights)
        largest = mx.max(magnitudes, -1, keepdims=True)
        best = _nearest_scale(largest, form)
        share = importance(magnitudes, largest)
        start, error = best, _error(magnitudes, share, best, form)
        for neighbour in form.neighbours:
            code = _within(start.astype(mx.int32) + neighbour, form)
            lost = _error(magnitudes, share, code, form)
            better = lost < error
            best = mx.where(better, code, best)
            error = mx.where(better, lost, error)
        return _elements(weights, best, form), best

    return mx.compile(kernel) if fused else kernel


def _nearest_scale(largest: mx.array, form: _Format) -> mx.array:
    """The codes of MLX's own scales, [groups, 1] uint8, but none that stand for zero."""
    wanted = largest / form.largest
    if form.e4m3_scales:
        return _within(mx.to_fp8(wanted), form)
    # The exponent, one more unless it is a power of two.
    raw = wanted.view(mx.uint32)
    above = (raw & 0x7FFFFF) != 0
    return _within((raw >> 23) + above.astype(mx.uint32), form)


def _within(codes: mx.array, form: _Format) -> mx.array:
    """Codes of scales that are finite and not zero."""
    largest = 0x7E if form.e4m3_scales else 0xFE
    return mx.minimum(mx.maximum(codes, 1), largest).astype(mx.uint8)


def _scale(codes: mx.array, form: _Format) -> mx.array:
    if form.e4m3_scales:
        return mx.from_fp8(codes, mx.float32)
    return (codes.astype(mx.uint32) << 23).view(mx.float32)


def _error(magnitudes: mx.array, share: mx.array, codes: mx.array, form: _Format) -> mx.array:
    """The root of the weighted squared error, [groups, 1]."""
    scale = _scale(codes, form)
    scaled = magnitudes * (1 / scale)
    if form.bits == 8:
        rest = scaled - mx.from_fp8(mx.to_fp8(scaled), mx.float32)
    else:
        rest = scaled - _e2m1(scaled)[0]
    # A root, since the square of a small scale is zero.
    return scale * mx.sqrt(mx.sum(share * rest * rest, -1, keepdims=True))


def _e2m1(magnitude: mx.array) -> tuple[mx.array, mx.array]:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6, ties to even, and its place among them."""
    fine = mx.round(mx.minimum(magnitude, 2) * 2)
    middle = mx.round(mx.minimum(mx.maximum(magnitude, 2), 4))
    coarse = mx.round(mx.minimum(mx.maximum(magnitude, 4), _E2M1_LARGEST) * 0.5)
    return fine * 0.5 + (middle - 2) + (coarse - 2) * 2, fine + (middle - 2) + (coarse - 2)


def _elements(weights: mx.array, codes: mx.array, form: _Format) -> mx.array:
    """The packed elements."""
    scaled = weights * (1 / _scale(codes, form))
    if form.bits == 8:
        return mx.to_fp8(scaled).view(mx.uint32)
    place = _e2m1(mx.abs(scaled))[1].astype(mx.uint8)
    return pack(place + (scaled < 0).astype(mx.uint8) * 8, form.bits)
