"""Improves a quantized layer under its full Hessian, group by group, a number of times.

For one group at a time, all others as they are: first the scale and bias of every row in closed
form, then each code in turn. A scale and bias are taken over only where, as they are stored,
the loss falls; a code always goes where the loss is least. So it never gets worse, but for
rounding. Owns those sweeps.
"""

from __future__ import annotations

import numpy as np

from convert.calibration.gptq import STEP, Grid
from convert.calibration.grid import Store
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
    made = Grid(*(part.copy() for part in grid))
    size = len(weights) // len(made.scales)
    error = made.values()
    error -= weights
    for _ in range(sweeps):
        for number in range(len(made.scales)):
            cut = slice(number * size, (number + 1) * size)
            own = np.ascontiguousarray(hessian[cut, cut])
            slope = hessian[cut] @ error
            for _ in range(_TURNS):
                _fit_scale(made, number, cut, slope, own, store)
                _changed(made, number, cut, weights, error, slope, own)
                _move_codes(made, number, cut, slope, own, levels)
                _changed(made, number, cut, weights, error, slope, own)
    return made


def _changed(
    made: Grid,
    number: int,
    cut: slice,
    weights: Floats,
    error: Floats,
    slope: Floats,
    own: Floats,
) -> None:
    """Bring `error` and `slope` of a group up to what is `made` now."""
    now = made.codes[cut] * made.scales[number]
    now += made.biases[number]
    now -= weights[cut]
    slope += own @ (now - error[cut])
    error[cut] = now


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
    made: Grid, number: int, cut: slice, slope: Floats, own: Floats, levels: int
) -> None:
    """Each code of a group where the loss is least, given all others.

    In steps of a group's scale, slopes and moves need no scale.

    Args:
        made: Its codes are changed in place.
        number: Of the group.
        cut: Its columns.
        slope: Half the gradient of the loss by the group's weights, [size, rows].
        own: The Hessian of the group, [size, size].
        levels: The largest code.
    """
    codes = made.codes[cut]
    in_codes = slope / made.scales[number]
    moved = np.empty((STEP, codes.shape[1]), np.float32)
    for low in range(0, len(codes), STEP):
        high = min(len(codes), low + STEP)
        for at in range(low, high):
            code = in_codes[at]
            if at > low:
                code += own[at, low:at] @ moved[: at - low]
            code *= -1 / own[at, at]
            code += codes[at]
            np.rint(code, out=code)
            np.clip(code, 0, levels, out=code)
            np.subtract(code, codes[at], out=moved[at - low])
            codes[at] = code
        if high < len(codes):
            in_codes[high:] += own[high:, low:high] @ moved[: high - low]
