"""The node that gives a tensor another shape, and what it must read for a box of it.

Owns the arithmetic of boxes under two shapes; the other nodes are in `recipes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, OneInput, Shape, box_shape, whole

# What a reshape may read at once: so many times what it needs, or this much in all.
_SPREAD = 8
_SPREAD_BYTES = 1 << 20


@dataclass(frozen=True, eq=False, slots=True)
class Reshape(OneInput):
    """The same elements in C order under another shape."""

    @property
    def reads(self) -> int:
        pairs = _aligned(self.part.shape, self.shape)
        lengths = ((self.part.shape[inner], self.shape[outer]) for inner, outer in pairs)
        spreads = any(inner != outer and max(inner + outer) > 1 for inner, outer in lengths)
        return self.part.reads * (_SPREAD if spreads else 1)

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        wanted = box_shape(box)
        if 0 in wanted:
            return mx.zeros(wanted, self.dtype)
        covering: list[tuple[int, int]] = []
        steps: list[tuple[int, list[int], int]] = []
        for inner, outer in _aligned(self.part.shape, self.shape):
            strides = _strides(self.shape[outer])
            cuts = list(zip(box[outer], strides, strict=True))
            first = sum(low * stride for (low, _), stride in cuts)
            last = sum((high - 1) * stride for (_, high), stride in cuts)
            cover, covered_from = _covering_box(self.part.shape[inner], first, last + 1)
            covering += cover
            steps.append((math.prod(box_shape(cover)), strides, first - covered_from))
        spread, count = math.prod(length for length, *_ in steps), math.prod(wanted)
        if spread * self.dtype.size > max(_SPREAD_BYTES, _SPREAD * count * self.dtype.size):
            return self._read_apart(box, reader)
        flat = self.part.read(tuple(covering), reader).reshape(-1)
        if spread == count:
            return flat.reshape(wanted)
        within, offset, later = list[int](), 0, spread
        for length, strides, start in steps:
            later //= length
            within += [stride * later for stride in strides]
            offset += start * later
        return mx.as_strided(flat, wanted, within, offset)

    def _read_apart(self, box: Box, reader: TensorReader) -> mx.array:
        """A box whose elements lie far apart in the input, one index of an axis after the other."""
        axis = next(axis for axis, (low, high) in enumerate(box) if high - low > 1)
        pieces = [
            self.read((*box[:axis], (at, at + 1), *box[axis + 1 :]), reader)
            for at in range(*box[axis])
        ]
        return mx.concatenate(pieces, axis=axis)


def _strides(shape: Shape) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _aligned(inner: Shape, outer: Shape) -> Iterator[tuple[slice, slice]]:
    """The axes of two shapes in the smallest groups that hold as many elements in both."""
    i = j = 0
    while i < len(inner) or j < len(outer):
        at, to, one, other = i, j, 1, 1
        while (at, to) == (i, j) or one != other:
            if to == len(outer) or (at < len(inner) and one <= other):
                one, at = one * inner[at], at + 1
            else:
                other, to = other * outer[to], to + 1
        yield slice(i, at), slice(j, to)
        i, j = at, to


def _covering_box(shape: Shape, first: int, stop: int) -> tuple[Box, int]:
    """The smallest C-contiguous box that covers flat elements [first, stop), and its start."""
    box: list[tuple[int, int]] = []
    start = 0
    for axis in range(len(shape)):
        inner = math.prod(shape[axis + 1 :])
        low, high = (first - start) // inner, -(-(stop - start) // inner)
        box.append((low, high))
        start += low * inner
        if high - low > 1:
            return (*box, *whole(shape[axis + 1 :])), start
    return tuple(box), start
