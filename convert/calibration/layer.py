"""Quantizes one linear layer by its moments, and keeps that only where it is better unseen.

Search and calibration both make the layer; what counts is what each loses on tokens that the
calibration was not given. Rows are independent, so they are made some at a time. Owns
that choice; knows nothing of models or of files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box
from checkpoint.packing import Quantization
from convert.calibration.gptq import Grid, by_column, gptq
from convert.calibration.grid import STORES, Store
from convert.calibration.hessian import Floats, Moments, System
from convert.calibration.judge import Judge
from convert.calibration.refit import refit
from convert.calibration.workers import spread
from convert.codes import pack
from convert.search import search

_SWEEPS = 6
WEIGHTS_TOGETHER = 1 << 23
WEIGHTS_OF_A_WORKER = 1 << 21

Parts = tuple[mx.array, ...]
Rows = Callable[[int, int], mx.array]
"""Gives some rows of a weight, from the first to before the last, in its own dtype."""


@dataclass(frozen=True)
class Outcome:
    """How a layer came out.

    Attributes:
        method: `calibrated`, or `search` where that was better or nothing could be calibrated.
        ratio: What calibration loses on unseen tokens, as a part of what search loses;
            None where it can't be told.
    """

    method: str
    ratio: float | None


@dataclass(frozen=True)
class Packed:
    """A weight's codes [..., out, in * bits / 32] uint32, and scales and perhaps biases."""

    parts: Parts
    form: Quantization

    def read(self, box: Box, reader: TensorReader) -> Parts:
        """The parts of some rows; nothing is read from a file."""
        rows = tuple(slice(low, high) for low, high in box[:-1])
        return tuple(part[rows] for part in self.parts)

    def values(self) -> mx.array:
        """The weights they stand for, [..., out, in] float32."""
        codes, scales, *biases = self.parts
        form = self.form
        if not biases:
            return mx.dequantize(
                codes,
                scales,
                mode=form.mode,
                dtype=mx.float32,
                group_size=form.group_size,
                bits=form.bits,
            )
        return mx.dequantize(
            codes,
            scales.astype(mx.float32),
            biases[0].astype(mx.float32),
            group_size=form.group_size,
            bits=form.bits,
        )


class Candidates(NamedTuple):
    """What two ways make of a layer, and what each loses unseen.

    Attributes:
        searched: By search, some rows after the other.
        calibrated: By calibration; None where that can't make it.
        losses: Of search and of calibration.
    """

    searched: list[Parts]
    calibrated: list[Parts] | None
    losses: tuple[float, float]

    @property
    def better(self) -> bool:
        """Whether calibration loses less."""
        return self.calibrated is not None and self.losses[1] < self.losses[0]

    def choose(self) -> Parts:
        """The better one, whole; the other is forgotten."""
        rows = self.searched
        if self.calibrated is not None:
            rows, other = (
                (self.calibrated, self.searched) if self.better else (rows, self.calibrated)
            )
            other.clear()
        parts = tuple(mx.concatenate(list(each)) for each in zip(*rows, strict=True))
        mx.eval(parts)
        rows.clear()
        return parts


Calibrate = Callable[[Floats, int, mx.Dtype], Parts]
"""Packs some rows of weights, [rows, in], given which row the first is."""


