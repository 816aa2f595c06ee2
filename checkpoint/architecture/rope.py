"""Rotary position embeddings: what transformers computes, and whether a model of mlx-lm does.

Owns the arithmetic of RoPE's variants (inverse frequencies and the scale of what
is rotated), the config keys that tell mlx-lm of them, and the check of a model's
own rope modules against that arithmetic. Because the check looks at what the
modules compute, it needs no list of which architecture honours which variant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import ArchitectureError, ModelConfigError

PROBED_POSITIONS = (1, 29, 509)
# float32 angles at the last position are good to about 1e-4; a wrong theta is off by 0.1.
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Rotation:
    """How one layer rotates its queries and keys.

    Attributes:
        frequencies: Radians per position of each pair of dimensions, shape (rotated dims / 2,).
        scale: What the rotated dimensions are multiplied by.
        head_dim: Dimensions of a head, rotated or not.
    """

    frequencies: tuple[float, ...]
    scale: float
    head_dim: int


def rotation(rope: Mapping[str, Any], head_dim: int, max_positions: int | None) -> Rotation:
    """The rotation that transformers computes for one entry of `rope_parameters`.

    For `longrope` it is the one for texts beyond `original_max_position_embeddings`, for
    `dynamic` the one for texts up to `max_positions`.

    Raises:
        ArchitectureError: a rope type that has no formula here.
        ModelConfigError: a value of it is missing or unusable.
    """
    rope_type = rope.get("rope_type", "default")
    if rope_type not in _ROTATIONS:
        raise ArchitectureError("config.json", f"rope_type {rope_type!r} is not one mlx-lm has")
    try:
        return _ROTATIONS[rope_type](rope, head_dim, max_positions)
    except KeyError as error:
        raise ModelConfigError("config.json", f"rope_parameters has no {error}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelConfigError(
            "config.json", f"rope_parameters {dict(rope)} can't be computed with ({error})"
        ) from error


def _plain(rope: Mapping[str, Any], head_dim: int) -> list[float]:
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    return [rope["rope_theta"] ** (-i / rotated) for i in range(0, rotated, 2)]


def _default(rope: Mapping[str, Any], head_dim: int, _: int | None) -> Rotation:
    return Rotation(tuple(_plain(rope, head_dim)), 1.0, head_dim)


def _linear(rope: Mapping[str, Any], head_dim: int, _: int | None) -> Rotation:
    return Rotation(tuple(f / rope["factor"] for f in _plain(rope, head_dim)), 1.0, head_dim)


def _proportional(rope: Mapping[str, Any], head_dim: int, _: int | None) -> Rotation:
    factor = rope.get("factor", 1.0)
    turning = int(rope.get("partial_rotary_factor", 1.0) * head_dim // 2)
    theta = rope["rope_theta"]
    frequencies = [theta ** (-2 * i / head_dim) / factor for i in range(turning)]
    return Rotation((*frequencies, *[0.0] * (head_dim // 2 - turning)), 1.0, head_dim)


def _llama3(rope: Mapping[str, Any], head_dim: int, _: int | None) -> Rotation:
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    frequencies = []
    for f in _plain(rope, head_dim):
        turns = context * f / (2 * math.pi)
        # below `low` turns slowed down, above `high` kept, between the two blended
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        frequencies.append((1 - share) * f / factor + share * f)
    return Rotation(tuple(frequencies), 1.0, head_dim)


def _yarn(rope: Mapping[str, Any], head_dim: int, max_positions: int | None) -> Rotation:
    context = rope["original_max_position_embeddings"]
    factor = yarn_factor(rope, max_positions)
    frequencies = _plain(rope, head_dim)
    rotated = 2 * len(frequencies)

    def dimension(turns: float) -> float:
        numerator = rotated * math.log(context / (turns * 2 * math.pi))
        return float(numerator / (2 * math.log(rope["rope_theta"])))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    if low == high:
        high += 0.001
    mixed = []
    for i, f in enumerate(frequencies):
        slowed = min(max((i - low) / (high - low), 0.0), 1.0)
        mixed.append(slowed * f / factor + (1 - slowed) * f)
    return Rotation(tuple(mixed), yarn_scale(rope, factor), head_dim)


def yarn_factor(rope: Mapping[str, Any], max_positions: int | None) -> float:
    """YaRN's factor, which may be left to the ratio of the two context lengths."""
    factor = rope["factor"]
    if factor is None and max_positions is not None:
        factor = max_positions / rope["original_max_position_embeddings"]
    return float(factor)


def yarn_scale(rope: Mapping[str, Any], factor: float) -> float:
    """The scale that YaRN puts on queries and keys."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if mscale and all_dim:
        return _grown(factor, mscale) / _grown(factor, all_dim)
    return _grown(factor, 1.0)


def _grown(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(rope: Mapping[str, Any], head_dim: int, max_positions: int | None) -> Rotation:
    context = rope["original_max_position_embeddings"]
    stretch, plain = rope["long_factor"], _plain(rope, head_dim)
    if len(stretch) != len(plain):
        raise ValueError(f"long_factor has {len(stretch)} entries, expected {len(plain)}")
    scale = rope.get("attention_factor")
    if scale is None:
        factor = rope.get("factor") or (max_positions or context) / context
        scale = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 else 1.0
    return Rotation(
        tuple(f / s for f, s in zip(plain, stretch, strict=True)), float(scale), head_dim
    )


_ROTATIONS: dict[str, Callable[[Mapping[str, Any], int, int | None], Rotation]] = {
    "default": _default,
    "dynamic": _default,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "proportional": _proportional,
    "yarn": _yarn,
}
