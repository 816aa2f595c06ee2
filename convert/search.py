"""Searches each group of weights for the scale and bias that lose least, without data.

What counts is the squared error, weighted by `convert.importance`. Every candidate is judged
as it will be read back: by scale and bias as they are stored, and the codes that are
nearest for those. Rounding to nearest is always one of the candidates, so that no group
comes out worse. Each group is on its own, whatever lies beside it.

Owns the search for `affine`; the formats of floats are for `convert.search_floats`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle
from typing import NamedTuple

import mlx.core as mx

from convert.codes import pack
from convert.importance import importance
from convert.plan import Quantization
from convert.search_floats import search_floats

# Weights looked at together. On a CPU few enough that they stay in its cache; what
# a GPU is given at once must be large enough to fill it.
_CPU_WEIGHTS = 1 << 18
_GPU_WEIGHTS = 1 << 20

_LEAST_SCALE = 1e-7
_LEAST_VARIANCE = 1e-4
_LARGEST_VARIANCE = 1e30
_LARGEST_STEP = 0.5


class _Course(NamedTuple):
    """Which candidates are looked at.

    Attributes:
        widths: What the codes of the first candidates span, in parts of the group's own span.
        steps: What multiple of the least-squares step is then taken from the best, each time.
            Alternating codes and least squares creeps: more than one step at once gets
            further, and the last one settles.
    """

    widths: tuple[float, ...]
    steps: tuple[float, ...]


# Found on a trained model of 10 M parameters, Gaussian and heavy-tailed (t5) weights, groups
# of 32, 64 and 128: the cheapest with nine tenths of what 4 widths, each with 3 steps and
# the neighbouring scales, gain over rounding to nearest. At 8 bits what is left to win is
# in how scale and bias round, which every width draws anew.
_COURSES = {
    2: _Course((0.75,), (2.0, 1.2)),
    3: _Course((0.91,), (2.0, 1.2)),
    4: _Course((0.98,), (2.0, 1.2)),
    5: _Course((1.0,), (2.0, 1.2)),
    6: _Course((1.0,), (2.0, 1.2)),
    8: _Course((1.008, 1.016, 1.024), ()),
}


class _Group(NamedTuple):
    """Groups and what of them does not change; all but `weights` and `share` are [groups, 1].

    Attributes:
        weights: [groups, group_size] float32.
        share: How much each weight's error counts: [groups, group_size], 1 in all.
        low: The smallest weight.
        high: The largest.
        mean: By share.
        variance: By share.
    """

    weights: mx.array
    share: mx.array
    low: mx.array
    high: mx.array
    mean: mx.array
    variance: mx.array


class _Candidate(NamedTuple):
    """A scale and a bias for every group, each [groups, 1].

    Attributes:
        scale: As stored.
        bias: As stored.
        error: The root of the mean squared error, by share.
        rest: What the codes leave over, in steps of the scale: the mean, by share.
        rest_by_code: The mean of its product with the codes, by share.
    """

    scale: mx.array
    bias: mx.array
    error: mx.array
    rest: mx.array
    rest_by_code: mx.array


def search(
    block: mx.array, quantization: Quantization, streams: Sequence[mx.Stream]
) -> tuple[mx.array, ...]:
    """Quantizes with the least loss that a short search finds; sets the computation going.

    Args:
        block: [..., rows, columns], floating.
        quantization: How to pack; its group size divides the columns.
        streams: Where to compute: all of them, in turn.

    Returns:
        Codes [..., rows, columns * bits / 32] uint32, scales and, for `affine`,
        biases [..., rows, columns / group_size].
    """
    bits, size = quantization.bits, quantization.group_size
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if quantization.mode == "affine":
        kernel = _affine_kernel(bits, block.dtype, not on_cpu)
    else:
        kernel = search_floats(quantization.mode, not on_cpu)
    groups = block.reshape(-1, size)
    step = max(1, (_CPU_WEIGHTS if on_cpu else _GPU_WEIGHTS) // size)
    made = list(_in_turn(kernel, groups, step, streams))
    leading = block.shape[:-1]
    return tuple(
        (parts[0] if len(parts) == 1 else mx.concatenate(list(parts))).reshape(*leading, -1)
        for parts in zip(*made, strict=True)
    )


def _in_turn(
    kernel: Callable[[mx.array], tuple[mx.array, ...]],
    groups: mx.array,
    step: int,
    streams: Sequence[mx.Stream],
) -> Iterator[tuple[mx.array, ...]]:
    """A few groups at a time, so that what is held between is small however large the block."""
    for start, stream in zip(range(0, groups.shape[0], step), cycle(streams), strict=False):
        with mx.stream(stream):
            made = kernel(groups[start : start + step])
            mx.async_eval(*made)
        yield made


@cache
def _affine_kernel(
    bits: int, dtype: mx.Dtype, fused: bool
) -> Callable[[mx.array], tuple[mx.array, ...]]:
    """The search for groups [groups, group_size]; fused on a GPU, where that pays.

    On a CPU it does not: what MLX compiles there is no faster than its own operations.
    """

    def kernel(groups: mx.array) -> tuple[mx.array, ...]:
        found = _find(_look_at(groups), bits, dtype)
        codes, _ = _codes(groups.astype(mx.float32), found.scale, found.bias, bits)
        packed = pack(codes.astype(mx.uint8), bits)
        return packed, found.scale.astype(dtype), found.bias.astype(dtype)

    return mx.compile(kernel) if fused else kernel


def _look_at(groups: mx.array) -> _Group:
    weights = groups.astype(mx.float32)
    low, high = mx.min(weights, -1, keepdims=True), mx.max(weights, -1, keepdims=True)
    share = importance(weights, mx.maximum(mx.abs(low), mx.abs(high)))
    shared = share * weights
    mean = mx.sum(shared, -1, keepdims=True)
    return _Group(
        weights,
        share,
        low,
        high,
        mean,
        mx.sum(shared * weights, -1, keepdims=True) - mean * mean,
    )


def _find(group: _Group, bits: int, dtype: mx.Dtype) -> _Candidate:
    """The best of the candidates."""
    course = _COURSES[bits]
    levels = (1 << bits) - 1
    best = _measure(group, *_rounded_to_nearest(group, levels, dtype), bits)
    middle = group.low * 0.5 + group.high * 0.5
    for width in course.widths:
        scale = mx.maximum((group.high - group.low) * (width / levels), _LEAST_SCALE)
        scale = _stored(mx.where(best.scale < 0, -scale, scale), dtype)
        bias = _stored(middle - scale * (levels / 2), dtype)
        best = _better(best, _measure(group, scale, bias, bits))
    for step in course.steps:
        best = _better(best, _measure(group, *_refit(group, best, step, dtype), bits))
    return best


def _rounded_to_nearest(group: _Group, levels: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """Scale and bias as `mx.quantize` chooses them: the larger end and zero are exact."""
    scale = mx.maximum((group.high - group.low) / levels, _LEAST_SCALE)
    below = mx.abs(group.low) > mx.abs(group.high)
    scale = mx.where(below, scale, -scale)
    edge = mx.where(below, group.low, group.high)
    zero = mx.round(edge / scale)
    exact = (zero != 0) & ~mx.isinf(zero)
    scale = mx.where(exact, edge / mx.where(exact, zero, 1), scale)
    return _stored(scale, dtype), _stored(mx.where(zero == 0, 0, edge), dtype)


def _measure(group: _Group, scale: mx.array, bias: mx.array, bits: int) -> _Candidate:
    codes, rest = _codes(group.weights, scale, bias, bits)
    shared = rest * group.share
    return _Candidate(
        scale,
        bias,
        # A root, since the square of a small scale is zero.
        mx.abs(scale) * mx.sqrt(mx.sum(shared * rest, -1, keepdims=True)),
        mx.sum(shared, -1, keepdims=True),
        mx.sum(shared * codes, -1, keepdims=True),
    )


def _codes(
    weights: mx.array, scale: mx.array, bias: mx.array, bits: int
) -> tuple[mx.array, mx.array]:
    """The nearest codes, and what each weight is beyond its code, in steps of the scale."""
    exact = (weights - bias) * (1 / scale)
    codes = mx.round(mx.minimum(mx.maximum(exact, 0), (1 << bits) - 1))
    return codes, exact - codes


def _refit(
    group: _Group, candidate: _Candidate, step: float, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """Scale and bias by weighted least squares for the codes, the scale by `step` times that.

    All in steps of the scale, where code + rest = (weight - bias) / scale: the moments of
    the codes then follow from those of the weights and of what is left over.
    """
    scale, bias, error, rest, rest_by_code = candidate
    mean = (group.mean - bias) / scale
    code = mean - rest
    covariance = rest_by_code - rest * code
    variance = group.variance / (scale * scale) + rest * (2 * mean - rest)
    variance = variance - 2 * rest_by_code - mx.square(error / scale)
    sound = (variance > _LEAST_VARIANCE) & (variance < _LARGEST_VARIANCE)
    moved = mx.where(sound, step * covariance / mx.where(sound, variance, 1), 0)
    moved = mx.minimum(mx.maximum(moved, -_LARGEST_STEP), _LARGEST_STEP)
    scale = _stored(scale * (1 + moved), dtype)
    return scale, _stored(group.mean - scale * code, dtype)


def _better(best: _Candidate, other: _Candidate) -> _Candidate:
    better = other.error < best.error
    pairs = zip(other, best, strict=True)
    return _Candidate(*(mx.where(better, mine, theirs) for mine, theirs in pairs))


def _stored(values: mx.array, dtype: mx.Dtype) -> mx.array:
    """As they are read back from the file."""
    return values.astype(dtype).astype(mx.float32)
