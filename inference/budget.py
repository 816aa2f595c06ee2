"""How many KV caches of a model fit.

Owns the sum of what is held at once; what one takes is `checkpoint.architecture.kv_cost`'s.
Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from checkpoint.architecture.kv_cost import PIECE_TOKENS, CacheCost, cost_of
from configs.errors import GenerationError
from inference.cache import KvForm, SequenceCache

__all__ = ["PIECE_TOKENS", "Budget", "CacheCost", "measure"]


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


def measure(model: nn.Module, form: KvForm | None = None) -> CacheCost:
    """What a model's caches take, from one that has read two tokens.

    One that is brought to fewer bits later on is taken for what it is before.
    """
    cache = SequenceCache(model, form)
    for _ in range(2):
        model(mx.array([[0]]), cache=cache.layers)
        cache.advance(1)
    cache.evaluate()
    return cost_of(cache.layers)
