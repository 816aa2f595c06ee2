"""What the KV caches of a model take, and how many fit.

Owns the measure, taken from a cache that has read a token and not from what a config
says, and the sum of what is held at once. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from configs.errors import GenerationError
from inference.cache import KvForm, SequenceCache
from inference.slots import STEP

PIECE_TOKENS = 2048  # of a prompt, read at once


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


@dataclass(frozen=True)
class Budget:
    """Bytes for KV caches.

    Attributes:
        limit: Most that they may take.
        cost: What one takes.
        together: Whether sequences share a batch, where each slot has room for the longest.
    """

    limit: int
    cost: CacheCost
    together: bool

    def needed(
        self, lengths: Sequence[int], reading: Sequence[int], beginnings: Sequence[int] = ()
    ) -> int:
        """Most that they will take.

        Args:
            lengths: Of the sequences, prompts and answers, when they are whole.
            reading: Of the prompts among them that are not read yet: one at a time.
            beginnings: Of what is kept for several prompts.
        """
        kept = sum(self.cost.reading(tokens) for tokens in beginnings)
        prompt = max(reading, default=0)
        if self.together:
            # A prompt is read into a cache of its own, and copied.
            slots = len(lengths) * self.cost.decoding(max(lengths, default=0))
            return kept + slots + self.cost.reading(prompt)
        alone = sum(self.cost.decoding(tokens) for tokens in lengths)
        return kept + alone + self.cost.reading(prompt) - self.cost.decoding(prompt)

    def fits(
        self, lengths: Sequence[int], reading: Sequence[int], beginnings: Sequence[int] = ()
    ) -> bool:
        """Whether all that is `needed` is there."""
        return self.needed(lengths, reading, beginnings) <= self.limit

    def refusal(self, prompt: int, length: int) -> GenerationError:
        """Why a sequence does not even fit alone."""
        return GenerationError(
            "memory",
            f"the KV cache of {prompt:,} tokens of prompt and {length - prompt:,} of answer "
            f"takes {self.needed([length], [prompt]):,} bytes, and there are {self.limit:,}",
            "lower max_tokens, shorten the prompt, or allow more memory",
        )


def _bytes(layer: LayerCost, tokens: int, more: int) -> int:
    rounded = -(-tokens // STEP) * STEP
    held = rounded if layer.window is None else min(rounded, layer.window + more)
    return layer.fixed + layer.per_token * held


def measure(model: nn.Module, form: KvForm | None = None) -> CacheCost:
    """What a model's caches take, from one that has read two tokens.

    One that is brought to fewer bits later on is taken for what it is before.
    """
    cache = SequenceCache(model, form)
    for _ in range(2):
        model(mx.array([[0]]), cache=cache.layers)
        cache.advance(1)
    cache.evaluate()
    return CacheCost(tuple(cost for layer in cache.layers for cost in _costs(layer)))


def _costs(layer: Any) -> list[LayerCost]:
    kind = type(layer).__name__
    if kind == "CacheList":
        return [cost for part in layer.caches for cost in _costs(part)]
    if kind == "ArraysCache":
        return [LayerCost(fixed=layer.nbytes)]
    window = {"RotatingKVCache": "max_size", "ChunkedKVCache": "chunk_size"}.get(kind)
    if window is None and kind not in ("KVCache", "QuantizedKVCache"):
        return [LayerCost(per_token=layer.nbytes)]  # of an unknown kind: no less than this
    arrays = cast(list[tuple[str, mx.array]], tree_flatten([layer.keys, layer.values]))
    held = sum(array.nbytes // array.shape[2] for _, array in arrays)
    return [LayerCost(per_token=held, window=None if window is None else getattr(layer, window))]
