"""The two ways of a text through a block: with the source's weights, and with ours.

Both go stage by stage. What a stage's layers have made is put aside, so that the next one is
reached without computing again what comes before. Owns that; knows nothing of how weights
are quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import mlx.core as mx
import numpy as np

from checkpoint.architecture.streamer import Block
from convert.calibration.hessian import Floats
from convert.calibration.probe import INPUT, Probe, Stage, Taken
from convert.calibration.shelf import Shelf

SOURCE, OURS = 0, 1
Hidden = Callable[[int, int, int], Floats]
"""Given a way and rows, from the first to before the last, what the block takes."""


class ReadWeight(Protocol):
    """Gives a weight, or some of it along its first axis, in the dtype that it is written in."""

    def __call__(self, name: str, rows: tuple[int, int] | None = None) -> mx.array: ...


class Ways:
    """A block, run in parts.

    Args:
        block: The block.
        probe: Watches its layers.
        hidden: What it takes.
        shelf: Where to put things aside.
        ours: Weights that no stage has and that are not the source's, by name.
        second: The first row of the run that is ours.
    """

    def __init__(
        self,
        block: Block,
        probe: Probe,
        hidden: Hidden,
        shelf: Shelf,
        ours: Mapping[str, mx.array],
        second: int = 0,
    ) -> None:
        self._block, self._probe, self._hidden, self._shelf = block, probe, hidden, shelf
        self._first_rows = (0, second)
        source = {name: block.weight(name) for name in ours}
        self._weights = (source, ours)

    def take(self, stage: Stage, low: int, high: int) -> tuple[Taken, Taken]:
        """What a stage takes of some rows, in the source and in ours."""
        source, ours = (
            self._probe.input_of(stage.names[0], partial(self._run, way, low, high))
            for way in (SOURCE, OURS)
        )
        return source, ours

    def lack(self, stage: Stage, low: int, high: int, source: Taken, ours: Taken) -> Floats | None:
        """What the source's stream holds beyond ours, where the stage adds to it."""
        if stage.base is None:
            return None
        if stage.base == INPUT:
            apart = self._hidden(SOURCE, low, high) - self._hidden(OURS, low, high)
        else:
            apart = np.array(source.norms[stage.base] - ours.norms[stage.base])
        return apart.reshape(-1, apart.shape[-1])

    def reserve(self, way: int, name: str, low: int, shape: tuple[int, ...]) -> None:
        """Make room for what a layer makes of some rows, in parts."""
        self._shelf.reserve((way, name, low), shape)

    def made(self, way: int, name: str, low: int, values: Floats, first: int | None = None) -> None:
        """Put aside what a layer makes of some rows, without its bias, [tokens, out].

        Args:
            way: Which.
            name: Of the layer's weight.
            low: The first of the rows.
            values: All; or, where there is a `first`, some of what has been reserved.
            first: Which token the first of them is.
        """
        if first is None:
            self._shelf.put((way, name, low), values)
        else:
            self._shelf.write((way, name, low), values, first)

    def output(self, way: int, low: int, high: int) -> Floats:
        """What the block makes of some rows, [rows, positions, hidden]."""
        return np.array(self._run(way, low, high))

    def _run(self, way: int, low: int, high: int) -> mx.array:
        for name, value in self._weights[way].items():
            self._block.replace(name, value)

        def known(name: str) -> Floats | None:
            key = (way, name, low)
            return self._shelf.read(key) if self._shelf.has(key) else None

        try:
            self._probe.known = known
            given = mx.array(self._hidden(way, low, high))
            return self._block(given, self._first_rows[way] + low)
        finally:
            self._probe.known = lambda name: None


def product(x: Floats, weights: mx.array) -> Floats:
    """What a layer without a bias makes, [tokens, out], of [tokens, in] by [out, in]."""
    if mx.default_device() == mx.Device(mx.cpu):  # NumPy is several times faster there
        made: Floats = x @ np.asarray(weights).T
        return made
    return np.array(mx.array(x) @ weights.T)
