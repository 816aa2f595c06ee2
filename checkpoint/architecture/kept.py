"""Which weights can keep the codes that their source packed them in, and from where they come.

A weight that the source holds quantized is a recipe of plain numbers like any other; where
all that happens to it on its way moves whole rows (experts stacked, gates parted from ups),
its codes, scales and biases can take the same way. Owns that way. Knows nothing of formats.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from checkpoint.architecture.packed import Dequantize, same_tensors
from checkpoint.architecture.reader import TensorReader, same_bytes
from checkpoint.architecture.recipes import (
    Box,
    Broadcast,
    Concatenate,
    Copy,
    Elementwise,
    Recipe,
    Slice,
    Transpose,
    box_shape,
    row_blocks,
    walk,
)
from checkpoint.architecture.reshape import Reshape
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.packing import Quantization
from checkpoint.tensors import TensorRef

_PIECE = 1 << 20
"""Weights that are decoded at once."""


@dataclass(frozen=True)
class Kept:
    """A weight's parts as MLX packs them, without a change of any code.

    Attributes:
        form: How it is packed.
        parts: Recipes of the codes (uint32), the scales and, for `affine`, the biases.
        exact: Whether scales and biases are the source's to the last bit.
    """

    form: Quantization
    parts: tuple[Recipe, ...]
    exact: bool

    def read(self, box: Box, reader: TensorReader) -> tuple[mx.array, ...]:
        """The parts of whole rows.

        Args:
            box: A part of the plain weight that cuts no row.
            reader: Reads the source.
        """
        return tuple(part.read((*box[:-1], (0, part.shape[-1])), reader) for part in self.parts)


@dataclass(frozen=True, eq=False, slots=True)
class Decoded(Recipe):
    """The plain weight of one that the source holds in a quantized format.

    Computed in float32 and rounded once, to `dtype`.

    Attributes:
        refs: The source tensors that it is decoded from.
        told: The format, in words.
    """

    refs: tuple[TensorRef, ...]
    told: str

    @property
    def reads(self) -> int:
        return 4  # a slice of rows reads some in vain; codes and float32 are of pieces only

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        shape = box_shape(box)
        pieces = []
        for cut in row_blocks(shape, shape[-1], _PIECE):
            moved = tuple(
                (low + start, low + stop) for (low, _), (start, stop) in zip(box, cut, strict=True)
            )
            piece = self.decode(moved, reader).astype(self.dtype)
            # Under way at once, so that no two pieces hold their integers and float32 together.
            mx.async_eval(piece)
            pieces.append(piece.reshape(-1, shape[-1]))
        return (pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)).reshape(shape)

    @abstractmethod
    def decode(self, box: Box, reader: TensorReader) -> mx.array:
        """The values of a box, float32."""

    @abstractmethod
    def kept(self) -> Kept | None:
        """Its parts as MLX packs them; None where no mode of MLX has its grid."""

    def sources(self) -> Iterator[TensorRef]:
        yield from self.refs


def kept(recipe: Recipe) -> Kept | None:
    """The codes of a weight that are in the source already; None where there are none to keep."""
    if isinstance(recipe, Dequantize):
        return _of_packed(recipe)
    if isinstance(recipe, Decoded):
        return recipe.kept()
    if not recipe.inputs or not _moves_rows(recipe):
        return None
    inputs = []
    for part in recipe.inputs:
        if (found := kept(part)) is None:
            return None
        inputs.append(found)
    first = inputs[0]
    dtypes = {tuple(part.dtype for part in each.parts) for each in inputs}
    if any(each.form != first.form for each in inputs) or len(dtypes) > 1:
        return None
    moved = tuple(
        _moved(recipe, tuple(each.parts[index] for each in inputs))
        for index in range(len(first.parts))
    )
    return Kept(first.form, moved, all(each.exact for each in inputs))


def was_quantized(recipe: Recipe) -> bool:
    """Whether a weight is made from any that the source holds quantized."""
    return any(isinstance(node, (Decoded, Dequantize)) for node in walk(recipe))


def same_weights(one: Recipe, other: Recipe) -> bool:
    """Whether two source weights, quantized or not, hold the same bytes in the same form."""
    if not isinstance(one, Decoded) or not isinstance(other, Decoded):
        return same_tensors(one, other)
    if (type(one), one.told, len(one.refs)) != (type(other), other.told, len(other.refs)):
        return False
    pairs = zip(one.refs, other.refs, strict=True)
    return all(
        (ref.dtype, ref.shape) == (twin.dtype, twin.shape) and same_bytes(ref, twin)
        for ref, twin in pairs
    )


def _of_packed(recipe: Dequantize) -> Kept | None:
    packed = recipe.packed
    if packed.global_scale is not None:
        return None
    codes = Copy(packed.weight.shape, mx.uint32, packed.weight)
    if packed.biases is None:
        scales = Copy(packed.scales.shape, mx.uint8, packed.scales)
        return Kept(recipe.form, (codes, scales), True)
    floats: list[Recipe] = [
        Copy(ref.shape, mlx_dtype(ref), ref) for ref in (packed.scales, packed.biases)
    ]
    exact = all(part.dtype == recipe.dtype for part in floats)
    if not exact:
        floats = [_cast(part, recipe.dtype) for part in floats]
    return Kept(recipe.form, (codes, *floats), exact)


def _cast(part: Recipe, dtype: mx.Dtype) -> Recipe:
    return Elementwise(part.shape, dtype, (part,), lambda array: array.astype(dtype))


def _moves_rows(recipe: Recipe) -> bool:
    """Whether a node leaves each row whole and in its order."""
    last = len(recipe.shape) - 1
    if last < 1 or any(len(part.shape) < 2 for part in recipe.inputs):
        return False
    same = all(part.shape[-1] == recipe.shape[-1] for part in recipe.inputs)
    match recipe:
        case Concatenate():
            return recipe.axis != last
        case Slice():
            return same and recipe.start[-1] == 0 and recipe.step[-1] == 1
        case Transpose():
            return recipe.axes[-1] == last
        case Reshape() | Broadcast():
            return same
    return False


def _moved(node: Recipe, parts: tuple[Recipe, ...]) -> Recipe:
    """A node that moves rows, over the parts of packed weights in place of the weights."""
    shape, dtype, part = (*node.shape[:-1], parts[0].shape[-1]), parts[0].dtype, parts[0]
    match node:
        case Concatenate():
            return Concatenate(shape, dtype, parts, node.axis)
        case Slice():
            return Slice(shape, dtype, part, node.start, node.step)
        case Transpose():
            return Transpose(shape, dtype, part, node.axes)
        case Broadcast():
            return Broadcast(shape, dtype, part)
    return Reshape(shape, dtype, part)
