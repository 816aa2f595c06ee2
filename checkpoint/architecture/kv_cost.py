"""What the KV caches of a model take, by the tokens that they hold.

Owns the measure, taken from cache entries that have read tokens and not from what a config
says. Knows nothing of requests, or of how much memory there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

PIECE_TOKENS = 2048  # of a prompt, read at once
STEP = 256  # tokens by which a cache grows, as mlx-lm's own does


@dataclass(frozen=True)
class LayerCost:
    """Bytes of one layer's cache for one sequence.

    Attributes:
        fixed: Whatever was read.
        per_token: For each token held.
        window: Most tokens held; None for all.
    """

    fixed: int = 0
    per_token: int = 0
    window: int | None = None


@dataclass(frozen=True)
class CacheCost:
    """Bytes of the caches of a model."""

    layers: tuple[LayerCost, ...]

    def decoding(self, tokens: int) -> int:
        """Of one sequence of so many tokens, or of one slot of a batch whose longest has them."""
        return sum(_bytes(layer, tokens, 0) for layer in self.layers)

    def reading(self, tokens: int) -> int:
        """Of one sequence while its prompt is read: a window then also holds the last piece."""
        return sum(_bytes(layer, tokens, PIECE_TOKENS) for layer in self.layers)


def cost_of(entries: Sequence[Any]) -> CacheCost:
    """What cache entries take that have read two tokens; they need not be evaluated."""
    return CacheCost(tuple(cost for entry in entries for cost in _costs(entry)))


def cost_of_placeholders(model: nn.Module) -> CacheCost:
    """What the caches of a model will take whose weights are not there: nothing is computed."""
    from mlx_lm.models.cache import make_prompt_cache

    entries = make_prompt_cache(model)
    for _ in range(2):
        model(mx.array([[0]]), cache=entries)
    return cost_of(entries)


def _bytes(layer: LayerCost, tokens: int, more: int) -> int:
    rounded = -(-tokens // STEP) * STEP
    held = rounded if layer.window is None else min(rounded, layer.window + more)
    return layer.fixed + layer.per_token * held


def _costs(entry: Any) -> list[LayerCost]:
    kind = type(entry).__name__
    if kind == "CacheList":
        return [cost for part in entry.caches for cost in _costs(part)]
    if kind == "ArraysCache":
        return [LayerCost(fixed=entry.nbytes)]
    window = {"RotatingKVCache": "max_size", "ChunkedKVCache": "chunk_size"}.get(kind)
    if window is None and kind not in ("KVCache", "QuantizedKVCache"):
        return [LayerCost(per_token=entry.nbytes)]  # of an unknown kind: no less than this
    arrays = cast(list[tuple[str, mx.array]], tree_flatten([entry.keys, entry.values]))
    held = sum(array.nbytes // array.shape[2] for _, array in arrays)
    return [LayerCost(per_token=held, window=None if window is None else getattr(entry, window))]
