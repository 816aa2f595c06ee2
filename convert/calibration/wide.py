"""Layers with more columns than whose second moments fit beside a block: some columns at a time.

Columns are cut into parts; the moments of two columns count only within a part. What passes
from part to part is the output itself: each part is solved for what the source's layer gives
on the text beyond what ours gives with the other parts as they are by then. Each has its turn
three times, which makes up for nearly all that the moments between parts would tell. Owns that;
knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from checkpoint.packing import Quantization
from convert.calibration.hessian import Floats, Moments
from convert.calibration.layer import Calibrate, Packed, Parts, Rows, Solver
from convert.calibration.shelf import Shelf
from convert.calibration.ways import product

WIDEST = 5120
"""The most columns that are solved together."""

_ROUNDS = 3
_ROUND_TO = 128
_ROWS_TOGETHER = 4096


def column_parts(columns: int, widest: int | None = None) -> list[tuple[int, int]]:
    """Columns cut into as few parts as may be, about as wide as each other.

    Every part but the last is a multiple of all group sizes.

    Args:
        columns: How many.
        widest: The most of a part; `WIDEST` if None.
    """
    count = -(-columns // (widest or WIDEST))
    wide = -(-columns // (count * _ROUND_TO)) * _ROUND_TO
    return [(low, min(columns, low + wide)) for low in range(0, columns, wide)]


def solve_wide(
    rows: Rows, shape: tuple[int, int], form: Quantization, lows: Sequence[int], shelf: Shelf
) -> Calibrate | None:
    """Make a layer, part by part.

    Args:
        rows: Gives its weights.
        shape: [out, in].
        form: How to pack; `affine`.
        lows: The first rows of what is to learn from: under `("ours", low)` lies what the layer
            takes, [tokens, in], under `("source", low)` what it takes in the source, and under
            `("lack", low)`, if anything, what is to be added to its output, [tokens, out].
        shelf: Where all that lies.

    Returns:
        What gives rows that are made; None where the text makes the layer see nothing.
    """
    cuts = [
        (first, min(shape[0], first + _ROWS_TOGETHER))
        for first in range(0, shape[0], _ROWS_TOGETHER)
    ]
    left = _Left(shelf, lows)
    for first, last in cuts:
        left.begin(first, last, rows(first, last).astype(mx.float32))
    made: dict[tuple[int, int], Parts] = {}
    parts = column_parts(shape[1])
    for start, stop in parts * _ROUNDS:
        moments = Moments(stop - start, drifts=False)
        for x in left.inputs(start, stop):
            moments.add(x)
        if not moments.sound:
            return None
        solver = Solver(moments)
        for first, last in cuts:
            own = rows(first, last)[:, start:stop]
            now = made.get((first, start))
            values = own.astype(mx.float32) if now is None else Packed(now, form).values()
            besides = left.besides(first, last, start, stop)
            if not np.isfinite(besides).all():
                return None
            tried = solver.pack(form, np.array(values), 0, own.dtype, besides)
            change = Packed(tried, form).values() - values
            if now is None or _gain(np.array(change), moments.hessian, besides) > 0:
                left.move(first, start, stop, change)
                made[first, start] = tried
    left.end()
    joined = [
        [mx.concatenate(list(each), -1) for each in zip(*of_rows, strict=True)]
        for of_rows in ([made[first, start] for start, _ in parts] for first, _ in cuts)
    ]
    whole = tuple(mx.concatenate(list(each)) for each in zip(*joined, strict=True))
    mx.eval(whole)

    def calibrate(exact: Floats, first_row: int, dtype: mx.Dtype) -> Parts:
        return tuple(part[first_row : first_row + len(exact)] for part in whole)

    return calibrate


def _gain(change: Floats, hessian: Floats, besides: Floats) -> float:
    """How much less is left, in squares over tokens, once weights change."""
    return float(2 * np.vdot(change, besides) - np.vdot(change @ hessian, change))


class _Left:
    """What the source's layer gives beyond ours, on the shelf: rows of weights by tokens.

    Args:
        shelf: Where it lies.
        lows: Which rows of the text.
    """

    def __init__(self, shelf: Shelf, lows: Sequence[int]) -> None:
        self._shelf, self._lows = shelf, lows

    def begin(self, first: int, last: int, values: mx.array) -> None:
        """With the source's weights [rows, in]."""
        for low in self._lows:
            source, ours = (self._shelf.read((kind, low)) for kind in ("source", "ours"))
            left = product(source - ours, values)
            if self._shelf.has(("lack", low)):
                left += self._shelf.read(("lack", low))[:, first:last]
            self._shelf.put(("left", first, low), left)

    def inputs(self, start: int, stop: int) -> Iterator[Floats]:
        """Some columns of what ours takes, [tokens, columns]."""
        for low in self._lows:
            yield np.ascontiguousarray(self._shelf.read(("ours", low))[:, start:stop])

    def besides(self, first: int, last: int, start: int, stop: int) -> Floats:
        """Sum of r x^T over tokens, [rows, columns]."""
        total = np.zeros((last - first, stop - start), np.float32)
        for low, x in zip(self._lows, self.inputs(start, stop), strict=True):
            total += self._shelf.read(("left", first, low)).T @ x
        return total

    def move(self, first: int, start: int, stop: int, change: mx.array) -> None:
        """Change weights [rows, columns]."""
        for low, x in zip(self._lows, self.inputs(start, stop), strict=True):
            left = self._shelf.read(("left", first, low))
            self._shelf.write(("left", first, low), left - product(x, change))

    def end(self) -> None:
        self._shelf.drop(lambda key: key[0] == "left")
