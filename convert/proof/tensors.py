"""Holds every written weight against the source's, row by row.

Finds what no checksum can: a matrix of another layer, rows in another order, a transposed
or interleaved one, a scale forgotten, at any number of bits. Owns that comparison. Works
in row blocks; knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import mlx.core as mx

from checkpoint.architecture.recipes import Recipe, row_blocks
from checkpoint.packing import Quantization
from convert.proof import tolerance
from convert.proof.errors import number
from convert.proof.values import FolderValues, RoundedValues, is_computed, stored_form

_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class TensorCheck:
    """One parameter.

    Attributes:
        name: Its name.
        form: How it is packed; None if it is not.
        error: Of what was written, relative to the source's weight.
        rounding: The same of the source's weight rounded to nearest.
        fault: What is wrong; empty if nothing is.
    """

    name: str
    form: Quantization | None
    error: float
    rounding: float
    fault: str


def check_tensors(
    source: FolderValues, rounded: RoundedValues, written: FolderValues
) -> Iterator[TensorCheck]:
    """Compare every parameter; each has the same name and shape on both sides."""
    for name, recipe in written.recipes.items():
        form, _ = stored_form(recipe)
        made = source.recipes[name]
        sums = _Sums(tolerance.computed(made.dtype) if is_computed(made) else 0.0)
        for box in _boxes(recipe):
            blocks = [each.read(name, box) for each in (source, rounded, written)]
            sums.add(*(block.reshape(-1, block.shape[-1] if block.ndim else 1) for block in blocks))
        source.release(name)
        written.release(name)
        yield TensorCheck(
            name, form, sums.relative(sums.error), sums.relative(sums.rounding), sums.fault(form)
        )


def misfits(source: Mapping[str, Recipe], written: Mapping[str, Recipe]) -> str:
    """Why the parameters can't be compared one by one; empty if they can."""
    if odd := sorted(source.keys() ^ written.keys()):
        return f"{len(odd)} parameters are on one side alone ({', '.join(odd[:3])})"
    for name, recipe in written.items():
        if recipe.shape != source[name].shape:
            shapes = f"{list(recipe.shape)} where the source has {list(source[name].shape)}"
            return f"{name} is {shapes}"
    return ""


def _boxes(recipe: Recipe) -> Iterator[tuple[tuple[int, int], ...]]:
    columns = recipe.shape[-1] if recipe.shape else 1
    if len(recipe.shape) < 2:  # one row
        return row_blocks(recipe.shape, 1, math.prod(recipe.shape) or 1)
    return row_blocks(recipe.shape, 4 * columns, _BLOCK_BYTES)


class _Sums:
    """What is summed up over a parameter's blocks.

    Args:
        slack: How far a value that is not packed may be off, relative to itself.
    """

    def __init__(self, slack: float) -> None:
        self._slack = slack
        self.size = self.error = self.rounding = 0.0
        self._rows = self._odd_rows = self._odd_values = self._values = 0
        self._finite = True

    def add(self, exact: mx.array, rounded: mx.array, written: mx.array) -> None:
        """Take in a block [rows, columns] of the source's, the rounded and the written weight."""
        exact, rounded, written = (each.astype(mx.float32) for each in (exact, rounded, written))
        size, found = (exact * exact).sum(-1), (exact * written).sum(-1)
        error, rounding = (((exact - each) ** 2).sum(-1) for each in (written, rounded))
        slope = found - (exact * rounded).sum(-1)
        floor = 1e-6 * size + 1e-12 * size.mean() + 1e-30
        too_far = error > tolerance.ROW_ERROR**2 * rounding + floor
        too_steep = mx.abs(slope) > tolerance.ROW_SLOPE * size + floor
        odd_rows = (too_far | too_steep).sum()
        odd_values = (~(mx.abs(written - rounded) <= self._slack * mx.abs(rounded))).sum()
        finite = mx.isfinite(written).all()
        totals = [each.sum() for each in (size, error, rounding)]
        mx.eval(odd_rows, odd_values, finite, *totals)
        self._rows, self._values = self._rows + size.size, self._values + exact.size
        self._odd_rows += int(number(odd_rows))
        self._odd_values += int(number(odd_values))
        self._finite &= bool(finite.item())
        size_sum, error_sum, rounding_sum = map(number, totals)
        self.size, self.error = self.size + size_sum, self.error + error_sum
        self.rounding += rounding_sum

    def relative(self, squares: float) -> float:
        """A sum of squared errors as a share of the weight."""
        return math.sqrt(squares / self.size) if self.size else math.sqrt(squares)

    def fault(self, form: Quantization | None) -> str:
        """What is wrong with the parameter; empty if nothing is."""
        if not self._finite:
            return "holds infinite or NaN values"
        if form is None:
            if self._odd_values:
                return f"{self._odd_values:,} of {self._values:,} values are not the source's"
            return ""
        error, rounding = self.relative(self.error), self.relative(self.rounding)
        if not rounding <= tolerance.most_by_rounding(form):
            return f"MLX's own rounding to {form} is off by {rounding:.1%}"
        if self._odd_rows:
            return f"{self._odd_rows:,} of {self._rows:,} rows are not the source's"
        if not error <= tolerance.TENSOR_ERROR * rounding + 1e-6:
            return f"is off by {error:.1%}, and {form} cost {rounding:.1%}"
        return ""
