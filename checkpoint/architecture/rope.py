"""Rotary position embeddings: what a config means to transformers, and how to tell mlx-lm.

Owns the arithmetic of RoPE's variants (frequencies, and the scale of what is rotated)
and the config keys, old and new, that say the same. Whether a model of mlx-lm then
computes it is for `rotations` to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import ArchitectureError, ModelConfigError


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


def rotation(
    rope: Mapping[str, Any], head_dim: int, max_positions: int | None, length: int | None = None
) -> Rotation:
    """The rotation that transformers computes for one entry of `rope_parameters`.

    Args:
        rope: The entry, as transformers' class holds it.
        head_dim: Dimensions of a head.
        max_positions: `max_position_embeddings`; for `dynamic` the rotation is the one up to it.
        length: How long the text is, by which `longrope` takes its short or its long factors;
            None for a text beyond `original_max_position_embeddings`.

    Raises:
        ArchitectureError: a rope type that has no formula here.
        ModelConfigError: a value of it is missing or unusable.
    """
    rope_type = rope.get("rope_type", "default")
    if rope_type not in _ROTATIONS:
        raise ArchitectureError(
            "config.json",
            f"rope_type {rope_type!r} is not one mlx-lm has",
            f"those that it has are {', '.join(sorted(_ROTATIONS))}",
        )
    try:
        if rope_type == "longrope":
            context = rope["original_max_position_embeddings"]
            kind = "short" if length is not None and length <= context else "long"
            rope = {**rope, "long_factor": rope[f"{kind}_factor"]}
        return _ROTATIONS[rope_type](rope, head_dim, max_positions)
    except KeyError as error:
        raise ModelConfigError(
            "config.json", f"rope_parameters has no {error}", "download it again"
        ) from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelConfigError(
            "config.json",
            f"rope_parameters {dict(rope)} can't be computed with ({error})",
            "download it again",
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


def written_keys(
    values: Mapping[str, Any], fields: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Every key, old and new, that says the same as transformers' `rope_parameters`.

    Args:
        values: What transformers' class holds.
        fields: The keys that mlx-lm's architecture reads.
        notes: Where to say what deviates.
    """
    parameters = values["rope_parameters"]
    nested = by_layer_type(parameters)
    main = parameters if not nested else nested.get("full_attention") or next(iter(nested.values()))
    scaled = scaling(main, values, notes)
    if scaled is not None:  # transformers prefers rope_scaling: both say the same
        parameters = {**parameters, "full_attention": scaled} if nested else scaled
    keys: dict[str, Any] = {"rope_parameters": parameters, "rope_theta": main["rope_theta"]}
    partial = main.get("partial_rotary_factor")
    if partial is not None or "partial_rotary_factor" in fields:
        keys["partial_rotary_factor"] = 1.0 if partial is None else partial
    if not nested or "rope_scaling" in fields:
        keys["rope_scaling"] = scaled
    if local := nested.get("sliding_attention"):
        keys["rope_local_base_freq"] = local["rope_theta"]
    if "rotary_pct" in fields:
        keys |= {"rotary_pct": partial or 1.0, "rotary_emb_base": main["rope_theta"]}
    if "rotary_dim" in fields:
        keys["rotary_dim"] = int(head_dimensions(values) * (partial or 1.0))
    return keys


def by_layer_type(parameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The entries by layer type; empty if one entry is for all layers."""
    return {kind: told for kind, told in parameters.items() if isinstance(told, Mapping)}


def scaling(
    rope: Mapping[str, Any], values: Mapping[str, Any], notes: list[str]
) -> dict[str, Any] | None:
    """`rope_scaling` as mlx-lm wants it; transformers, which prefers it, reads the same in it."""
    rope_type = rope.get("rope_type", "default")
    if rope_type == "default" and "mrope_section" not in rope:
        return None
    scaling = {**rope, "type": rope_type}
    positions = values.get("max_position_embeddings")
    if rope_type == "yarn":
        factor = yarn_factor(rope, positions)
        scaling |= {"factor": factor}
        scaling |= {
            "beta_fast": rope.get("beta_fast") or 32,
            "beta_slow": rope.get("beta_slow") or 1,
        }
        scaling |= _mscales(rope, factor)
    if rope_type == "longrope" and rope["long_factor"] != rope["short_factor"]:
        context = rope["original_max_position_embeddings"]
        notes.append(
            f"rope_type 'longrope': right for texts beyond {context} positions; mlx-lm takes "
            "long_factor for shorter ones too, where transformers takes short_factor"
        )
    return scaling


def _mscales(rope: Mapping[str, Any], factor: float) -> dict[str, float]:
    """The two weights from which mlx-lm derives the scale that transformers computes."""
    all_dim = rope.get("mscale_all_dim") or 0.0  # some models scale their softmax with it too
    if factor <= 1:
        return {"mscale": 1.0, "mscale_all_dim": all_dim}
    scale = yarn_scale(rope, factor) * _grown(factor, all_dim)
    weight = round((scale - 1) / (0.1 * math.log(factor)), 12)
    return {"mscale": weight, "mscale_all_dim": all_dim}


def head_dimensions(values: Mapping[str, Any]) -> int:
    """The dimensions of an attention head that RoPE sees."""
    return int(
        values.get("qk_rope_head_dim")
        or values.get("head_dim")
        or values["hidden_size"] // values["num_attention_heads"]
    )
