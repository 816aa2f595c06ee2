"""Improves a quantized layer under its full Hessian, group by group, a number of times.

For one group at a time, all others as they are: first the scale and bias of every row in closed
form, then each code in turn. A scale and bias are taken over only where, as they are stored,
the loss falls; a code always goes where the loss is least. So it never gets worse, but for
rounding. Owns those sweeps.
"""

from __future__ import annotations

import numpy as np

from convert.calibration.gptq import Grid
from convert.calibration.grid import Store, nearest
from convert.calibration.hessian import Floats

_TURNS = 2
_SINGULAR = np.float32(1e-6)


def refit(
    grid: Grid, weights: Floats, hessian: Floats, levels: int, store: Store, sweeps: int
) -> Grid:
    """Sweep over all groups some times.

    Args:
        grid: What to begin with.
        weights: [in, out]: the wanted ones, transposed.
        hessian: [in, in], damped.
        levels: The largest code.
        store: As what dtype scales and biases are stored.
        sweeps: How often each group has its turn.
    """
    whole = hessian
    made = Grid(*(part.copy() for part in grid))
    size = len(weights) // len(made.scales)
    error = made.values() - weights
    for _ in range(sweeps):
        for number in range(len(made.scales)):
            cut = slice(number * size, (number + 1) * size)
            slope = whole[cut] @ error
            for _ in range(_TURNS):
                _fit_scale(made, number, cut, slope, whole[cut, cut], store)
                changed = made.codes[cut] * made.scales[number] + made.biases[number]
                changed -= weights[cut]
                slope += whole[cut, cut] @ (changed - error[cut])
                error[cut] = changed
                _move_codes(made, number, cut, weights, error, slope, whole, levels)
    return made


def _fit_scale(
    made: Grid, number: int, cut: slice, slope: Floats, own: Floats, store: Store
) -> None:
    """Scale and bias of a group for its codes, by least squares, where they are better.

    All as steps from where they are, so that nothing cancels out.

    Args:
        made: Changed in place.
        number: Of the group.
        cut: Its columns.
        slope: Half the gradient of the loss by its weights, [size, rows].
        own: The Hessian of the group, [size, size].
        store: As what dtype they are stored.
    """
    codes, scale, bias = made.codes[cut], made.scales[number], made.biases[number]
    seen = own @ codes
    by_code, both, alone = (codes * seen).sum(0), seen.sum(0), own.sum()
    scale_slope, bias_slope = (codes * slope).sum(0), slope.sum(0)
    determinant = by_code * alone - both * both
    sound = determinant > _SINGULAR * by_code * alone
    step = (both * bias_slope - alone * scale_slope) / np.where(sound, determinant, 1)
    new_scale = store(np.where(sound, scale + step, scale))
    new_scale = np.where(new_scale == 0, scale, new_scale)
    up = new_scale - scale
    new_bias = store(bias - (bias_slope + up * both) / alone)
    aside = new_bias - bias
    change = up * (2 * scale_slope + up * by_code + 2 * aside * both)
    change += aside * (2 * bias_slope + aside * alone)
    better = change < 0
    made.scales[number] = np.where(better, new_scale, scale)
    made.biases[number] = np.where(better, new_bias, bias)


def _move_codes(
    made: Grid,
    number: int,
    cut: slice,
    weights: Floats,
    error: Floats,
    slope: Floats,
    whole: Floats,
    levels: int,
) -> None:
    """Each code of a group where the loss is least, given all others.

    Args:
        made: Changed in place, as are `error` and `slope`.
        number: Of the group.
        cut: Its columns.
        weights: [in, out].
        error: Of all weights, [in, out].
        slope: Half the gradient of the loss by the group's weights, [size, rows].
        whole: The Hessian, [in, in].
        levels: The largest code.
    """
    scale, bias = made.scales[number], made.biases[number]
    for column, at in enumerate(range(cut.start, cut.stop)):
        aim = weights[at] + error[at] - slope[column] / whole[at, at]
        code = nearest(aim, scale, bias, levels)
        moved = (code - made.codes[at]) * scale
        slope += whole[cut, at, None] * moved
        error[at] += moved
        made.codes[at] = code
