"""The blocks a plan is made in: consecutive rows of one parameter, and where their bytes go.

Pure arithmetic over a plan, the same in every run of the same plan, so that a block
is known by its number. Knows nothing of files or of what has been made.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from checkpoint.architecture.recipes import Box, box_shape, row_blocks
from checkpoint.dtypes import DTYPES
from convert.plan import Parameter, Plan, Shard
from convert.planner import BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Piece:
    """What a block adds to one tensor.

    Attributes:
        number: Its place among the pieces of the plan.
        tensor: The tensor's name.
        offset: Its first byte in the shard.
        nbytes: Its bytes.
    """

    number: int
    tensor: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a parameter, made and written at once.

    Attributes:
        number: Its place among the blocks of the plan.
        parameter: What it is a part of.
        box: Which part.
        pieces: What it adds to each of the parameter's tensors, in their order.
    """

    number: int
    parameter: Parameter
    box: Box
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all its pieces."""
        return sum(piece.nbytes for piece in self.pieces)


class Blocks:
    """All blocks of a plan, numbered in the model's order.

    Attributes:
        plan: The plan.
        count: How many blocks.
        pieces: How many pieces.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._first: dict[str, int] = {}
        self._pieces = array("Q", [0])  # the first piece of each block, and how many there are
        for parameter in plan.parameters:
            self._first[parameter.name] = len(self._pieces) - 1
            for _ in _boxes(parameter):
                self._pieces.append(self._pieces[-1] + len(parameter.outputs))
        self.count = len(self._pieces) - 1
        self.pieces = self._pieces[-1]
        self._shards = {each.name: shard for shard in plan.shards for each in shard.parameters}

    def pieces_of(self, number: int) -> range:
        """The numbers of a block's pieces; none if there is no such block."""
        return range(*self._pieces[number : number + 2]) if number < self.count else range(0)

    def shard_of(self, parameter: Parameter) -> Shard:
        """The file that all tensors of a parameter go to."""
        return self._shards[parameter.name]

    def of(self, parameter: Parameter) -> Iterator[Block]:
        """The blocks of a parameter, first rows first."""
        offsets = self._shards[parameter.name].offsets
        done, whole = 0, max(1, parameter.size)
        for number, box in enumerate(_boxes(parameter), self._first[parameter.name]):
            size = math.prod(box_shape(box))
            pieces = tuple(
                Piece(
                    piece,
                    tensor.name,
                    offsets[tensor.name] + tensor.nbytes * done // whole,
                    tensor.nbytes * size // whole,
                )
                for piece, tensor in zip(self.pieces_of(number), parameter.outputs, strict=True)
            )
            yield Block(number, parameter, box, pieces)
            done += size

    def in_shard(self, shard: Shard) -> Iterator[Block]:
        """The blocks of a shard, in the model's order."""
        return (block for parameter in shard.parameters for block in self.of(parameter))

    def pieces_in_order(self, shard: Shard) -> Iterator[Piece]:
        """The pieces of a shard in the order of their bytes, which leave no gap."""
        places = {
            tensor.name: (parameter, place)
            for parameter in shard.parameters
            for place, tensor in enumerate(parameter.outputs)
        }
        for name in shard.offsets:
            parameter, place = places[name]
            yield from (block.pieces[place] for block in self.of(parameter))


def _boxes(parameter: Parameter) -> Iterator[Box]:
    shape = parameter.shape
    row_bytes = DTYPES[parameter.dtype].itemsize * (shape[-1] if len(shape) > 1 else 1)
    return row_blocks(shape, row_bytes, BLOCK_BYTES)
