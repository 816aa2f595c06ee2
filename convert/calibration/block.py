"""Quantizes one block: stage by stage, each on what it takes once those before it are quantized.

Owns that order, and which tokens are learnt from and which are to judge by; knows nothing of
the blocks before or after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import mlx.core as mx

from checkpoint.architecture.streamer import Block
from checkpoint.packing import Quantization
from convert.calibration.experts import Experts, solve_experts
from convert.calibration.hessian import Floats
from convert.calibration.inputs import Inputs
from convert.calibration.layer import Outcome, Packed, searched
from convert.calibration.probe import Probe, Stage
from convert.calibration.shelf import Shelf
from convert.calibration.ways import OURS, SOURCE, Hidden, ReadWeight, Ways, product

_TOKENS = 2048
NUMBERS = 8 << 20
"""The most tokens that are run together, and about the most numbers of theirs in one array."""

Write = Callable[[int, int, Floats], None]
"""Given a way, the first row and rows, takes what the block gives."""


class BlockCalibration:
    """A block while it is quantized.

    Args:
        block: The block, with the source's weights to be had.
        probe: Watches its layers.
        forms: How its weights are to be packed, by name.
        shapes: Of its weights, by name.
        read: Gives a weight in the dtype that it is written in.
        unseen: How many rows, the last, are to judge by.
        shelf: Where to put things aside.

    Attributes:
        packed: The weights that are done.
        outcomes: How they came out.
    """

    def __init__(
        self,
        block: Block,
        probe: Probe,
        forms: Mapping[str, Quantization],
        shapes: Mapping[str, tuple[int, ...]],
        read: ReadWeight,
        unseen: int,
        shelf: Shelf,
    ) -> None:
        self.packed: dict[str, Packed] = {}
        self.outcomes: dict[str, Any] = {}
        self._block, self._probe, self._forms, self._read = block, probe, forms, read
        self._shapes, self._unseen, self._shelf = shapes, unseen, shelf

    def run(self, rows: int, hidden: Hidden, write: Write, second: int = 0) -> None:
        """Quantize every layer.

        Args:
            rows: Of the text.
            hidden: Gives what the source's block takes, and what ours will.
            write: Takes what the source's block gives, and what ours does.
            second: The first row of the run that is ours: 0 where both ways are the same rows.
        """
        first = mx.array(hidden(SOURCE, 0, 1))
        found = self._probe.stages(partial(self._block, first, 0), first)
        stages = [stage for stage in found if self._forms.keys() >= set(stage.names)]
        staged = {name for stage in stages for name in stage.names}
        ours = {}
        for name, form in self._forms.items():
            if name not in staged:  # called twice, or of no kind that is known
                packed = searched(self._read(name), form)
                ours[name] = packed.values().reshape(self._shapes[name])
                self._take(name, packed, Outcome("search", None))
        self._ways = Ways(self._block, self._probe, hidden, self._shelf, ours, second)
        self._cuts = self._cut(rows, first.shape[1], any(stage.experts for stage in stages))
        self._learnt = rows - self._unseen
        try:
            for stage in stages:
                self._stage(stage)
            for low, high in self._cuts:
                for way in (SOURCE, OURS):
                    write(way, low, self._ways.output(way, low, high))
        finally:
            self._shelf.drop()

    def _take(self, name: str, made: Packed, outcome: Outcome) -> None:
        self.packed[name], self.outcomes[name] = made, asdict(outcome)

    def _cut(self, rows: int, positions: int, experts: bool) -> list[tuple[int, int]]:
        """Rows that are run together; none of them both learnt from and judged by."""
        widest = max((max(self._shapes[name][-2:]) for name in self._forms), default=1)
        tokens = min(_TOKENS, NUMBERS // widest) // (4 if experts else 1)
        step, learnt = max(1, tokens // positions), rows - self._unseen
        cuts = [(low, min(low + step, learnt)) for low in range(0, learnt, step)]
        return cuts + [(low, min(low + step, rows)) for low in range(learnt, rows, step)]

    def _stage(self, stage: Stage) -> None:
        if stage.experts:
            tokens = Experts(stage, self._cuts, self._learnt, self._ways, self._shelf)
            made = solve_experts(stage, tokens, self._forms, self._shapes, self._read)
            tokens.close()
            for name, (packed, outcome) in made.items():
                self._take(name, packed, outcome)
            return
        inputs = Inputs(self._shelf, self._learnt)
        for low, high in self._cuts:
            source, ours = self._ways.take(stage, low, high)
            lack = self._ways.lack(stage, low, high, source, ours)
            inputs.add(low, source.x, ours.x, lack)
        for name in stage.names:
            own = self._read(name)
            self._put_aside(SOURCE, name, inputs, own.astype(mx.float32))
            packed, outcome = inputs.solve(
                partial(_rows, own), (own.shape[0], own.shape[1]), self._forms[name]
            )
            del own
            self._take(name, packed, outcome)
            self._put_aside(OURS, name, inputs, packed.values())
        inputs.close()

    def _put_aside(self, way: int, name: str, inputs: Inputs, weights: mx.array) -> None:
        for low, x in inputs.each(way):
            self._ways.made(way, name, low, product(x, weights))


def _rows(array: mx.array, low: int, high: int) -> mx.array:
    return array[low:high]
