"""The caches of several sequences as one, layer by layer.

Owns which sequence has which slot: joining, leaving, closing the gaps. A model is called
with `layers` and one token for every slot; a free slot computes what nobody looks at.
Knows nothing of requests or sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from inference.cache import SequenceCache
from inference.positions import Positions
from inference.slots import STEP, Layer, batched, unbatched

_FREE = -1
_GAPS = 4  # closed once one slot in so many is free


def why_not_batched(cache: SequenceCache) -> str | None:
    """What of a model's cache has no batched form; None if all has."""
    return next((found for layer in cache.layers if (found := unbatched(layer))), None)


class BatchCache:
    """Slots for sequences that decode together.

    Every layer has as many rows as there are slots and as much room as the longest
    sequence needs.

    Args:
        mask_axes: As for `Positions`.
    """

    def __init__(self, mask_axes: int = 2) -> None:
        self._mask_axes = mask_axes
        self._layers: list[Layer] = []
        self._lengths: list[int] = []

    @property
    def layers(self) -> list[Any]:
        """What to call the model with, after `begin`."""
        return [layer.entry for layer in self._layers]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max((0, *self._lengths))

    @property
    def slots(self) -> int:
        """Rows of the model's input."""
        return len(self._lengths)

    def length(self, slot: int) -> int:
        """Tokens of the sequence in a slot."""
        return self._lengths[slot]

    def join(self, caches: Sequence[SequenceCache]) -> list[int]:
        """Copy sequences in, each with at least one token read; give their slots.

        Raises:
            ValueError: They have no common form.
        """
        free = [slot for slot, length in enumerate(self._lengths) if length == _FREE]
        more = max(0, len(caches) - len(free))
        chosen = [*free, *range(self.slots, self.slots + more)][: len(caches)]
        lengths = [*self._lengths, *[_FREE] * more]
        for slot, cache in zip(chosen, caches, strict=True):
            lengths[slot] = cache.length
        if not self._layers:
            self._layers = [batched(layer) for layer in caches[0].layers]
        for index, layer in enumerate(self._layers):
            layer.reserve(len(lengths), max(lengths), caches[0].layers[index])
            for slot, cache in zip(chosen, caches, strict=True):
                layer.write(slot, cache.layers[index])
            # One layer at a time, so that little is ever held twice.
            mx.eval(layer.arrays())
        self._lengths = lengths
        return chosen

    def leave(self, slot: int) -> None:
        """Free a slot."""
        self._lengths[slot] = _FREE

    def read(self, slot: int) -> SequenceCache:
        """The sequence in a slot, as a cache of its own."""
        tokens = self._lengths[slot]
        return SequenceCache.of([layer.read(slot, tokens) for layer in self._layers], tokens)

    def begin(self, count: int = 1) -> list[Any]:
        """Begin a step for every slot; give the layers to call the model with.

        Args:
            count: Tokens of each. Of more than one, `advance` says how many are kept.
        """
        at = Positions([max(0, length) for length in self._lengths], self._mask_axes, count)
        for layer in self._layers:
            layer.begin(at)
        if count == 1:
            self._lengths = [length if length == _FREE else length + 1 for length in self._lengths]
        return self.layers

    def advance(self, read: Mapping[int, int]) -> None:
        """After a step of several tokens: how many of each slot's are kept.

        The others stand where the next ones are written, and are seen by none before that.
        """
        for slot, count in read.items():
            self._lengths[slot] += count

    def close_gaps(self, joining: int = 0, tokens: int = 0) -> dict[int, int]:
        """Give up free slots where they cost much; give the others' new numbers by their old ones.

        Args:
            joining: Sequences about to join, which take free slots.
            tokens: Of the longest sequence to come; where it needs more room than the slots
                have, none is left free to need it too.
        """
        kept = [slot for slot, length in enumerate(self._lengths) if length != _FREE]
        spare = self.slots - len(kept) - joining
        grows = -(-tokens // STEP) > -(-max(self._lengths, default=0) // STEP)
        if spare <= 0 or (spare < self.slots / _GAPS and not grows):
            return {slot: slot for slot in kept}
        self._lengths = [self._lengths[slot] for slot in kept]
        if not kept:
            self._layers = []
        for layer in self._layers:
            layer.keep(kept, max(self._lengths))
            mx.eval(layer.arrays())
        return {old: new for new, old in enumerate(kept)}
