"""Quantizes one block: stage by stage, each on what it takes once those before it are quantized.

The source's block runs once; what its stages take is kept while that is little, else it is run
again for each stage. Owns that; knows nothing of the blocks before or after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from checkpoint.architecture.streamer import Block
from checkpoint.packing import Quantization
from convert.calibration.hessian import Floats, Moments
from convert.calibration.layer import WIDEST, Outcome, Packed, Rows, Solver
from convert.calibration.probe import INPUT, Probe, Stage, Taken
from convert.search import search

_TOGETHER = 2048
KEPT_BYTES = 512 << 20
"""The most that is kept of what a block's layers take."""

ReadRows = Callable[[str], mx.array]


class BlockCalibration:
    """A block while it is quantized.

    Args:
        block: The block, with the source's weights to be had.
        probe: Watches its layers.
        forms: How its weights are to be packed, by name.
        linear: Which of them are of linear layers.
        read: Gives a weight in the dtype that it is written in.
        unseen: How many rows, the last, are to judge by.

    Attributes:
        packed: The weights that are done.
        outcomes: How they came out.
    """

    def __init__(
        self,
        block: Block,
        probe: Probe,
        forms: Mapping[str, Quantization],
        linear: frozenset[str],
        read: ReadRows,
        unseen: int,
    ) -> None:
        self.packed: dict[str, Packed] = {}
        self.outcomes: dict[str, Any] = {}
        self._block, self._probe, self._forms, self._read = block, probe, forms, read
        self._linear, self._unseen = linear, unseen
        self._source = {name: block.weight(name) for name in sorted(forms)}
        self._ours = dict(self._source)
        self._kept: dict[int, Taken] = {}
        self._outputs: dict[int, mx.array] = {}
        self._keeps = True

    def run(self, hidden: mx.array, ours: mx.array) -> tuple[mx.array, mx.array]:
        """Quantize every layer.

        Args:
            hidden: What the source's block takes, [rows, positions, hidden].
            ours: What ours will take, of the same shape.

        Returns:
            What the source's block gives, and what ours does.
        """
        for name, form in self._forms.items():
            if name not in self._linear:  # such as experts: each by search
                self._take(name, searched(self._read(name), form))
        first = hidden[:1]
        stages = self._probe.stages(partial(self._call, self._source, first, 0), first)
        self._names = frozenset(stage.names[0] for stage in stages)
        for stage in stages:
            self._stage(stage, hidden, ours)
        for name, form in self._forms.items():
            if name not in self.outcomes:  # called twice, or not for this text
                self._take(name, searched(self._read(name), form))
        made = [self._source_of(low, high, hidden).output for low, high in self._cuts(hidden)]
        self._kept.clear()
        return mx.concatenate(made), self._call(self._ours, ours, 0)

    def _take(self, name: str, made: Packed, outcome: Outcome | None = None) -> None:
        self._ours[name] = made.values().reshape(self._source[name].shape)
        self.outcomes[name] = asdict(outcome or Outcome("search", None))
        if outcome is not None:
            self.packed[name] = made

    def _call(self, weights: Mapping[str, mx.array], given: mx.array, first_row: int) -> mx.array:
        for name, value in weights.items():
            self._block.replace(name, value)
        return self._block(given, first_row)

    def _cuts(self, hidden: mx.array) -> list[tuple[int, int]]:
        """Rows that are run together; none of them both learnt from and judged by."""
        rows, step = hidden.shape[0], max(1, _TOGETHER // hidden.shape[1])
        learnt = rows - self._unseen
        cuts = [(low, min(low + step, learnt)) for low in range(0, learnt, step)]
        return cuts + [(low, min(low + step, rows)) for low in range(learnt, rows, step)]

    def _source_of(self, low: int, high: int, hidden: mx.array) -> Taken:
        """What the source's layers take for some rows, and what its block gives."""
        if low in self._kept:
            return self._kept[low]
        call = partial(self._call, self._source, hidden[low:high], low)
        taken = self._probe.inputs_of(self._names, call)
        if self._keeps:
            self._keeps = taken.nbytes * hidden.shape[0] // (high - low) <= KEPT_BYTES
        if self._keeps:
            self._kept[low] = taken
        return taken

    def _stage(self, stage: Stage, hidden: mx.array, ours: mx.array) -> None:
        made: dict[str, tuple[Packed, Outcome]] = {}
        solver: Solver | None = None
        for name in stage.names:
            rows, columns = self._source[name].shape
            own, form = self._read(name), self._forms[name]
            if columns > WIDEST:
                made[name] = searched(own, form), Outcome("search", None)
                continue
            solver = solver or self._solver(stage, hidden, ours)
            made[name] = solver.solve(_rows_of(own), rows, form)
        for name, (packed, outcome) in made.items():
            self._take(name, packed, outcome)

    def _solver(self, stage: Stage, hidden: mx.array, ours: mx.array) -> Solver:
        name = stage.names[0]
        rows, columns = self._source[name].shape
        outputs = rows if stage.base is not None else 0
        seen, unseen = Moments(columns, outputs), Moments(columns, outputs, whole=True)
        learnt = hidden.shape[0] - self._unseen
        for low, high in self._cuts(hidden):
            theirs = self._source_of(low, high, hidden)
            given = ours[low:high]
            found, norms = self._probe.input_of(name, partial(self._call, self._ours, given, low))
            lack = None
            if stage.base == INPUT:
                lack = flat(hidden[low:high]) - flat(given)
            elif stage.base is not None:
                lack = flat(theirs.norms[stage.base]) - flat(norms[stage.base])
            moments = seen if low < learnt else unseen
            moments.add(flat(found), flat(theirs.inputs[name]), lack)
        return Solver(seen, unseen, search)


def searched(weights: mx.array, form: Quantization) -> Packed:
    """A weight packed without a text."""
    parts = search(weights, form, (mx.default_stream(mx.default_device()),))
    mx.eval(parts)
    return Packed(parts, form)


def flat(array: mx.array) -> Floats:
    """Tokens of any number of rows, [tokens, columns]."""
    return np.array(array.astype(mx.float32)).reshape(-1, array.shape[-1])


def _rows_of(array: mx.array) -> Rows:
    return lambda low, high: array[low:high]
