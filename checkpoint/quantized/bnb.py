"""bitsandbytes: 4-bit numbers by a table (NF4, FP4), and 8-bit rows (LLM.int8).

A 4-bit `weight` is the whole matrix in one run of bytes, two codes in each, the first in
the upper half; every `blocksize` consecutive weights share a `weight.absmax`, which may be
quantized itself, by a second table and blocks of its own. `quant_map` is the table, and
`quant_state.bitsandbytes__<type>` a JSON text of the rest. An 8-bit `weight` has `SCB`, the
largest value of each row, at 127. No mode of MLX has such a table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from checkpoint.architecture.kept import Decoded, Kept
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box
from checkpoint.json_file import quoted
from checkpoint.quantized.affine import Affine
from checkpoint.quantized.format import Decoding, Source, floats, misfit
from checkpoint.tensors import TensorRef
from configs.errors import SourceError

NAME = "bitsandbytes"
TYPES = ("nf4", "fp4")
_STATE_LIMIT = 1 << 16
_HALF = 128


def decode(source: Source) -> Decoding:
    """The weights of a bitsandbytes checkpoint.

    Raises:
        SourceError: its tensors don't go together.
    """
    weights: dict[str, Decoded] = {}
    dropped: dict[str, str] = {}
    for name, ref in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "SCB":
            weights[f"{module}.weight"] = _rows(module, source)
        elif leaf == "weight_format":
            _check_format(ref, source)
            dropped[name] = "the layout of 8-bit rows, which is the plain one"
        elif leaf.startswith("bitsandbytes__"):
            weight = name.removesuffix(f".quant_state.{leaf}")
            weights[weight] = _table(weight, leaf.removeprefix("bitsandbytes__"), ref, source)
            dropped[name] = "a text on the weight, which is read"
    return Decoding(weights, dropped)


def _rows(module: str, source: Source) -> Decoded:
    codes = source.need(f"{module}.weight", ("I8",))
    largest = source.need(f"{module}.SCB", ("F32",))
    if len(codes.shape) != 2 or math.prod(largest.shape) != codes.shape[0]:
        raise misfit(largest, f"does not go with codes {list(codes.shape)}")
    refs = (codes, replace(largest, shape=(codes.shape[0],)))
    columns = codes.shape[1]
    return Int8(codes.shape, source.dtype, refs, f"{NAME}, 8 bits by rows", 8, columns, False)


def _check_format(ref: TensorRef, source: Source) -> None:
    if ref.nbytes > _STATE_LIMIT or any(source.bytes_of(ref)):
        raise misfit(ref, "tells of a layout other than plain rows, which can't be read")


def _table(name: str, kind: str, state: TensorRef, source: Source) -> Decoded:
    told = _state(state, source)
    shape, block = told.get("shape"), told.get("blocksize")
    if (
        kind not in TYPES
        or not isinstance(shape, list)
        or len(shape) != 2
        or any(type(size) is not int or size <= 0 for size in shape)
        or type(block) is not int
        or block <= 0
        or block % 2
    ):
        raise misfit(state, f"is no state of {' or '.join(TYPES)} that can be read")
    count = math.prod(shape)
    codes = source.need(name, ("U8",))
    if codes.nbytes != (count + 1) // 2:
        raise misfit(codes, f"does not hold {shape} codes of 4 bits")
    blocks = -(-count // block)
    refs = [replace(codes, shape=(codes.nbytes,)), source.need(f"{name}.quant_map", ("F32",))]
    nested = source.get(f"{name}.nested_absmax")
    refs.append(source.need(f"{name}.absmax", ("F32",) if nested is None else ("U8",)))
    inner: Any = 1
    offset: Any = 0.0
    if nested is not None:
        refs += [
            source.need(f"{name}.nested_absmax", ("F32",)),
            source.need(f"{name}.nested_quant_map", ("F32",)),
        ]
        inner, offset = told.get("nested_blocksize"), told.get("nested_offset")
        if type(inner) is not int or inner <= 0 or not isinstance(offset, int | float):
            raise misfit(state, "does not say how its scales are quantized")
        _check_size(refs[3], -(-blocks // inner))
        _check_size(refs[4], 256)
    _check_size(refs[1], 16)
    _check_size(refs[2], blocks)
    words = f"{NAME}, {kind}, blocks of {block}"
    return Table(tuple(shape), source.dtype, tuple(refs), words, block, inner, float(offset))


def _check_size(ref: TensorRef, count: int) -> None:
    if ref.shape != (count,):
        raise misfit(ref, f"should hold {count} numbers")


def _state(ref: TensorRef, source: Source) -> Mapping[str, Any]:
    error = SourceError(quoted(ref.name), "is no JSON object", "download the checkpoint again")
    if ref.dtype != "U8" or ref.nbytes > _STATE_LIMIT:
        raise error
    try:
        told = json.loads(source.bytes_of(ref))
    except (ValueError, RecursionError) as cause:
        raise error from cause
    if not isinstance(told, dict):
        raise error
    return told


@dataclass(frozen=True, eq=False, slots=True)
class Int8(Affine):
    """Rows of 8-bit integers."""

    def codes(self, box: Box, reader: TensorReader) -> mx.array:
        return reader.read(self.refs[0], box) ^ _HALF  # -128 becomes 0

    def steps(self, box: Box, reader: TensorReader) -> tuple[mx.array, mx.array]:
        steps = floats(self.refs[1], box[:1], reader)[:, None] / 127
        return steps, -_HALF * steps


@dataclass(frozen=True, eq=False, slots=True)
class Table(Decoded):
    """A matrix of 4-bit places in a table, times a scale for each run of weights.

    Attributes:
        block: Weights that share a scale.
        inner: Scales that share a scale of their own, where they are quantized.
        offset: What was taken off the scales before.
    """

    block: int
    inner: int
    offset: float

    def kept(self) -> Kept | None:
        return None

    def decode(self, box: Box, reader: TensorReader) -> mx.array:
        (low, high), (left, right) = box
        rows, columns = self.shape
        first = low * columns // self.block
        last = -(-high * columns // self.block)
        start, stop = first * self.block, min(last * self.block, rows * columns)
        in_bytes = reader.read(self.refs[0], ((start // 2, -(-stop // 2)),))
        codes = mx.stack([in_bytes >> 4, in_bytes & 15], axis=-1).reshape(-1)[: stop - start]
        table = floats(self.refs[1], ((0, 16),), reader)
        scales = mx.repeat(self._scales(first, last, reader), self.block)[: stop - start]
        values = mx.take(table, codes) * scales
        begin = low * columns - start
        whole = values[begin : begin + (high - low) * columns].reshape(high - low, columns)
        return whole[:, left:right]

    def _scales(self, first: int, last: int, reader: TensorReader) -> mx.array:
        if len(self.refs) < 4:
            return floats(self.refs[2], ((first, last),), reader)
        codes = reader.read(self.refs[2], ((first, last),))
        table = floats(self.refs[4], ((0, 256),), reader)
        begin = first // self.inner
        outer = floats(self.refs[3], ((begin, -(-last // self.inner)),), reader)
        places = mx.arange(first, last) // self.inner - begin
        return mx.take(table, codes) * mx.take(outer, places) + self.offset
