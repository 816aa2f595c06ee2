"""A weight with what an adapter adds to it, as a recipe that streams like any other.

Owns the arithmetic: in float32, rounded once. Knows nothing of adapters' files or of which
module is meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import (
    Box,
    Copy,
    OneInput,
    Recipe,
    Transpose,
    box_shape,
    row_blocks,
    whole,
)
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.tensors import TensorRef

_PIECE = 1 << 20
"""Weights that are adapted at once."""


@dataclass(frozen=True, eq=False, slots=True)
class LowRank:
    """What is added to a weight: `scale * rows @ columns`.

    With a magnitude (DoRA: Liu et al., 2024, arXiv 2402.09353) every row of the sum is then
    brought to that length.

    Attributes:
        module: As the adapter names it.
        rows: [..., rows, rank].
        columns: [..., rank, columns].
        scale: What their product is multiplied by.
        magnitude: [rows], or None.
    """

    module: str
    rows: Recipe
    columns: Recipe
    scale: float
    magnitude: Recipe | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it is for."""
        return (*self.rows.shape[:-1], self.columns.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        parts = (self.rows, self.columns, self.magnitude)
        return sum(ref.nbytes for part in parts if part is not None for ref in part.sources())

    def swapped(self) -> LowRank | None:
        """The same for the weight with its last two axes swapped; None where rows matter."""
        if self.magnitude is not None:
            return None
        rows, columns = transposed(self.columns), transposed(self.rows)
        return LowRank(self.module, rows, columns, self.scale)


def copied(ref: TensorRef) -> Recipe:
    """An adapter's tensor as it is."""
    return Copy(ref.shape, mlx_dtype(ref), ref)


def transposed(part: Recipe) -> Recipe:
    """The last two axes swapped."""
    last = len(part.shape) - 1
    axes = (*range(last - 1), last, last - 1)
    return Transpose(tuple(part.shape[axis] for axis in axes), part.dtype, part, axes)


@dataclass(frozen=True, eq=False, slots=True)
class Adapted(OneInput):
    """The sum of a weight and its update, of the weight's dtype.

    `sources` are the weight's own: the adapter's file is there as a whole all the time.
    """

    update: LowRank

    @property
    def reads(self) -> int:
        return max(self.part.reads, 4)  # float32 is of pieces only

    @property
    def resident_bytes(self) -> int:
        columns = self.update.columns.shape
        return self.part.resident_bytes + 3 * 4 * columns[-1] * columns[-2]

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        low, high = box[-1]
        # The length of a row takes the whole of it.
        span = (low, high) if self.update.magnitude is None else (0, self.shape[-1])
        lengths = box_shape(box)[:-1]
        columns = self._columns(box, span, reader)
        pieces = []
        for cut in row_blocks((*lengths, span[1] - span[0]), span[1] - span[0], _PIECE):
            leading = tuple(
                (start + first, start + last)
                for (start, _), (first, last) in zip(box[:-1], cut[:-1], strict=True)
            )
            own = columns[tuple(slice(*each) for each in cut[:-2])]
            piece = self._sum((*leading, span), own, reader)[..., low - span[0] : high - span[0]]
            # Under way at once, so that no two pieces hold their float32 together.
            mx.async_eval(piece)
            pieces.append(piece.reshape(-1, high - low))
        joined = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)
        return joined.reshape(box_shape(box))

    def _columns(self, box: Box, span: tuple[int, int], reader: TensorReader) -> mx.array:
        rank = self.update.columns.shape[-2]
        read = self.update.columns.read((*box[:-2], (0, rank), span), reader)
        return read.astype(mx.float32)

    def _sum(self, box: Box, columns: mx.array, reader: TensorReader) -> mx.array:
        update = self.update
        weight = self.part.read(box, reader).astype(mx.float32)
        rank = update.rows.shape[-1]
        rows = update.rows.read((*box[:-1], (0, rank)), reader).astype(mx.float32)
        made = weight + update.scale * (rows @ columns)
        if update.magnitude is not None:
            magnitude = update.magnitude.read(box[:-1], reader).astype(mx.float32)
            made = made * (magnitude / mx.linalg.norm(made, axis=-1))[..., None]
        return made.astype(self.dtype)


def factors(update: LowRank, reader: TensorReader) -> tuple[mx.array, mx.array, mx.array | None]:
    """The rows, scaled, the columns and the magnitude of an update, float32.

    Raises:
        DiskError: The adapter's file can't be read.
    """
    rows = update.rows.read(whole(update.rows.shape), reader).astype(mx.float32)
    columns = update.columns.read(whole(update.columns.shape), reader).astype(mx.float32)
    if update.magnitude is None:
        return update.scale * rows, columns, None
    magnitude = update.magnitude.read(whole(update.magnitude.shape), reader)
    return update.scale * rows, columns, magnitude.astype(mx.float32)
