"""Places that a cache can go back to.

Owns what of a cache can be cut, and the copies of what can't: a window that has slid, a
recurrent state. A mark holds copies of such entries only, so those of a hybrid model stay
small. Knows nothing of tokens or of who goes back.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from inference.cache import SequenceCache

_ALWAYS_CUT = frozenset({"KVCache", "QuantizedKVCache", "ConcatenateKVCache"})


@dataclass(frozen=True)
class Mark:
    """A place to go back to.

    Attributes:
        length: Tokens read there.
        entries: A copy of every entry that can't be cut in general; None for the others.
        nbytes: Of the copies.
    """

    length: int
    entries: tuple[Any, ...]
    nbytes: int

    @classmethod
    def of(cls, cache: SequenceCache) -> Mark | None:
        """A mark here; None where all entries can always be cut, and need none."""
        entries = tuple(_copied(entry) for entry in cache.layers)
        if all(entry is None for entry in entries):
            return None
        return cls.of_entries(cache.length, entries)

    @classmethod
    def of_entries(cls, length: int, entries: tuple[Any, ...]) -> Mark:
        """A mark of entries that have read so many tokens, as they are."""
        size = sum(_arrays_bytes(entry.state) for entry in entries if entry is not None)
        return cls(length, entries, size)

    def restore(self, cache: SequenceCache) -> None:
        """Bring a cache that has read on from here back; the mark stays good."""
        cache.layers = [
            _set_back(entry, kept, cache.length - self.length)
            for entry, kept in zip(cache.layers, self.entries, strict=True)
        ]
        cache.length = self.length


def go_back(cache: SequenceCache, length: int, marks: Sequence[Mark]) -> int:
    """Bring a cache back to at most `length` tokens; how many it holds then.

    Args:
        cache: It is changed; where it can't go back it is of no more use.
        length: At most what it holds.
        marks: Places on its way up to there.
    """
    if length == cache.length:
        return length
    if can_cut(cache):
        return length if cache.trim(length) else 0
    if not marks:
        return 0
    marks[-1].restore(cache)
    return cache.length


def can_cut(cache: SequenceCache) -> bool:
    """Whether a cache can forget its last tokens now, and be as if it never had read them."""
    return all(_can_cut(entry) for entry in cache.layers)


def _can_cut(entry: Any) -> bool:
    kind = type(entry).__name__
    if kind == "CacheList":
        return all(_can_cut(part) for part in entry.caches)
    return kind in _ALWAYS_CUT or (kind == "RotatingKVCache" and bool(entry.is_trimmable()))


def _copied(entry: Any) -> Any:
    """A copy of an entry; None for one that can always be cut."""
    if type(entry).__name__ == "CacheList":
        always = all(_copied(part) is None for part in entry.caches)
        return None if always else copy.deepcopy(entry)
    return None if type(entry).__name__ in _ALWAYS_CUT else copy.deepcopy(entry)


def _set_back(entry: Any, kept: Any, count: int) -> Any:
    if kept is not None:
        return copy.deepcopy(kept)
    entry.trim(count)
    return entry


def _arrays_bytes(state: Any) -> int:
    if isinstance(state, mx.array):
        return int(state.nbytes)
    if isinstance(state, (list, tuple)):
        return sum(_arrays_bytes(part) for part in state)
    return 0
