"""Prompts into caches, a piece at a time.

Owns how large a piece is, and what prompts share: the first of several that begin alike
leaves its cache for the others. Knows nothing of answers.
"""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
import mlx.nn as nn

from inference.beginning import Beginning
from inference.budget import PIECE_TOKENS
from inference.cache import KvForm, SequenceCache
from inference.decoding import own_cache
from inference.prefixes import Prefixes, where_to_leave
from inference.rows import Row

_SCORE_BYTES = 512 * 2**20  # of attention scores at a time, where attention is not fused


def prefill_tokens(read: int, attention_heads: int | None) -> int:
    """How many prompt tokens to read at once, after `read` others."""
    if attention_heads is None:
        return PIECE_TOKENS
    count = PIECE_TOKENS
    while count > 16 and 4 * attention_heads * count * (read + count) > _SCORE_BYTES:
        count //= 2
    return count


class Prefill:
    """Reads prompts with one model.

    Args:
        model: Called with token ids [1, n] and a cache.
        form: Of the caches.
        attention_heads: As for the engine.
    """

    def __init__(self, model: nn.Module, form: KvForm, attention_heads: int | None) -> None:
        self.prefixes = Prefixes()
        self.beginning: Beginning | None = None
        self._model = model
        self._form = form
        self._attention_heads = attention_heads

    def begin(self, row: Row, waiting: Iterable[tuple[int, ...]]) -> None:
        """Give a row the cache that it begins with.

        Args:
            row: Whose prompt is the next to be read.
            waiting: The prompts that come after it.
        """
        prompt, others = row.request.prompt, list(waiting)
        cache = None if row.given is None else row.given.begin(prompt)
        cache = cache or self._longest(prompt)
        row.cache = cache or SequenceCache(self._model, self._form)
        row.given = None
        row.read = row.cached = row.cache.length
        row.leave_at = where_to_leave(prompt, row.read, others)
        self.prefixes.keep(others)

    @property
    def held(self) -> list[int]:
        """Tokens of each cache that is kept for prompts to begin with."""
        own = [] if self.beginning is None else [self.beginning.held.cache.length]
        return [*own, *self.prefixes.lengths]

    def clear(self) -> None:
        """Keep none."""
        self.prefixes.clear()
        self.beginning = None

    def _longest(self, prompt: tuple[int, ...]) -> SequenceCache | None:
        """A copy of the cache that spares the most reading of a prompt."""
        found = self.prefixes.longest(prompt)
        given = self.beginning
        if given is None or given.usable(prompt) <= (0 if found is None else found.length):
            return found
        return given.begin(prompt) or found

    def read(self, row: Row, most: int) -> int:
        """Read the next piece of a row's prompt, at most so many tokens; its logits are
        never computed. Gives the tokens read.
        """
        cache, prompt = own_cache(row), row.request.prompt
        count = min(row.unread, most, prefill_tokens(row.read, self._attention_heads))
        for place in (row.leave_at, row.look_at, cache.changes_at):
            if place is not None and place > row.read:
                count = min(count, place - row.read)
        piece = prompt[row.read : row.read + count]
        self._model(mx.array([piece]), cache=cache.layers)
        cache.advance(count)
        cache.evaluate()
        row.read += count
        if row.read == row.leave_at:
            self.prefixes.put(prompt[: row.read], cache)
        return count
