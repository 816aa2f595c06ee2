"""Quantizes one linear layer by its moments, and keeps that only where it is better unseen.

Search and calibration both make the layer; what counts is what each loses on tokens that the
calibration was not given. Rows are independent, so they are made some at a time. Owns
that choice; knows nothing of models or of files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box
from checkpoint.packing import Quantization
from convert.calibration.gptq import Grid, gptq
from convert.calibration.grid import STORES
from convert.calibration.hessian import Floats, Matrix, Moments, inverse_factor
from convert.calibration.refit import refit
from convert.codes import pack
from convert.quantize import Quantizer

WIDEST = 8192
"""The most columns of a layer that is calibrated: its moments must fit beside a block."""

_SWEEPS = 3
_WEIGHTS_TOGETHER = 1 << 24

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
    """A layer's codes [out, in * bits / 32] uint32, scales and biases [out, in / group_size]."""

    parts: tuple[mx.array, ...]
    form: Quantization

    def read(self, box: Box, reader: TensorReader) -> tuple[mx.array, ...]:
        """The parts of some rows; nothing is read from a file."""
        (low, high), _ = box
        return tuple(part[low:high] for part in self.parts)

    def values(self) -> mx.array:
        """The weights they stand for, [out, in] float32."""
        codes, scales, biases = self.parts
        return mx.dequantize(
            codes,
            scales.astype(mx.float32),
            biases.astype(mx.float32),
            group_size=self.form.group_size,
            bits=self.form.bits,
        )


class Solver:
    """What all layers with the same inputs share.

    Args:
        moments: Of the tokens to learn from.
        unseen: Of the tokens to judge by.
        search: Makes the other candidate.
    """

    def __init__(self, moments: Moments, unseen: Moments, search: Quantizer) -> None:
        self._moments, self._unseen, self._search = moments, unseen, search
        self._inverse: Matrix = np.zeros((0, 0))
        if self.sound:
            hessian = moments.damped()
            self._hessian = hessian.astype(np.float32)
            self._factor = inverse_factor(hessian).astype(np.float32)
            self._inverse = np.linalg.inv(hessian).astype(np.float64)

    @property
    def sound(self) -> bool:
        """Whether the text made the layers see anything, and only numbers."""
        return self._moments.sound and self._unseen.sound

    def solve(self, rows: Rows, count: int, form: Quantization) -> tuple[Packed, Outcome]:
        """Quantize a layer.

        Args:
            rows: Gives its weights.
            count: Of its rows.
            form: How to pack; `affine`.
        """
        step = max(1, _WEIGHTS_TOGETHER // self._moments.hessian.shape[0])
        streams = (mx.default_stream(mx.default_device()),)
        made: tuple[list[tuple[mx.array, ...]], ...] = ([], [])
        losses = np.zeros(2)
        sound = self.sound
        for low in range(0, count, step):
            block = rows(low, min(count, low + step))
            made[0].append(self._search(block, form, streams))
            mx.eval(made[0][-1])
            weights = np.array(block.astype(mx.float32))
            # Weights that are no numbers come out so by search, and whoever writes them sees it.
            sound = sound and bool(np.isfinite(weights).all())
            if not sound:
                continue
            grid = self._calibrate(weights, low, form, block.dtype)
            made[1].append(_packed(grid, form, block.dtype))
            for place, parts in enumerate((made[0][-1], made[1][-1])):
                values = np.array(Packed(parts, form).values())
                losses[place] += self._unseen.loss(values, weights, low)
        better = sound and bool(losses[1] < losses[0])
        joined = (mx.concatenate(list(each)) for each in zip(*made[better], strict=True))
        parts = tuple(joined)
        mx.eval(parts)
        told = sound and losses[0] > 0
        ratio = float(f"{losses[1] / losses[0]:.3g}") if told else None
        return Packed(parts, form), Outcome("calibrated" if better else "search", ratio)

    def _calibrate(
        self, weights: Floats, first_row: int, form: Quantization, dtype: mx.Dtype
    ) -> Grid:
        pull = self._moments.pull(weights, first_row)
        # The weights that make of our inputs what the source makes of its own.
        wanted = weights.T + (self._inverse @ pull.T.astype(np.float64)).astype(np.float32)
        levels, store = (1 << form.bits) - 1, STORES[dtype]
        diagonal = self._hessian.diagonal()
        grid = gptq(wanted, diagonal, self._factor, form.group_size, levels, store)
        return refit(grid, wanted, self._hessian, levels, store, _SWEEPS)


def _packed(grid: Grid, form: Quantization, dtype: mx.Dtype) -> tuple[mx.array, ...]:
    codes = mx.array(np.ascontiguousarray(grid.codes.T).astype(np.uint8))
    floats = (mx.array(np.ascontiguousarray(part.T)).astype(dtype) for part in grid[1:])
    return (pack(codes, form.bits), *floats)
