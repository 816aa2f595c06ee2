"""How far hidden states and logits are from the reference's.

Pure functions of float32 arrays. Knows neither models nor what error is allowed.
"""

from __future__ import annotations

import math
from typing import cast

import mlx.core as mx

_LEFT_OUT = 32
"""In a layer that chooses, one token in so many, the worst, is left out: where two experts are
all but equally probable, a rounding error decides between them, and that token's update is
another one."""
_FLOOR = 1e-6


def relative_error(found: mx.array, wanted: mx.array) -> float:
    """Error of vectors [tokens, size] relative to their lengths, root mean square over tokens.

    Infinite if a value found is infinite or NaN.
    """
    return _summary(found - wanted, wanted, wanted)


def update_error(
    found: mx.array, wanted: mx.array, given: mx.array, *, chooses: bool = False
) -> float:
    """The same, relative to what a layer adds to its input.

    Relative to the hidden state itself, which a layer changes little, everything looks well.

    Args:
        found: What a layer gave, [tokens, hidden].
        wanted: What the reference's gave.
        given: What both took.
        chooses: Whether the layer chooses among experts or positions, token by token.
    """
    left_out = found.shape[0] // _LEFT_OUT if chooses else 0
    return _summary(found - wanted, wanted - given, given, left_out)


def update_errors(found: mx.array, wanted: mx.array, given: mx.array) -> mx.array:
    """The same for every token on its own, [tokens]; infinite where a value found is no number."""
    errors = _errors(found - wanted, wanted - given, given)
    return mx.where(mx.isfinite(errors), errors, mx.inf)


def logit_error(found: mx.array, wanted: mx.array) -> float:
    """The same for logits, from which a constant may be taken without a change."""
    difference, centred = found - wanted, wanted - wanted.mean(-1, keepdims=True)
    return _summary(difference - difference.mean(-1, keepdims=True), centred, centred)


def distribution_shift(found: mx.array, wanted: mx.array) -> tuple[float, float]:
    """Mean Kullback-Leibler divergence of `found` from `wanted`, and how often both agree.

    Args:
        found: Logits [tokens, vocabulary].
        wanted: The reference's.

    Returns:
        Nats a token, and the share of tokens with the same most probable next one.
    """
    ours, theirs = (each - mx.logsumexp(each, -1, keepdims=True) for each in (found, wanted))
    divergence = number((mx.exp(theirs) * (theirs - ours)).sum(-1).mean())
    agreement = number((found.argmax(-1) == wanted.argmax(-1)).mean())
    return divergence if math.isnan(divergence) else max(0.0, divergence), agreement


def number(scalar: mx.array) -> float:
    """The value of an array of one real number."""
    return float(cast(float, scalar.item()))


def _summary(difference: mx.array, scale: mx.array, floor: mx.array, left_out: int = 0) -> float:
    errors = mx.sort(_errors(difference, scale, floor))
    kept = errors[: errors.size - left_out]
    finite = mx.isfinite(difference).all().item()
    return math.sqrt(number((kept * kept).mean())) if finite else math.inf


def _errors(difference: mx.array, scale: mx.array, floor: mx.array) -> mx.array:
    lengths = mx.maximum(_length(scale), _FLOOR * _length(floor))
    return _length(difference) / mx.maximum(lengths, 1e-30)


def _length(vectors: mx.array) -> mx.array:
    return mx.sqrt((vectors * vectors).sum(-1))
