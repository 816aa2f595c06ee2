"""One layer's cache for a whole batch: a slot for each sequence.

Owns the batched forms of mlx-lm's cache entries, and how a sequence's own entry is
copied into a slot and out again:

    KVCache            -> keys and values, one row a slot, position p at index p
    RotatingKVCache    -> the same, position p at index p modulo the window
    ArraysCache        -> its arrays, one row a slot
    CacheList          -> a list of these

Unlike mlx-lm's own batched entries nothing is padded on the left or moved when others
come and go. Knows nothing of requests or steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx

from checkpoint.architecture.kv_cost import STEP as STEP
from inference.positions import Positions


class Layer(Protocol):
    """A layer's cache for a batch. `entry` is what the model is called with."""

    entry: Any

    def begin(self, at: Positions) -> None:
        """Make ready for one step."""

    def reserve(self, slots: int, tokens: int, like: Any) -> None:
        """Make room for so many sequences of so many tokens, of the form of the entry `like`."""

    def write(self, slot: int, single: Any) -> None:
        """Copy a sequence's own entry into a slot."""

    def read(self, slot: int, tokens: int) -> Any:
        """A sequence's own entry again, made from a slot that holds so many tokens."""

    def keep(self, slots: Sequence[int], tokens: int) -> None:
        """Keep only these slots, in this order, with room for so many tokens."""

    def arrays(self) -> list[mx.array]:
        """All that it holds."""


