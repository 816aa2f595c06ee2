"""Where the next token of every sequence of a batch goes.

Owns the index arithmetic of one step: the offset of each slot, the entries that its
token may see, the places where it is written. All layers share one, so it is computed
once a step. Knows nothing of what is stored there.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx


class Positions:
    """One step of a batch; slot r holds `lengths[r]` tokens and takes `count` more.

    The token at position p stands at index p, or at p modulo the ring's size where a
    layer keeps only the last ones. So no sequence is ever moved for another's sake, and
    its own positions are what they are alone.

    Args:
        lengths: Tokens held in each slot.
        mask_axes: Axes of a mask between slots and entries: 2, or 3 for an architecture that
            keeps the heads that share keys on an axis of their own.
        count: Tokens that every slot takes; more than one only where nothing is a ring.

    Attributes:
        slots: How many sequences.
        count: As given.
        before: [slots], the offsets at which this step's tokens stand.
        after: [slots], those after them.
    """

    def __init__(self, lengths: Sequence[int], mask_axes: int = 2, count: int = 1) -> None:
        self.slots = len(lengths)
        self.count = count
        self.before = mx.array(list(lengths), mx.int32)
        self.after = self.before + count
        self._mask_axes = mask_axes
        self._needed = max(lengths) + count
        self._slots = mx.arange(self.slots)[:, None]
        self._written: dict[tuple[int | None, int], tuple[mx.array, mx.array, mx.array]] = {}
        self._masks: dict[tuple[int | None, int | None], mx.array] = {}

    def size(self, ring: int | None) -> int:
        """Entries of the longest sequence, this step's tokens included."""
        return self._needed if ring is None else min(self._needed, ring)

    def written(self, ring: int | None, heads: int) -> tuple[mx.array, mx.array, mx.array]:
        """Indices of slot, head and place, for this step's tokens.

        Together [slots, heads], or [slots, heads, count] for several.
        """
        if (ring, heads) not in self._written and self.count > 1:
            places = self.before[:, None] + mx.arange(self.count)
            found = (self._slots[..., None], mx.arange(heads)[None, :, None], places[:, None])
            self._written[ring, heads] = found
        elif (ring, heads) not in self._written:
            place = self.before if ring is None else self.before % ring
            self._written[ring, heads] = (self._slots, mx.arange(heads)[None], place[:, None])
        return self._written[ring, heads]

    def mask(self, ring: int | None, window: int | None) -> mx.array:
        """Which entries each token may see, [slots, 1, count, size(ring)] (two axes).

        Args:
            ring: Entries that the layer keeps; None for all.
            window: Positions that it may see, its own included; None for all.
        """
        if (ring, window) not in self._masks:
            offset = self.before[:, None, None] + mx.arange(self.count)[:, None]
            held = mx.arange(self.size(ring))
            if ring is not None:
                held = offset - (offset - held) % ring  # the last position at that place
            visible = (held >= 0) & (held <= offset)
            if window is not None:
                visible = visible & (held > offset - window)
            axes = range(1, self._mask_axes)
            self._masks[ring, window] = mx.expand_dims(visible, list(axes))
        return self._masks[ring, window]
