"""Codes found column by column, each column's error made good by the columns after it.

GPTQ (Frantar et al., 2022, arXiv:2210.17323) over groups: a group's scale and bias are chosen
when its turn comes, for its weights as the columns before have left them. What the columns
before owe is added some columns at a time, as products of matrices. Owns that pass.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convert.calibration.grid import Store, first_grid, nearest
from convert.calibration.hessian import Floats

STEP = 16
"""Columns whose errors are passed on together to those after them."""


class Grid(NamedTuple):
    """Quantized weights, a column of the layer a row here, since columns are what is gone through.

    Attributes:
        codes: [in, out], whole numbers.
        scales: [in / group_size, out], as stored.
        biases: [in / group_size, out], as stored.
    """

    codes: Floats
    scales: Floats
    biases: Floats

    def values(self) -> Floats:
        """The weights they stand for, [in, out]."""
        columns, rows = self.codes.shape
        groups = self.codes.reshape(len(self.scales), -1, rows)
        made: Floats = groups * self.scales[:, None]
        made += self.biases[:, None]
        return made.reshape(columns, rows)


def gptq(
    weights: Floats, diagonal: Floats, factor: Floats, group_size: int, levels: int, store: Store
) -> Grid:
    """Quantize with error feedback.

    Args:
        weights: [in, out]: the layer's, transposed.
        diagonal: Of the Hessian, [in].
        factor: `hessian.inverse_factor` of it, [in, in].
        group_size: Divides the columns.
        levels: The largest code.
        store: As what dtype scales and biases are stored.
    """
    left = weights.copy()
    columns, rows = left.shape
    made = Grid(
        np.empty_like(left),
        np.empty((columns // group_size, rows), np.float32),
        np.empty((columns // group_size, rows), np.float32),
    )
    errors = np.empty((group_size, rows), np.float32)
    for number, start in enumerate(range(0, columns, group_size)):
        stop = start + group_size
        share = diagonal[start:stop]
        scale, bias = first_grid(left[start:stop], share / share.sum(), levels, store)
        for low in range(start, stop, STEP):
            high = min(stop, low + STEP)
            of_step = errors[low - start : high - start]
            for at in range(low, high):
                owed = factor[low:at, at] @ of_step[: at - low]
                value = np.subtract(left[at], owed)
                code = nearest(value, scale, bias, levels)
                made.codes[at] = code
                code *= scale
                code += bias
                value -= code
                np.multiply(value, 1 / factor[at, at], out=of_step[at - low])
            left[high:stop] -= factor[low:high, high:stop].T @ of_step
        left[stop:] -= factor[start:stop, stop:].T @ errors
        made.scales[number], made.biases[number] = scale, bias
    return made


def by_column(
    weights: Floats, diagonal: Floats, group_size: int, levels: int, store: Store
) -> Grid:
    """Quantize without error feedback: as `gptq` with a Hessian that has a diagonal alone."""
    columns, rows = weights.shape
    groups = columns // group_size
    made = Grid(
        np.empty_like(weights),
        np.empty((groups, rows), np.float32),
        np.empty((groups, rows), np.float32),
    )
    for number in range(groups):
        cut = slice(number * group_size, (number + 1) * group_size)
        share = diagonal[cut] / diagonal[cut].sum()
        scale, bias = first_grid(weights[cut], share.astype(np.float32), levels, store)
        made.codes[cut] = nearest(weights[cut], scale, bias, levels)
        made.scales[number], made.biases[number] = scale, bias
    return made
