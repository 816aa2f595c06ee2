"""How to make any box of a target tensor out of boxes of source tensors.

A recipe is a small graph over source tensors whose every node can produce any
hyperrectangle of its output while reading no more of its inputs than that
needs. So a stack of experts, a transposed matrix or half of a fused projection
streams in row blocks like a plain copy. `Computed` is the exception: it is
evaluated whole.

Owns the nodes. Knows nothing of where a recipe comes from or of quantization.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from checkpoint.architecture.reader import TensorReader
from checkpoint.tensors import TensorRef

Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]
"""Half-open ranges, one an axis."""


def box_shape(box: Box) -> Shape:
    """The shape of what a box covers."""
    return tuple(high - low for low, high in box)


def whole(shape: Shape) -> Box:
    """The box that covers all of a shape."""
    return tuple((0, size) for size in shape)


def row_blocks(shape: Shape, row_bytes: int, block_bytes: int) -> Iterator[Box]:
    """Cut a tensor into boxes that are contiguous in C order and at most so large.

    Args:
        shape: The tensor's shape; its last axis is never cut unless it is the only one.
        row_bytes: Bytes of one row (of one element, for a 1-D shape).
        block_bytes: The aim for a block; a single row may exceed it.
    """
    if not shape or 0 in shape:
        yield whole(shape)
        return
    axes = shape[:-1] or shape
    rest = whole(shape[len(axes) :])
    rows = max(1, block_bytes // max(1, row_bytes))
    # The axis along which blocks run: all axes after it fit whole, those before it go one by one.
    axis, inner = len(axes) - 1, 1
    while axis > 0 and inner * axes[axis] <= rows:
        inner *= axes[axis]
        axis -= 1
    step = max(1, rows // inner)
    outer = axes[:axis]
    for flat in range(math.prod(outer)):
        prefix = []
        for size in reversed(outer):
            prefix.append((flat % size, flat % size + 1))
            flat //= size
        for low in range(0, axes[axis], step):
            cut = (low, min(low + step, axes[axis]))
            yield (*reversed(prefix), cut, *whole(axes[axis + 1 :]), *rest)


@dataclass(frozen=True, eq=False, slots=True)
class Recipe(ABC):
    """One node: the shape and dtype of what it makes, and how.

    Attributes:
        shape: Shape of the whole output.
        dtype: MLX dtype of the output.
    """

    shape: Shape
    dtype: mx.Dtype

    @abstractmethod
    def read(self, box: Box, reader: TensorReader) -> mx.array:
        """The part of the output that `box` covers, possibly not yet evaluated.

        Raises:
            DiskError: a source file can't be read.
        """

    @property
    def inputs(self) -> tuple[Recipe, ...]:
        """The recipes this one is made from."""
        return ()

    @property
    def resident_bytes(self) -> int:
        """Bytes that stay in memory between reads: none, unless a part is `Computed`."""
        return sum(part.resident_bytes for part in self.inputs)

    @property
    def reads(self) -> int:
        """How many times a box's own bytes may be in memory while it is read."""
        return max((part.reads for part in self.inputs), default=1)

    def sources(self) -> Iterator[TensorRef]:
        """Every source tensor that is read."""
        for part in self.inputs:
            yield from part.sources()

    def release(self) -> None:
        """Forget what is kept in memory between reads."""
        for part in self.inputs:
            part.release()


def walk(recipe: Recipe) -> Iterator[Recipe]:
    """A recipe's node and all those that it is made from."""
    yield recipe
    for part in recipe.inputs:
        yield from walk(part)


@dataclass(frozen=True, eq=False, slots=True)
class Copy(Recipe):
    """A source tensor as it is."""

    ref: TensorRef

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        return reader.read(self.ref, box).view(self.dtype)

    def sources(self) -> Iterator[TensorRef]:
        yield self.ref


@dataclass(frozen=True, eq=False, slots=True)
class Constant(Recipe):
    """A small array that the architecture itself brings."""

    value: mx.array

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        return self.value[tuple(slice(low, high) for low, high in box)]


@dataclass(frozen=True, eq=False, slots=True)
class OneInput(Recipe):
    """A node that is made from one other."""

    part: Recipe

    @property
    def inputs(self) -> tuple[Recipe, ...]:
        return (self.part,)


@dataclass(frozen=True, eq=False, slots=True)
class Slice(OneInput):
    """`part[start:stop:step]` along every axis; steps are positive."""

    start: Shape
    step: Shape

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        covering = tuple(
            (start + low * step, start + (high - 1) * step + 1)
            for (low, high), start, step in zip(box, self.start, self.step, strict=True)
        )
        piece = self.part.read(covering, reader)
        return piece[tuple(slice(None, None, step) for step in self.step)]


@dataclass(frozen=True, eq=False, slots=True)
class Transpose(OneInput):
    """Axes permuted: output axis i is input axis `axes[i]`."""

    axes: Shape

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        source = list(box)
        for output_axis, input_axis in enumerate(self.axes):
            source[input_axis] = box[output_axis]
        return self.part.read(tuple(source), reader).transpose(self.axes)


@dataclass(frozen=True, eq=False, slots=True)
class Broadcast(OneInput):
    """Axes of size one repeated."""

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        own = self.part.shape
        aligned = box[len(box) - len(own) :]
        source = tuple((0, 1) if size == 1 else cut for size, cut in zip(own, aligned, strict=True))
        return mx.broadcast_to(self.part.read(source, reader), box_shape(box))


@dataclass(frozen=True, eq=False, slots=True)
class Concatenate(Recipe):
    """Parts joined along an axis; a stack is that over parts with an axis of one."""

    parts: tuple[Recipe, ...]
    axis: int

    @property
    def inputs(self) -> tuple[Recipe, ...]:
        return self.parts

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        low, high = box[self.axis]
        pieces = []
        start = 0
        for part in self.parts:
            stop = start + part.shape[self.axis]
            if start < high and low < stop:
                cut = (max(low, start) - start, min(high, stop) - start)
                pieces.append(part.read((*box[: self.axis], cut, *box[self.axis + 1 :]), reader))
            start = stop
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=self.axis)


@dataclass(frozen=True, eq=False, slots=True)
class Elementwise(Recipe):
    """A function of each element alone; all parts have the output's shape."""

    parts: tuple[Recipe, ...]
    function: Callable[..., mx.array]

    @property
    def inputs(self) -> tuple[Recipe, ...]:
        return self.parts

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        return self.function(*(part.read(box, reader) for part in self.parts))


@dataclass(frozen=True, eq=False, slots=True)
class Computed(Recipe):
    """A tensor that can only be evaluated whole; kept until `release`.

    Attributes:
        refs: The source tensors it may read.
        compute: Gives the whole tensor, lazily.
    """

    refs: tuple[TensorRef, ...]
    compute: Callable[[], mx.array]
    _kept: list[mx.array]

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        if not self._kept:
            value = self.compute()
            mx.eval(value)
            self._kept.append(value)
        return self._kept[0][tuple(slice(low, high) for low, high in box)]

    def sources(self) -> Iterator[TensorRef]:
        yield from self.refs

    @property
    def resident_bytes(self) -> int:
        # while it is computed, what it is made from is in memory too
        made_from = sum(ref.nbytes for ref in self.refs)
        return math.prod(self.shape) * self.dtype.size + made_from

    def release(self) -> None:
        self._kept.clear()
