"""Quantizes stacks of experts, one expert at a time, each on the tokens that come to it.

An expert with enough tokens has its full Hessian; one with few only how large its inputs are,
column by column; one with next to none is searched. Source and ours may send a token to
different experts, so that each expert is to do what the source's does with ours' tokens. Owns
that; knows nothing of routers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import mlx.core as mx
import numpy as np

from checkpoint.packing import Quantization
from convert.calibration.hessian import Floats, Moments
from convert.calibration.judge import Unseen
from convert.calibration.layer import (
    Outcome,
    Packed,
    Parts,
    Solver,
    candidates,
    pack_by_column,
)
from convert.calibration.probe import Stage
from convert.calibration.shelf import Shelf
from convert.calibration.ways import OURS, SOURCE, ReadWeight, Ways, product
from convert.calibration.wide import column_parts

Pack = Callable[[Quantization, Floats, int, mx.Dtype], Parts]
"""Packs rows of weights [rows, in]."""

FULL, DIAGONAL, SEARCH = "full", "diagonal", "search"
FEWEST_BY_COLUMN = 0.5
"""Tokens for every column that a full Hessian takes; of a part of the columns of a wide expert."""

_FEWEST_TOKENS = 32
_FEWEST_UNSEEN = 4
# How many tokens with all columns alike are added to those of an expert with few.
_COUNTS_AS_TOKENS = 32


@dataclass(frozen=True)
class ExpertsOutcome(Outcome):
    """How a stack came out.

    Attributes:
        experts: How many were made in which way: `full`, `diagonal`, `search`.
    """

    experts: dict[str, int]


class Experts:
    """The tokens of a stage of experts.

    Args:
        stage: The stage.
        cuts: Rows that are run together.
        learnt: The first row that is to judge by.
        ways: Runs the block.
        shelf: Where to put things aside.
    """

    def __init__(
        self,
        stage: Stage,
        cuts: Sequence[tuple[int, int]],
        learnt: int,
        ways: Ways,
        shelf: Shelf,
    ) -> None:
        self._lows, self._learnt = [low for low, _ in cuts], learnt
        self._ways, self._shelf = ways, shelf
        self._starts: dict[tuple[int, int], list[int]] = {}
        for low, high in cuts:
            for way, taken in enumerate(ways.take(stage, low, high)):
                shelf.put(("taken", way, low), taken.x)
                self._starts[way, low] = [0, *accumulate(taken.counts)]

    def reserve(self, name: str, outputs: int) -> None:
        """Make room for what a layer makes."""
        for (way, low), starts in self._starts.items():
            self._ways.reserve(way, name, low, (starts[-1], outputs))

    def tokens(self, expert: int, *, learnt: bool) -> list[Floats]:
        """What comes to an expert of ours, of what is to learn from or of what to judge by."""
        lows = [low for low in self._lows if (low < self._learnt) == learnt]
        return [self._taken(OURS, low, expert) for low in lows]

    def made(self, way: int, name: str, expert: int, weights: mx.array) -> None:
        """Put aside what an expert makes, by its weights [out, in]."""
        for low in self._lows:
            taken = self._taken(way, low, expert)
            if len(taken):
                first = self._starts[way, low][expert]
                self._ways.made(way, name, low, product(taken, weights), first)

    def close(self) -> None:
        """Forget the tokens."""
        self._shelf.drop(lambda key: key[0] == "taken")

    def _taken(self, way: int, low: int, expert: int) -> Floats:
        starts = self._starts[way, low]
        return self._shelf.read(("taken", way, low), starts[expert], starts[expert + 1])


def solve_experts(
    stage: Stage,
    experts: Experts,
    forms: Mapping[str, Quantization],
    shapes: Mapping[str, tuple[int, ...]],
    read: ReadWeight,
) -> dict[str, tuple[Packed, Outcome]]:
    """Quantize the stacks of a stage; what source and ours make of the tokens is put aside.

    Args:
        stage: The stage.
        experts: Its tokens.
        forms: How to pack.
        shapes: Of the stacks, [experts, out, in].
        read: Gives their weights.
    """
    stacks: dict[str, list[Parts]] = {name: [] for name in stage.names}
    ways = {name: Counter[str]() for name in stage.names}
    losses = {name: np.zeros(2) for name in stage.names}
    count, _, columns = shapes[stage.names[0]]
    for name in stage.names:
        experts.reserve(name, shapes[name][1])
    for number in range(count):
        learnt = np.concatenate(experts.tokens(number, learnt=True))
        judge = Unseen(experts.tokens(number, learnt=False))
        way, pack = pack_of(learnt) if judge.tokens >= _FEWEST_UNSEEN else (SEARCH, None)
        for name in stage.names:
            form, weights = forms[name], read(name, (number, number + 1))[0]
            experts.made(SOURCE, name, number, weights.astype(mx.float32))
            affine = pack is not None and form.mode == "affine"
            calibrate = partial(pack, form) if affine and pack is not None else None
            rows = partial(_rows, weights)
            found = candidates(rows, (weights.shape[0], columns), form, judge, calibrate)
            ways[name][way if found.better else SEARCH] += 1
            losses[name] += found.losses[0], found.losses[found.better]
            parts = found.choose()
            stacks[name].append(parts)
            experts.made(OURS, name, number, Packed(parts, form).values())
    made: dict[str, tuple[Packed, Outcome]] = {}
    for name, stack in stacks.items():
        parts = tuple(mx.stack(list(each)) for each in zip(*stack, strict=True))
        mx.eval(parts)
        before, after = losses[name]
        ratio = float(f"{after / before:.3g}") if before > 0 else None
        method = "search" if ways[name][SEARCH] == count else "calibrated"
        outcome = ExpertsOutcome(method, ratio, dict(sorted(ways[name].items())))
        made[name] = Packed(parts, forms[name]), outcome
    return made


def pack_of(x: Floats) -> tuple[str, Pack | None]:
    """How an expert is made that is to learn from some tokens, [tokens, in]."""
    tokens, columns = x.shape
    if tokens < _FEWEST_TOKENS or not (x.any() and np.isfinite(x).all()):
        return SEARCH, None
    parts = column_parts(columns)
    if tokens < FEWEST_BY_COLUMN * parts[0][1]:
        squares = np.square(x).sum(0)
        evenly = _COUNTS_AS_TOKENS * np.mean(squares) / tokens
        return DIAGONAL, partial(pack_by_column, squares + evenly)
    solvers = []
    for low, high in parts:
        moments = Moments(high - low, drifts=False)
        moments.add(np.ascontiguousarray(x[:, low:high]))
        if not moments.sound:
            return SEARCH, None
        solvers.append(Solver(moments))

    def pack(form: Quantization, weights: Floats, first_row: int, dtype: mx.Dtype) -> Parts:
        made = [
            solver.pack(form, np.ascontiguousarray(weights[:, low:high]), first_row, dtype)
            for (low, high), solver in zip(parts, solvers, strict=True)
        ]
        return tuple(mx.concatenate(list(each), -1) for each in zip(*made, strict=True))

    return FULL, pack


def _rows(weights: mx.array, low: int, high: int) -> mx.array:
    return weights[low:high]
