"""Whether recipes move the elements of tensors, and where to: no data is read.

Owns the stand-ins for tensors whose every element is a number of its place. Knows
nothing of what the moves are for.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import (
    Box,
    Computed,
    Constant,
    Elementwise,
    Recipe,
    Shape,
    box_shape,
    walk,
)
from checkpoint.tensors import TensorRef

# Odd and far apart, so that two places of one tensor seldom have one number.
_FACTORS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)


@dataclass(frozen=True, eq=False, slots=True)
class Probe(Recipe):
    """Stands for a parameter: in each place a number that hardly any other place has."""

    name: str

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        places = mx.full(box_shape(box), zlib.crc32(self.name.encode()), mx.uint32)
        for axis, (low, high) in enumerate(box):
            along = mx.arange(low, high).astype(mx.uint32) * _FACTORS[axis]
            places = places + along.reshape(-1, *[1] * (len(box) - axis - 1))
        return places

    def sources(self) -> Iterator[TensorRef]:
        yield TensorRef(Path(self.name), self.name, "", self.shape, 0, 0)


def probes_of(recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """A probe for each tensor, of its shape and dtype."""
    return {name: Probe(recipe.shape, recipe.dtype, name) for name, recipe in recipes.items()}


def same_places(recipe: Recipe, probe: Recipe, reader: TensorReader) -> bool:
    """Whether a recipe only moves elements, and each to its own place.

    Moves go along axes: they are seen on lines through the tensor, along each axis.

    Args:
        recipe: Made of probes.
        probe: The one that it should be equal to.
        reader: Not asked for anything.
    """
    if recipe is probe:
        return True
    moves = not any(isinstance(node, (Elementwise, Computed, Constant)) for node in walk(recipe))
    if not moves or (recipe.shape, recipe.dtype) != (probe.shape, probe.dtype):
        return False
    return all(
        mx.array_equal(recipe.read(line, reader), probe.read(line, reader)).item()
        for line in _lines(probe.shape)
    )


def _lines(shape: Shape) -> Iterator[Box]:
    """Along each axis: the lines through all combinations of first, middle and last places."""
    if 0 in shape:
        return
    ends = [sorted({0, size // 2, size - 1}) for size in shape]
    for axis, size in enumerate(shape):
        for places in itertools.product(*ends[:axis], [0], *ends[axis + 1 :]):
            line = [(place, place + 1) for place in places]
            line[axis] = (0, size)
            yield tuple(line)
    if not shape:
        yield ()