class Solver:
    """Packs layers that have the same inputs.

    Args:
        moments: Of the tokens to learn from; sound.
        damping: How much of their mean is added to the diagonal; None for the usual.
    """

    def __init__(self, moments: Moments, damping: float | None = None) -> None:
        self._system = System(moments) if damping is None else System(moments, damping)
        self._diagonal = self._system.hessian.diagonal()

    def pack(
        self,
        form: Quantization,
        weights: Floats,
        first_row: int,
        dtype: mx.Dtype,
        besides: Floats | None = None,
    ) -> Parts:
        """Quantize some rows.

        Args:
            form: How; `affine`.
            weights: The source's, [rows, in].
            first_row: Which row of the layer the first of them is.
            dtype: What scales and biases are stored as.
            besides: Sum of r x^T for what their output lacks besides, [rows, in].
        """
        count, columns = weights.shape
        step = max(1, min(WEIGHTS_OF_A_WORKER // columns, -(-count // 2)))
        levels, store = (1 << form.bits) - 1, STORES[dtype]

        def work(low: int) -> Grid:
            cut = slice(low, low + step)
            lack = None if besides is None else besides[cut]
            wanted = self._system.wanted(weights[cut], first_row + low, lack)
            return self._solved(wanted, form.group_size, levels, store)

        made = [_packed(grid, form, dtype) for grid in spread(work, range(0, count, step))]
        return tuple(mx.concatenate(list(each)) for each in zip(*made, strict=True))

    def _solved(self, wanted: Floats, group_size: int, levels: int, store: Store) -> Grid:
        system = self._system
        grid = gptq(wanted, self._diagonal, system.factor, group_size, levels, store)
        return refit(grid, wanted, system.hessian, levels, store, _SWEEPS)


def candidates(
    rows: Rows,
    shape: tuple[int, int],
    form: Quantization,
    judge: Judge,
    calibrate: Calibrate | None,
) -> Candidates:
    """Make a layer in both ways, some rows at a time, and judge them.

    Args:
        rows: Gives its weights.
        shape: Of the layer, [out, in].
        form: How to pack; `affine` if there is a `calibrate`.
        judge: Tells losses.
        calibrate: The other way than search; None where nothing can be calibrated.
    """
    count, columns = shape
    step = max(1, WEIGHTS_TOGETHER // columns)
    made: tuple[list[Parts], ...] = ([], [])
    losses = np.zeros(2)
    sound = calibrate is not None and judge.sound
    for low in range(0, count, step):
        block = rows(low, min(count, low + step))
        made[0].append(search_of(block, form))
        weights = np.array(block.astype(mx.float32))
        # Weights that are no numbers come out so by search, and whoever writes them sees it.
        sound = sound and bool(np.isfinite(weights).all())
        if not sound or calibrate is None:
            continue
        made[1].append(calibrate(weights, low, block.dtype))
        mx.eval(made[1][-1])
        losses += _losses(judge, weights, low, [Packed(each[-1], form) for each in made])
    return Candidates(made[0], made[1] if sound else None, (float(losses[0]), float(losses[1])))


def chosen(found: Candidates, form: Quantization) -> tuple[Packed, Outcome]:
    """The better of both."""
    told = found.calibrated is not None and found.losses[0] > 0
    ratio = float(f"{found.losses[1] / found.losses[0]:.3g}") if told else None
    method = "calibrated" if found.better else "search"
    return Packed(found.choose(), form), Outcome(method, ratio)


def pack_by_column(
    diagonal: Floats, form: Quantization, weights: Floats, first_row: int, dtype: mx.Dtype
) -> Parts:
    """Quantize some rows, [rows, in], where it is known only how large each input is.

    Args:
        diagonal: The sum of each input's squares, [in].
        form: How; `affine`.
        weights: The source's.
        first_row: Of no account: rows do not differ.
        dtype: What scales and biases are stored as.
    """
    levels, store = (1 << form.bits) - 1, STORES[dtype]
    grid = by_column(np.ascontiguousarray(weights.T), diagonal, form.group_size, levels, store)
    return _packed(grid, form, dtype)


def search_of(block: mx.array, form: Quantization) -> Parts:
    """Rows packed without a text, evaluated."""
    parts = search(block, form, (mx.default_stream(mx.default_device()),))
    mx.eval(parts)
    return parts


def searched(weights: mx.array, form: Quantization) -> Packed:
    """A weight packed without a text."""
    return Packed(search_of(weights, form), form)


def _losses(judge: Judge, weights: Floats, first_row: int, ways: list[Packed]) -> Floats:
    values = [np.asarray(packed.values()) for packed in ways]
    step = max(1, WEIGHTS_OF_A_WORKER // weights.shape[1])

    def work(low: int) -> list[float]:
        cut = slice(low, low + step)
        wanted = judge.wanted(weights[cut], first_row + low)
        return [judge.loss(each[cut], wanted) for each in values]

    found: Floats = np.sum(spread(work, range(0, len(weights), step)), axis=0)
    return found


def _packed(grid: Grid, form: Quantization, dtype: mx.Dtype) -> Parts:
    codes = mx.array(np.ascontiguousarray(grid.codes.T).astype(np.uint8))
    floats = (mx.array(np.ascontiguousarray(part.T)).astype(dtype) for part in grid[1:])
    return (pack(codes, form.bits), *floats)
