"""The blocks of a plan: every byte of every shard once, each block known by its number."""

from __future__ import annotations

import math

import pytest

from convert import blocks
from convert.blocks import Block, Blocks, Piece
from convert.plan import OutputTensor, Parameter, Plan, Quantization, lay_out


def quantized(name: str, shape: tuple[int, ...]) -> Parameter:
    """4 bits in groups of 32 of bfloat16."""
    *rows, columns = shape
    outputs = (
        tensor(f"{name}.weight", "U32", (*rows, columns // 8)),
        tensor(f"{name}.scales", "BF16", (*rows, columns // 32)),
        tensor(f"{name}.biases", "BF16", (*rows, columns // 32)),
    )
    how = Quantization(4, 32, "affine")
    return Parameter(f"{name}.weight", shape, "BF16", "quantize", how, outputs, (name,))


def copied(name: str, shape: tuple[int, ...], dtype: str = "BF16") -> Parameter:
    return Parameter(name, shape, dtype, "copy", None, (tensor(name, dtype, shape),), (name,))


def tensor(name: str, dtype: str, shape: tuple[int, ...]) -> OutputTensor:
    size = {"U32": 4, "F32": 4, "BF16": 2}[dtype]
    return OutputTensor(name, dtype, shape, size * math.prod(shape))


PARAMETERS = (
    quantized("embed", (50, 64)),
    copied("norm", (1000,)),
    quantized("experts", (3, 7, 64)),
    copied("scalar", ()),
    copied("empty", (0, 4)),
    copied("wide", (2, 5, 3, 11), "F32"),
)


@pytest.mark.parametrize("block_bytes", [1, 100, 512, 4096, 1 << 20])
@pytest.mark.parametrize("shard_bytes", [3000, 1 << 20])
def test_every_byte_once(
    block_bytes: int, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    plan = Plan(PARAMETERS, lay_out(PARAMETERS, shard_bytes), 0)
    cut = Blocks(plan)
    every: list[Block] = [block for each in plan.parameters for block in cut.of(each)]
    assert [block.number for block in every] == list(range(cut.count))
    pieces: list[Piece] = [piece for block in every for piece in block.pieces]
    assert [piece.number for piece in pieces] == list(range(cut.pieces))
    assert sum(block.nbytes for block in every) == plan.tensor_bytes
    for block in every:
        assert [piece.number for piece in block.pieces] == list(cut.pieces_of(block.number))
    for shard in plan.shards:
        at = len(shard.header)
        for piece in cut.pieces_in_order(shard):
            assert piece.offset == at
            at += piece.nbytes
        assert at == shard.nbytes
        assert all(cut.shard_of(block.parameter) is shard for block in cut.in_shard(shard))


def test_a_number_of_no_block() -> None:
    plan = Plan(PARAMETERS, lay_out(PARAMETERS, 1 << 20), 0)
    cut = Blocks(plan)
    assert cut.count == len(PARAMETERS)
    assert not cut.pieces_of(cut.count) and not cut.pieces_of(10**11)
