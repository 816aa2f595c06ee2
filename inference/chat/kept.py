"""The cache of a conversation, kept from turn to turn and brought back to what is shared.

Owns which of the tokens that were read still count for the next prompt. Attention's own
keys and values are cut where the prompts part. What can't be cut, such as a window that
has slid or a recurrent state, is set back to a mark: a copy made at an earlier place.
Marks hold copies of such entries only, so those of a hybrid model stay small. Knows
nothing of messages.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from inference.cache import Held, SequenceCache, common_length

_MOST_MARKS = 16
_MOST_BYTES = 512 * 2**20  # of marks, but for the newest two
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
        size = sum(_arrays_bytes(entry.state) for entry in entries if entry is not None)
        return cls(cache.length, entries, size)


class KeptCache:
    """The cache after the last turn, and the marks on its way."""

    def __init__(self) -> None:
        self._held: Held | None = None
        self._marks: list[Mark] = []

    @property
    def tokens(self) -> int:
        """Tokens that the cache has read."""
        return 0 if self._held is None else self._held.cache.length

    def put(self, held: Held | None) -> None:
        """Keep the cache that a turn left; None lets go of everything."""
        self._held = held
        if held is None:
            self._marks.clear()
        else:
            self.mark(held.cache)

    def mark(self, cache: SequenceCache) -> None:
        """Remember this place of the cache under way."""
        made = Mark.of(cache)
        if made is None or not made.length:
            return
        self._marks = [mark for mark in self._marks if mark.length < made.length]
        self._marks.append(made)
        while len(self._marks) > 2 and (
            len(self._marks) > _MOST_MARKS or sum(m.nbytes for m in self._marks) > _MOST_BYTES
        ):
            del self._marks[0]

    def take(self, prompt: tuple[int, ...]) -> Held | None:
        """The cache with what it can hold of the beginning of `prompt`; None if that is nothing.

        It is the caller's from here. The prompt's last token is never in it, since what
        follows that is asked for.
        """
        held, self._held = self._held, None
        if held is None:
            self._marks.clear()
            return None
        shared = min(common_length(held.tokens, prompt), len(prompt) - 1)
        self._marks = [mark for mark in self._marks if mark.length <= shared]
        length = _go_back(held.cache, shared, self._marks)
        if not length:
            self._marks.clear()
            return None
        return Held(prompt[:length], held.cache)


def _go_back(cache: SequenceCache, length: int, marks: list[Mark]) -> int:
    """Bring a cache back to at most `length` tokens; how many it holds then.

    Args:
        cache: It is changed; where it can't go back it is of no more use.
        length: At most what it holds.
        marks: Places on its way up to there.
    """
    if length == cache.length:
        return length
    if all(_can_cut(entry) for entry in cache.layers):
        return length if cache.trim(length) else 0
    if not marks:
        return 0
    mark = marks[-1]
    cache.layers = [
        _set_back(entry, kept, cache.length - mark.length)
        for entry, kept in zip(cache.layers, mark.entries, strict=True)
    ]
    cache.length = mark.length
    return mark.length


def _can_cut(entry: Any) -> bool:
    """Whether an entry can forget its last tokens now, and be as if it never had read them."""
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
