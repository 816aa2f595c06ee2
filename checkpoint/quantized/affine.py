"""Weights of integer codes with a step and an offset for each group: what most formats are.

Owns the arithmetic, and when MLX's `affine` mode can hold the same grid. A format's own
module says where codes, steps and offsets lie.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from checkpoint.architecture.kept import Decoded, Kept
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, Recipe, box_shape
from checkpoint.json_file import quoted
from checkpoint.packing import Quantization
from checkpoint.quantized.codes import packed
from checkpoint.tensors import TensorRef
from configs.errors import SourceError
from configs.quantization import MODES


@dataclass(frozen=True, eq=False, slots=True)
class Affine(Decoded):
    """`step * code + offset`, [..., rows, columns].

    Attributes:
        bits: Bits of a code.
        group_size: Consecutive weights of a row that share step and offset.
        exact: Whether steps and offsets are of `dtype` without rounding.
    """

    bits: int
    group_size: int
    exact: bool

    @abstractmethod
    def codes(self, box: Box, reader: TensorReader) -> mx.array:
        """The codes of a box that cuts no group: uint8, of the box's shape."""

    @abstractmethod
    def steps(self, box: Box, reader: TensorReader) -> tuple[mx.array, mx.array]:
        """Steps and offsets, float32; the box's last axis counts groups."""

    def words(self, rows: Box, reader: TensorReader) -> mx.array:
        """The codes of whole rows as MLX packs them."""
        return packed(self.codes((*rows, (0, self.shape[-1])), reader), self.bits)

    def decode(self, box: Box, reader: TensorReader) -> mx.array:
        *rows, (low, high) = box
        size, columns = self.group_size, self.shape[-1]
        first, last = low // size, -(-high // size)
        start, stop = first * size, min(last * size, columns)
        codes = self.codes((*rows, (start, stop)), reader).astype(mx.float32)
        steps, offsets = self.steps((*rows, (first, last)), reader)
        if (stop - start) % size:  # the last group of a row may be cut short
            steps, offsets = (
                mx.repeat(each, size, axis=-1)[..., : stop - start] for each in (steps, offsets)
            )
            values = codes * steps + offsets
        else:
            grouped = codes.reshape(*box_shape(tuple(rows)), last - first, size)
            values = grouped * steps[..., None] + offsets[..., None]
            values = values.reshape(codes.shape)
        return values[..., low - start : high - start]

    def kept(self) -> Kept | None:
        columns, mode = self.shape[-1], MODES["affine"]
        sizes = [
            size
            for size in sorted(mode.group_sizes, reverse=True)
            if not self.group_size % size and not columns % size
        ]
        if self.bits not in mode.bits or not sizes:
            return None
        form = Quantization(self.bits, sizes[0], "affine")
        rows = self.shape[:-1]
        words = (*rows, columns * self.bits // 32)
        groups = (*rows, columns // sizes[0])
        parts: tuple[Recipe, ...] = (
            AffinePart(words, mx.uint32, self, "codes", sizes[0]),
            AffinePart(groups, self.dtype, self, "scales", sizes[0]),
            AffinePart(groups, self.dtype, self, "biases", sizes[0]),
        )
        return Kept(form, parts, self.exact)


@dataclass(frozen=True, eq=False, slots=True)
class AffinePart(Recipe):
    """What MLX holds of an affine weight: its codes, its scales or its biases.

    Attributes:
        weight: The weight.
        part: Which part of it.
        group_size: MLX's, which divides the weight's own.
    """

    weight: Affine
    part: Literal["codes", "scales", "biases"]
    group_size: int

    @property
    def reads(self) -> int:
        return self.weight.reads

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        rows, (low, high) = box[:-1], box[-1]
        if self.part == "codes":
            return self.weight.words(rows, reader)[..., low:high]
        groups = (0, -(-self.weight.shape[-1] // self.weight.group_size))
        pair = self.weight.steps((*rows, groups), reader)
        values = pair[0 if self.part == "scales" else 1].astype(self.dtype)
        if (times := self.weight.group_size // self.group_size) > 1:
            values = mx.repeat(values, times, axis=-1)
        return values[..., low:high]

    def sources(self) -> Iterator[TensorRef]:
        yield from self.weight.refs


@dataclass(frozen=True, eq=False, slots=True)
class ActOrder(Decoded):
    """A matrix whose columns are spread over the groups; no mode of MLX holds it so.

    Attributes:
        plain: The matrix as if its groups were consecutive columns.
        order: The group of each column, [columns] of 32-bit integers.
        groups: How many groups there are.
    """

    plain: Affine
    order: TensorRef
    groups: int

    def kept(self) -> Kept | None:
        return None

    def decode(self, box: Box, reader: TensorReader) -> mx.array:
        rows, columns = box
        group = reader.read(self.order, (columns,))
        if not (group < self.groups).all().item():
            raise SourceError(
                quoted(self.order.name),
                f"names a group beyond the {self.groups} there are",
                "download it again",
            )
        codes = self.plain.codes(box, reader).astype(mx.float32)
        steps, offsets = self.plain.steps((rows, (0, self.groups)), reader)
        return codes * mx.take(steps, group, axis=1) + mx.take(offsets, group, axis=1)
