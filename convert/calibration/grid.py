"""The first scale and bias of a group, before the codes of others are known.

A few widths of the group's span, each followed by weighted least squares; the best by the
error that the diagonal of the Hessian weights. Owns that short search, and how a number
comes back from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import mlx.core as mx
import numpy as np

from convert.calibration.hessian import Floats

Store = Callable[[Floats], Floats]
"""Gives numbers as they are read back once they have been written."""

_WIDTHS = (1.0, 0.9, 0.8, 0.7, 0.6)
_ROUNDS = 2
_LEAST_SCALE = np.float32(1e-7)
_LEAST_VARIANCE = np.float32(1e-12)
# Weights looked at together: few enough to stay in a cache.
_TOGETHER = 1 << 15
_HALF_BFLOAT16 = np.uint32(0x7FFF)


def _bfloat16(values: Floats) -> Floats:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + _HALF_BFLOAT16 + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def _float16(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)


STORES: Mapping[mx.Dtype, Store] = MappingProxyType(
    {mx.bfloat16: _bfloat16, mx.float16: _float16, mx.float32: lambda values: values}
)
"""By the dtype that scales and biases are stored in."""


def first_grid(weights: Floats, share: Floats, levels: int, store: Store) -> tuple[Floats, Floats]:
    """Scale and bias of one group in every row, as they are stored.

    Args:
        weights: [group_size, rows].
        share: How much each column's error counts, [group_size], 1 in all.
        levels: The largest code.
        store: As what dtype they are stored.

    Returns:
        Scales and biases, each [rows].
    """
    rows = weights.shape[1]
    step = max(1, _TOGETHER // len(weights))
    made = [
        _first_grid(np.ascontiguousarray(weights[:, low : low + step]), share, levels, store)
        for low in range(0, rows, step)
    ]
    scales, biases = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return scales, biases


def _first_grid(weights: Floats, share: Floats, levels: int, store: Store) -> tuple[Floats, Floats]:
    low, high = weights.min(0), weights.max(0)
    middle = low * np.float32(0.5) + high * np.float32(0.5)
    mean = share @ weights
    best: tuple[Floats, ...] = (np.zeros_like(low), low, np.full_like(low, np.inf))
    for width in _WIDTHS:
        scale = store(np.maximum((high - low) * np.float32(width / levels), _LEAST_SCALE))
        bias = store(middle - scale * np.float32(levels / 2))
        for turn in range(_ROUNDS + 1):
            codes = nearest(weights, scale, bias, levels)
            apart = codes * scale
            apart += bias
            apart -= weights
            apart *= apart
            error = share @ apart
            better = error < best[2]
            found = zip((scale, bias, error), best, strict=True)
            best = tuple(np.where(better, ours, theirs) for ours, theirs in found)
            if turn == _ROUNDS:
                break
            center = share @ codes
            np.subtract(codes, center, out=codes)
            np.multiply(codes, codes, out=apart)
            spread = share @ apart
            np.multiply(codes, weights, out=apart)
            joint = share @ apart
            sound = (spread > _LEAST_VARIANCE) & (joint > 0)
            scale = np.where(sound, joint / np.where(sound, spread, 1), scale)
            scale = store(np.maximum(scale, _LEAST_SCALE))
            bias = store(mean - scale * center)
    return best[0], best[1]


def nearest(weights: Floats, scale: Floats, bias: Floats, levels: int) -> Floats:
    """The nearest codes, as floats."""
    codes: Floats = np.subtract(weights, bias)
    codes /= scale
    np.rint(codes, out=codes)
    np.clip(codes, 0, levels, out=codes)
    return codes
