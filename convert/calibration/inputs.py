"""What the layers of a stage take of the whole text, and layers solved on that.

Owns which of it is learnt from and which is to judge by, and what layers with the same inputs
share; knows nothing of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from checkpoint.packing import Quantization
from convert.calibration.hessian import Floats, Moments
from convert.calibration.judge import Unseen
from convert.calibration.layer import (
    Calibrate,
    Outcome,
    Packed,
    Rows,
    Solver,
    candidates,
    chosen,
)
from convert.calibration.shelf import Shelf
from convert.calibration.ways import SOURCE
from convert.calibration.wide import column_parts, solve_wide

_KINDS = ("source", "ours", "lack")


class Inputs:
    """Inputs of one stage, on the shelf.

    Args:
        shelf: Where they lie.
        learnt: The first row of the text that is to judge by.
    """

    def __init__(self, shelf: Shelf, learnt: int) -> None:
        self._shelf, self._learnt = shelf, learnt
        self._lows: list[int] = []
        self._lacks = False
        self._columns = 0
        self._solver: Solver | None = None
        self._judge: Unseen | None = None

    def add(self, low: int, source: Floats, ours: Floats, lack: Floats | None) -> None:
        """Add some rows of the text.

        Args:
            low: The first of the rows; none of them both learnt from and judged by.
            source: What the layers take in the source, [tokens, in].
            ours: What they take in ours.
            lack: What the source's stream holds beyond ours, [tokens, out], where the one layer
                that there is adds to it.
        """
        self._lows.append(low)
        self._columns, self._lacks = ours.shape[1], lack is not None
        self._shelf.put(("source", low), source)
        self._shelf.put(("ours", low), ours)
        if lack is not None:
            self._shelf.put(("lack", low), lack)

    def each(self, way: int) -> Iterator[tuple[int, Floats]]:
        """The first row, and what the layers take, of all rows."""
        for low in self._lows:
            yield low, self._shelf.read(("source" if way == SOURCE else "ours", low))

    def solve(
        self, rows: Rows, shape: tuple[int, int], form: Quantization
    ) -> tuple[Packed, Outcome]:
        """Quantize a layer.

        Args:
            rows: Gives its weights.
            shape: [out, in].
            form: How to pack.
        """
        calibrate: Calibrate | None = None
        if form.mode == "affine":
            if len(column_parts(shape[1])) > 1:
                learnt = [low for low in self._lows if low < self._learnt]
                calibrate = solve_wide(rows, shape, form, learnt, self._shelf)
            else:
                self._solver = self._solver or self._made_solver(shape[0])
                if self._solver is not None:
                    calibrate = partial(self._solver.pack, form)
        self._judge = self._judge or self._made_judge()
        return chosen(candidates(rows, shape, form, self._judge, calibrate), form)

    def close(self) -> None:
        """Forget them."""
        self._shelf.drop(lambda key: key[0] in _KINDS)

    def _made_solver(self, rows: int) -> Solver | None:
        moments = Moments(self._columns, rows if self._lacks else 0)
        for low in self._lows:
            if low < self._learnt:
                source, ours = (self._shelf.read((kind, low)) for kind in _KINDS[:2])
                lack = self._shelf.read(("lack", low)) if self._lacks else None
                moments.add(ours, source, lack)
        return Solver(moments) if moments.sound else None

    def _made_judge(self) -> Unseen:
        unseen = [low for low in self._lows if low >= self._learnt]
        source, ours, lack = (
            [self._shelf.read((kind, low)) for low in unseen if self._shelf.has((kind, low))]
            for kind in _KINDS
        )
        return Unseen(ours, source, lack)
