"""Chooses one option for each layer so that all together fit a budget and lose least.

A multiple-choice knapsack, solved in two ways of which the better counts. One takes the steps of
each layer's lower convex hull by what they gain for each byte, which is the best there is for
every budget that it ends at: good where no layer is a large part of the whole. The other is
dynamic programming over the budget cut into some thousand parts: good where layers are few.
What is then left goes to exchanges of one or two layers' options while these gain. The same
input gives the same answer. Pure arithmetic: knows nothing of what layers and options are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# An exchange must gain so much of all that is lost, so that rounding errors make no circle.
_LEAST_GAIN = 1e-9
_PARTS = 4096


class Option(NamedTuple):
    """One way to store a layer.

    Attributes:
        nbytes: What it takes.
        error: What it is estimated to lose.
    """

    nbytes: int
    error: float


class _Step(NamedTuple):
    """From one option of a hull to the next larger."""

    slope: float
    layer: int
    start: int
    end: int


def least_bytes(layers: Sequence[Sequence[Option]]) -> int:
    """What all layers take at least."""
    return sum(min(option.nbytes for option in options) for options in layers)


def most_bytes(layers: Sequence[Sequence[Option]]) -> int:
    """What they take when nothing is gained any more by more bytes."""
    return sum(options[hull(options)[-1]].nbytes for options in layers)


def hull(options: Sequence[Option]) -> list[int]:
    """The options on the lower convex hull of bytes and error, by size: indices.

    The first is the smallest, the last loses least. Of options that are equal the first counts.
    """
    order = sorted(range(len(options)), key=lambda index: (*options[index], index))
    found: list[int] = []
    for index in order:
        if found and options[index].error >= options[found[-1]].error:
            continue
        while len(found) > 1 and _slope(options, found[-2], found[-1]) <= _slope(
            options, found[-1], index
        ):
            found.pop()
        found.append(index)
    return found


def allocate(layers: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """The option of each layer, by its index.

    Args:
        layers: Each layer's options, one at least.
        budget: Most bytes that all together may take.

    Raises:
        ValueError: the smallest options take more.
    """
    hulls = [hull(options) for options in layers]
    chosen = [each[0] for each in hulls]
    left = budget - sum(layers[at][index].nbytes for at, index in enumerate(chosen))
    if left < 0:
        raise ValueError(f"the budget of {budget} bytes is {-left} too small")
    steps = [
        _Step(_slope(layers[at], start, end), at, start, end)
        for at, each in enumerate(hulls)
        for start, end in pairwise(each)
    ]
    for step in sorted(steps, key=lambda step: (-step.slope, step.layer, step.start)):
        more = layers[step.layer][step.end].nbytes - layers[step.layer][step.start].nbytes
        if chosen[step.layer] == step.start and more <= left:
            chosen[step.layer] = step.end
            left -= more
    found = [_improve(layers, each, budget) for each in (chosen, _by_parts(layers, budget))]
    return min(found, key=lambda each: _error(layers, each))


def _by_parts(layers: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """Dynamic programming: what all layers so far lose at least in each part of the budget.

    What options take beyond the layer's smallest is rounded up to whole parts.
    """
    spare = budget - least_bytes(layers)
    size = max(1, -(-spare // _PARTS))
    parts = spare // size + 1
    lost = np.zeros(parts)
    choices = []
    for options in layers:
        smallest = min(option.nbytes for option in options)
        best = np.full(parts, np.inf)
        choice = np.zeros(parts, np.int16)
        for index, option in enumerate(options):
            shift = -(-(option.nbytes - smallest) // size)
            if shift >= parts:
                continue
            made = lost[: parts - shift] + option.error
            better = made < best[shift:]
            best[shift:][better] = made[better]
            choice[shift:][better] = index
        lost = best
        choices.append(choice)
    at = parts - 1
    chosen = []
    for options, choice in zip(reversed(layers), reversed(choices), strict=True):
        index = int(choice[at])
        smallest = min(option.nbytes for option in options)
        at -= -(-(options[index].nbytes - smallest) // size)
        chosen.append(index)
    return chosen[::-1]


def _error(layers: Sequence[Sequence[Option]], chosen: Sequence[int]) -> float:
    return sum(options[at].error for options, at in zip(layers, chosen, strict=True))


def _slope(options: Sequence[Option], start: int, end: int) -> float:
    one, other = options[start], options[end]
    return (one.error - other.error) / (other.nbytes - one.nbytes)


def _improve(layers: Sequence[Sequence[Option]], chosen: list[int], budget: int) -> list[int]:
    """Exchange options while that gains: one alone, or a smaller one for another's larger."""
    left = budget - sum(options[at].nbytes for options, at in zip(layers, chosen, strict=True))
    owners = np.repeat(np.arange(len(layers)), [len(options) for options in layers])
    starts = np.cumsum([0, *(len(options) for options in layers)])[:-1]
    nbytes = np.array([option.nbytes for options in layers for option in options], np.int64)
    errors = np.array([option.error for options in layers for option in options], np.float64)
    for _ in range(4 * len(layers)):
        now = starts + np.array(chosen)
        more = nbytes - nbytes[now][owners]
        gains = errors[now][owners] - errors
        found = _best_exchange(owners, more, gains, left)
        if found is None or found[0] <= _LEAST_GAIN * float(errors[now].sum()):
            break
        for flat in found[1]:
            chosen[int(owners[flat])] = int(flat - starts[owners[flat]])
            left -= int(more[flat])
    return chosen


_Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
_Gains = np.ndarray[tuple[int], np.dtype[np.float64]]


def _best_exchange(
    owners: _Numbers, more: _Numbers, gains: _Gains, left: int
) -> tuple[float, tuple[int, ...]] | None:
    """The exchange of one or two layers that gains most; None where none gains."""
    gaining = np.flatnonzero((gains > 0) & (more > 0))
    free = np.flatnonzero((gains > 0) & (more <= left))
    best: tuple[float, tuple[int, ...]] | None = None
    if free.size:
        flat = int(free[np.argmax(gains[free])])
        best = float(gains[flat]), (flat,)
    shrinking = np.flatnonzero(more < 0)
    if not gaining.size or not shrinking.size:
        return best
    by_size = gaining[np.argsort(more[gaining], kind="stable")]
    largest = np.maximum.accumulate(gains[by_size])
    is_new = np.r_[True, gains[by_size][1:] > largest[:-1]]
    holder = by_size[np.maximum.accumulate(np.where(is_new, np.arange(by_size.size), 0))]
    reach = np.searchsorted(more[by_size], left - more[shrinking], "right") - 1
    shrinking, reach = shrinking[reach >= 0], reach[reach >= 0]
    other = holder[reach]
    apart = owners[other] != owners[shrinking]
    shrinking, other = shrinking[apart], other[apart]
    if not shrinking.size:
        return best
    totals = gains[shrinking] + gains[other]
    at = int(np.argmax(totals))
    if best is None or totals[at] > best[0]:
        best = float(totals[at]), (int(shrinking[at]), int(other[at]))
    return best
