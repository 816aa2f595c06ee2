"""Whether a model computes the same for sequences together as for each alone.

Owns the measurement: a few uneven sequences are decoded by the model itself both ways,
and their logits compared. So there is no list of architectures that can be batched; what
an architecture does with offsets, masks and states decides. Knows nothing of requests.

Sliding windows are made tiny for it, so that they slide within the few tokens read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from inference.batching import BatchCache, why_not_batched
from inference.cache import SequenceCache

_PROMPTS = (11, 1, 6, 4)  # tokens read before decoding; the last one joins late
_STEPS = 3
_WINDOW = 7
_ROUNDING = {mx.float32: 1e-3, mx.float16: 2e-2, mx.bfloat16: 5e-2}


@dataclass(frozen=True)
class Batching:
    """How sequences of a model can be decoded.

    Attributes:
        refused: Why not together; None where they can be.
        mask_axes: As for `Positions`.
    """

    refused: str | None = None
    mask_axes: int = 2


def batching_of(model: nn.Module) -> Batching:
    """Try a model."""
    reason = why_not_batched(SequenceCache(model))
    if reason is not None:
        return Batching(f"{reason} can't be batched")
    caches = [_read(model, _tokens(row, count)) for row, count in enumerate(_PROMPTS)]
    alone = [_decode(model, row, cache.copy()) for row, cache in enumerate(caches)]
    refusals = []
    for mask_axes in (2, 3):
        refused = _refused(model, caches, alone, mask_axes)
        if refused is None:
            return Batching(None, mask_axes)
        refusals.append(refused)
    return Batching(refusals[0])


def checking_of(model: nn.Module, mask_axes: int) -> str | None:
    """Why a batch can't take several tokens at once and forget some of them; None if it can.

    A sequence alone needs no such trial: it reads several tokens as it reads a prompt.

    Args:
        model: The model.
        mask_axes: As `batching_of` has found it.
    """
    caches = [_read(model, _tokens(row, count)) for row, count in enumerate(_PROMPTS)]
    alone = [_decode(model, row, cache.copy()) for row, cache in enumerate(caches)]
    ids = [_tokens(row + len(_PROMPTS), _STEPS) for row in range(len(caches))]
    try:
        found = _check_together(model, caches, ids, mask_axes)
        off = max(
            _difference(a, b)
            for mine, theirs in zip(alone, found, strict=True)
            for a, b in zip(mine, theirs, strict=True)
        )
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        return f"the architecture can't read several tokens of each in a batch ({error})"
    if off <= _ROUNDING.get(alone[0][0].dtype, 1e-3):
        return None
    return (
        "the architecture computes otherwise where a batch takes several tokens of each"
        f" (logits are off by {off:.1%})"
    )


def _check_together(
    model: nn.Module,
    caches: Sequence[SequenceCache],
    ids: Sequence[Sequence[int]],
    mask_axes: int,
) -> list[list[mx.array]]:
    """The same of all rows at once; each takes back but its first token."""
    batch = BatchCache(mask_axes)
    slots = batch.join(caches)
    tries = [[ids[slots.index(slot)][0], 1, 1] for slot in range(batch.slots)]
    first = model(mx.array(tries), cache=batch.begin(3))[:, 0]
    batch.advance(dict.fromkeys(slots, 1))
    rests = [list(ids[slots.index(slot)][1:]) for slot in range(batch.slots)]
    rest = model(mx.array(rests), cache=batch.begin(len(rests[0])))
    return [[first[slot], *rest[slot]] for slot in slots]


def _refused(
    model: nn.Module,
    caches: Sequence[SequenceCache],
    alone: Sequence[Sequence[mx.array]],
    mask_axes: int,
) -> str | None:
    try:
        together = _decode_together(model, caches, BatchCache(mask_axes))
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        return f"the architecture can't read a batch ({error})"
    off = max(
        _difference(a, b)
        for mine, theirs in zip(alone, together, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )
    if off <= _ROUNDING.get(alone[0][0].dtype, 1e-3):
        return None
    return f"the architecture computes otherwise in a batch (logits are off by {off:.1%})"


def _tokens(row: int, count: int) -> list[int]:
    """Ids that any vocabulary has, different in each row."""
    return [1 + (5 * row + 7 * place + place * place) % 23 for place in range(count)]


def _read(model: nn.Module, tokens: Sequence[int]) -> SequenceCache:
    cache = SequenceCache(model)
    for layer in cache.layers:
        _narrow(layer)
    model(mx.array([list(tokens)]), cache=cache.layers)
    cache.advance(len(tokens))
    cache.evaluate()
    return cache


def _narrow(layer: Any) -> None:
    if type(layer).__name__ == "RotatingKVCache":
        layer.max_size = min(layer.max_size, _WINDOW)
    for part in getattr(layer, "caches", ()):
        _narrow(part)


def _decode(model: nn.Module, row: int, cache: SequenceCache) -> list[mx.array]:
    """The logits, [vocabulary], after each token that a row takes."""
    found = []
    for token in _tokens(row + len(_PROMPTS), _STEPS):
        found.append(model(mx.array([[token]]), cache=cache.layers)[0, -1])
        mx.eval(found[-1])
    return found


def _decode_together(
    model: nn.Module, caches: Sequence[SequenceCache], batch: BatchCache
) -> list[list[mx.array]]:
    """The same of all rows at once; the last row joins when the others have taken a token."""
    slots = batch.join(caches[:-1])
    found: list[list[mx.array]] = [[] for _ in caches]
    for step in range(_STEPS + 1):
        if step == 1:
            slots += batch.join(caches[-1:])
        ids = [1] * batch.slots
        taking = {}
        for row, slot in enumerate(slots):
            place = step - (row == len(caches) - 1)
            if place < _STEPS:
                ids[slot] = _tokens(row + len(_PROMPTS), _STEPS)[place]
                taking[row] = slot
        logits = model(mx.array(ids)[:, None], cache=batch.begin())[:, -1]
        mx.eval(logits)
        for row, slot in taking.items():
            found[row].append(logits[slot])
    return found


def _difference(alone: mx.array, together: mx.array) -> float:
    """The largest, as a fraction of how far the logits lie apart."""
    alone, together = alone.astype(mx.float32), together.astype(mx.float32)
    spread = mx.max(alone) - mx.min(alone)
    error = mx.max(mx.abs(alone - together)) / mx.maximum(spread, 1e-12)
    return cast(float, error.item())
