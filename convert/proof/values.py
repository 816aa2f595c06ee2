"""The weights that a model is run with: the source's own, those rounded, those written.

Owns how each is read, whole or in row blocks, always as float32. Knows the recipes of a
source and of a written folder; knows nothing of models or of what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import mlx.core as mx

from checkpoint.architecture.packed import Dequantize
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, Computed, Elementwise, Recipe, walk, whole
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.packing import Quantization


class Values(Protocol):
    """Weights of a model by the names of mlx-lm's parameters."""

    def read(self, name: str, box: Box) -> mx.array:
        """The part of a weight that `box` covers, floats as float32; not yet evaluated."""

    def release(self, name: str) -> None:
        """Forget what is kept of a weight between reads."""


class FolderValues:
    """Weights as recipes make them out of a folder's files.

    Args:
        recipes: How each parameter is made.
        reader: Reads the files.
    """

    def __init__(self, recipes: Mapping[str, Recipe], reader: TensorReader) -> None:
        self.recipes = recipes
        self._reader = reader

    def read(self, name: str, box: Box) -> mx.array:
        return as_float32(self.recipes[name].read(box, self._reader))

    def release(self, name: str) -> None:
        self.recipes[name].release()


class RoundedValues:
    """The source's weights after MLX's own rounding to nearest, in the forms that were written.

    What those forms cost at least: the measure for what was written.

    Args:
        source: The source's weights.
        written: How each parameter was written.
    """

    def __init__(self, source: FolderValues, written: Mapping[str, Recipe]) -> None:
        self._source = source
        self._forms = {name: stored_form(recipe) for name, recipe in written.items()}

    def read(self, name: str, box: Box) -> mx.array:
        form, dtype = self._forms[name]
        exact = self._source.read(name, box)
        narrow = exact.astype(dtype or self._source.recipes[name].dtype)
        if form is None:
            return as_float32(narrow)
        codes, scales, *biases = mx.quantize(narrow, form.group_size, form.bits, mode=form.mode)
        return mx.dequantize(
            codes,
            as_float32(scales),
            as_float32(biases[0]) if biases else None,
            group_size=form.group_size,
            bits=form.bits,
            mode=form.mode,
            dtype=mx.float32,
        )

    def release(self, name: str) -> None:
        self._source.release(name)


def read_whole(values: Values, name: str, shape: tuple[int, ...]) -> mx.array:
    """A whole weight, evaluated: no GPU ever waits for a file."""
    value = values.read(name, whole(shape))
    mx.eval(value)
    values.release(name)
    return value


def stored_form(written: Recipe) -> tuple[Quantization | None, mx.Dtype | None]:
    """How a written weight is packed, if it is, and the dtype of its floats.

    The dtype is None for a packed weight whose scales are no floats.
    """
    for node in walk(written):
        if isinstance(node, Dequantize):
            dtype = mlx_dtype(node.packed.scales)
            return node.form, dtype if mx.issubdtype(dtype, mx.floating) else None
    return None, written.dtype


def arithmetic_dtypes(source: Recipe) -> set[mx.Dtype]:
    """The half-precision dtypes in which mlx-lm computes a weight out of the source's.

    Such as the 1 that its `sanitize` adds to some norms: rounded where transformers rounds
    nothing.
    """
    return {
        node.dtype
        for node in walk(source)
        if isinstance(node, (Elementwise, Computed))
        and node.dtype in (mx.bfloat16, mx.float16)
        and not _only_casts(node)
    }


def _only_casts(node: Recipe) -> bool:
    return isinstance(node, Elementwise) and len(node.parts) == 1


def as_float32(array: mx.array) -> mx.array:
    """Floats of any width as float32; integers as they are."""
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
