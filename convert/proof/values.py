"""The weights that a model is run with: the source's own, those rounded, those written.

Owns how each is read, whole or in row blocks, always as float32. Knows the recipes of a
source and of a written folder; knows nothing of models or of what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import mlx.core as mx

from checkpoint.architecture.packed import Dequantize
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import (
    Box,
    Computed,
    Concatenate,
    Elementwise,
    OneInput,
    Recipe,
    walk,
    whole,
)
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.packing import Quantization

HALF = (mx.bfloat16, mx.float16)


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


def in_float32(recipe: Recipe) -> Recipe:
    """The same recipe without a rounding to half precision on the way.

    mlx-lm's `sanitize` computes some weights out of the source's, such as a norm's with 1
    added, in the source's dtype; transformers computes in float32. `Computed` recipes, which
    are no graph, stay as they are.
    """
    half = recipe.dtype in HALF
    if not recipe.inputs:
        widen = half and not isinstance(recipe, Computed)
        return _cast(recipe, mx.float32) if widen else recipe
    parts = tuple(map(in_float32, recipe.inputs))
    if half and _only_casts(recipe):
        return parts[0] if parts[0].dtype == mx.float32 else _cast(parts[0], mx.float32)
    dtype = mx.float32 if half else recipe.dtype
    if isinstance(recipe, OneInput):
        return replace(recipe, dtype=dtype, part=parts[0])
    if isinstance(recipe, (Concatenate, Elementwise)):
        return replace(recipe, dtype=dtype, parts=parts)
    return recipe


def half_dtypes(recipe: Recipe) -> set[mx.Dtype]:
    """The half-precision dtypes in which a recipe is computed whole."""
    found = {node.dtype for node in walk(recipe) if isinstance(node, Computed)}
    return found.intersection(HALF)


def is_computed(recipe: Recipe) -> bool:
    """Whether a recipe does more than move values and change their dtype."""
    return any(
        isinstance(node, Computed) or (isinstance(node, Elementwise) and not _only_casts(node))
        for node in walk(recipe)
    )


def _cast(recipe: Recipe, dtype: mx.Dtype) -> Recipe:
    return Elementwise(recipe.shape, dtype, (recipe,), lambda array: array.astype(dtype))


def _only_casts(recipe: Recipe) -> bool:
    """Whether a recipe changes nothing but the dtype."""
    if not isinstance(recipe, Elementwise) or len(recipe.parts) != 1:
        return False
    return recipe.parts[0].dtype != recipe.dtype


def as_float32(array: mx.array) -> mx.array:
    """Floats of any width as float32; integers as they are."""
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