class KeysValues:
    """Keys and values of attention, all of them or those of a sliding window.

    Args:
        ring: Entries that are kept; None for all.
        single: Makes a sequence's own entry from keys, values [1, heads, n, size] in the
            order of their positions, and the number of tokens read.
    """

    def __init__(self, ring: int | None, single: Callable[[mx.array, mx.array, int], Any]) -> None:
        self.entry = self
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset: mx.array | int = 0
        self._ring = ring
        self._single = single
        self._at: Positions | None = None

    # What a model asks of its cache.

    def make_mask(
        self, count: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """The mask of a step, [slots, 1, tokens, entries]."""
        at = self._step(count)
        return at.mask(self._ring, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Take the tokens of every slot, [slots, heads, n, size]; give all that are held."""
        at = self._step(keys.shape[2])
        if self.offset is at.after or self.keys is None or self.values is None:
            raise ValueError("a batch takes its tokens once a step")
        self._grow(at.slots, at.size(self._ring))
        written = at.written(self._ring, keys.shape[1])
        self.keys[written] = keys if at.count > 1 else keys[:, :, 0]
        self.values[written] = values if at.count > 1 else values[:, :, 0]
        self.offset = at.after
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """All that are held, [slots, heads, entries, size]."""
        at = self._step(None)
        if self.keys is None or self.values is None:
            raise ValueError("a batch begins with what its sequences have read")
        size = at.size(self._ring)
        return self.keys[:, :, :size], self.values[:, :, :size]

    def _step(self, count: int | None) -> Positions:
        at = self._at
        if at is None or count not in (None, at.count):
            raise ValueError("a batch takes as many tokens as its step has")
        if self._ring is not None and at.count > 1:
            raise ValueError("a sliding window takes one token a step")
        return at

    # What the batch asks of it.

    def begin(self, at: Positions) -> None:
        self._at, self.offset = at, at.before

    def reserve(self, slots: int, tokens: int, like: Any) -> None:
        keys, values = like.keys, like.values
        if self.keys is None or self.values is None:
            self.keys = mx.zeros((0, keys.shape[1], 0, keys.shape[3]), keys.dtype)
            self.values = mx.zeros((0, values.shape[1], 0, values.shape[3]), values.dtype)
        # What a longer sequence has left is not kept: room is what the longest needs now.
        if (size := self._capacity(tokens)) < self.keys.shape[2]:
            self.keys, self.values = self.keys[:, :, :size], self.values[:, :, :size]
        self._grow(slots, tokens)

    def write(self, slot: int, single: Any) -> None:
        for mine, theirs in ((self.keys, single.keys), (self.values, single.values)):
            entries = self._placed(theirs, single)
            if mine is None or mine.dtype != theirs.dtype or mine.shape[1] != theirs.shape[1]:
                raise ValueError("the sequences of a batch have caches of different forms")
            mine[slot : slot + 1, :, : entries.shape[2]] = entries
            # What the slot held before is masked, but a NaN among it would come through.
            mine[slot : slot + 1, :, entries.shape[2] :] = 0

    def _placed(self, held: mx.array, single: Any) -> mx.array:
        """The entries of a sequence's own cache, each at its place here."""
        if self._ring is None:
            return held[:, :, : single.offset]
        ordered = _in_order(held, single)[:, :, -min(single.offset, self._ring) :]
        first = single.offset - ordered.shape[2]
        return mx.roll(ordered, first % self._ring, 2) if first else ordered

    def read(self, slot: int, tokens: int) -> Any:
        if self.keys is None or self.values is None:
            raise ValueError("an empty batch holds no sequence")
        found = []
        for held in (self.keys, self.values):
            if self._ring is None or tokens <= self._ring:
                found.append(mx.contiguous(held[slot : slot + 1, :, :tokens]))
            else:
                ring = held[slot : slot + 1, :, : self._ring]
                found.append(mx.roll(ring, -(tokens % self._ring), 2))
        return self._single(found[0], found[1], tokens)

    def keep(self, slots: Sequence[int], tokens: int) -> None:
        if self.keys is None or self.values is None:
            return
        size = self._capacity(tokens)
        kept = mx.array(list(slots))
        self.keys = self.keys[:, :, :size][kept]
        self.values = self.values[:, :, :size][kept]

    def arrays(self) -> list[mx.array]:
        return [held for held in (self.keys, self.values) if held is not None]

    def _capacity(self, tokens: int) -> int:
        rounded = -(-tokens // STEP) * STEP
        return rounded if self._ring is None else min(rounded, self._ring)

    def _grow(self, slots: int, tokens: int) -> None:
        if self.keys is None or self.values is None:
            return
        size = max(self._capacity(tokens), self.keys.shape[2])
        if slots > self.keys.shape[0] or size > self.keys.shape[2]:
            self.keys = _enlarged(self.keys, slots, size)
            self.values = _enlarged(self.values, slots, size)


class Arrays:
    """The arrays of a recurrent layer, in mlx-lm's own entry, with a row for each slot."""

    def __init__(self, single: Any) -> None:
        self.entry = type(single)(len(single.cache))

    def begin(self, at: Positions) -> None:
        """Nothing depends on positions."""

    def reserve(self, slots: int, tokens: int, like: Any) -> None:
        for index, array in enumerate(like.cache):
            mine = self.entry.cache[index]
            if array is None or (mine is not None and mine.shape[0] >= slots):
                continue
            more = slots - (0 if mine is None else mine.shape[0])
            empty = mx.zeros((more, *array.shape[1:]), array.dtype)
            self.entry.cache[index] = empty if mine is None else mx.concatenate([mine, empty])

    def write(self, slot: int, single: Any) -> None:
        for mine, theirs in zip(self.entry.cache, single.cache, strict=True):
            if mine is None and theirs is None:
                continue
            if (
                mine is None
                or theirs is None
                or mine.shape[1:] != theirs.shape[1:]
                or mine.dtype != theirs.dtype
            ):
                raise ValueError("the sequences of a batch have states of different forms")
            mine[slot : slot + 1] = theirs

    def read(self, slot: int, tokens: int) -> Any:
        single = type(self.entry)(len(self.entry.cache))
        for index, array in enumerate(self.entry.cache):
            single.cache[index] = None if array is None else mx.contiguous(array[slot : slot + 1])
        return single

    def keep(self, slots: Sequence[int], tokens: int) -> None:
        kept = mx.array(list(slots))
        self.entry.cache = [None if a is None else a[kept] for a in self.entry.cache]

    def arrays(self) -> list[mx.array]:
        return [array for array in self.entry.cache if array is not None]


class Several:
    """A layer with several entries."""

    def __init__(self, single: Any) -> None:
        self._kind = type(single)
        self._parts = [batched(part) for part in single.caches]
        self.entry = self._kind(*(part.entry for part in self._parts))

    def begin(self, at: Positions) -> None:
        for part in self._parts:
            part.begin(at)

    def reserve(self, slots: int, tokens: int, like: Any) -> None:
        for part, single in zip(self._parts, like.caches, strict=True):
            part.reserve(slots, tokens, single)

    def write(self, slot: int, single: Any) -> None:
        for part, theirs in zip(self._parts, single.caches, strict=True):
            part.write(slot, theirs)

    def read(self, slot: int, tokens: int) -> Any:
        return self._kind(*(part.read(slot, tokens) for part in self._parts))

    def keep(self, slots: Sequence[int], tokens: int) -> None:
        for part in self._parts:
            part.keep(slots, tokens)

    def arrays(self) -> list[mx.array]:
        return [array for part in self._parts for array in part.arrays()]


def unbatched(single: Any) -> str | None:
    """What of a sequence's own entry has no batched form here; None if all has."""
    kind = type(single).__name__
    if kind == "CacheList":
        # A second set of keys chooses what attention sees, from some length on that no
        # probe reaches: such layers are not batched.
        if sum(type(part).__name__.endswith("KVCache") for part in single.caches) > 1:
            return "a layer with two sets of keys"
        return next((found for part in single.caches if (found := unbatched(part))), None)
    if kind == "RotatingKVCache" and single.keep:
        return "a sliding window that keeps its first tokens"
    return None if kind in _BATCHED else kind


def batched(single: Any) -> Layer:
    """An empty batch for entries like this one."""
    return _BATCHED[type(single).__name__](single)


def _full(single: Any) -> Layer:
    kind = type(single)

    def alone(keys: mx.array, values: mx.array, tokens: int) -> Any:
        return kind.from_state((keys, values, tokens))

    return KeysValues(None, alone)


def _sliding(single: Any) -> Layer:
    kind, ring = type(single), int(single.max_size)

    def alone(keys: mx.array, values: mx.array, tokens: int) -> Any:
        return kind.from_state((keys, values, tokens, 0, ring, keys.shape[2]))

    return KeysValues(ring, alone)


_BATCHED: dict[str, Callable[[Any], Layer]] = {
    "KVCache": _full,
    "RotatingKVCache": _sliding,
    "ArraysCache": Arrays,
    "CacheList": Several,
}


def _in_order(held: mx.array, single: Any) -> mx.array:
    """The entries of a RotatingKVCache in the order of their positions."""
    index = single._idx
    if index < held.shape[2] and index < single.offset:
        return mx.concatenate([held[:, :, index:], held[:, :, :index]], axis=2)
    return held[:, :, :index]


def _enlarged(held: mx.array, slots: int, size: int) -> mx.array:
    room = [(0, slots - held.shape[0]), (0, 0), (0, size - held.shape[2]), (0, 0)]
    return mx.pad(held, room)
