"""compressed-tensors: integers packed or plain, FP8, MXFP8, MXFP4 and NVFP4.

What a module holds is told by its tensors. `weight_packed` of 32-bit words holds integers
with 2**(bits - 1) added, consecutive columns from the lowest bits on; of bytes, FP4.
`weight` is FP8 or 8-bit integers. `weight_scale` is [rows, groups], or one for each row,
or one; `weight_zero_point` is packed along the rows, or plain beside plain integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from checkpoint.architecture.kept import Decoded
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.json_file import json_value
from checkpoint.quantized import fp8
from checkpoint.quantized.affine import ActOrder, Affine
from checkpoint.quantized.codes import low_first
from checkpoint.quantized.format import Decoding, Source, floats, misfit, unreadable
from checkpoint.quantized.fp4 import fp4_weight
from checkpoint.tensors import TensorRef

NAME = "compressed-tensors"
BITS = (2, 4, 8)
_FLOATS = ("F16", "BF16", "F32")
_SHAPE = "the weight's shape, which its codes tell"


@dataclass(frozen=True)
class _Scheme:
    """What `config_groups` says of some modules' weights; no group size is a whole row."""

    bits: int
    group_size: int | None
    symmetric: bool


def decode(source: Source) -> Decoding:
    """The weights of a compressed-tensors checkpoint.

    Raises:
        ArchitectureError: it is of a form that can't be read.
        SourceError: its tensors don't go together.
    """
    settings = source.settings
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise unreadable(NAME, f"its sparse format {json_value(sparsity['format'])} can't be read")
    if settings.get("transform_config"):
        raise unreadable(NAME, "its transforms (transform_config) would have to run in the model")
    schemes = tuple(_schemes(settings))
    weights: dict[str, Decoded] = {}
    dropped = fp8.left_out(source.tensors)
    for name, ref in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight_packed" and ref.dtype == "U8":
            scales = source.need(f"{module}.weight_scale", ("U8", "F8_E8M0", "F8_E4M3"))
            factor = source.get(f"{module}.weight_global_scale")
            weights[f"{module}.weight"] = fp4_weight(source, ref, scales, factor, divide=True)
        elif leaf == "weight_packed":
            weights[f"{module}.weight"] = _packed(module, source, schemes)
        elif leaf == "weight" and ref.dtype == "F8_E4M3":
            weights[name] = fp8.decode_weight(name, source)
        elif leaf == "weight" and ref.dtype == "I8":
            weights[name] = _plain(module, source)
        elif leaf == "weight_shape":
            dropped[name] = _SHAPE
    return Decoding(weights, dropped)


def _schemes(settings: Mapping[str, Any]) -> Iterator[_Scheme]:
    """The schemes of integers that config.json names."""
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping):
        raise unreadable(NAME, "config_groups is no object")
    for group in groups.values():
        told = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(told, Mapping) or told.get("type", "int") != "int":
            continue
        bits, size = told.get("num_bits"), told.get("group_size")
        if bits not in BITS:
            raise unreadable(NAME, f"num_bits is {json_value(bits)}; what can be read is 2, 4, 8")
        by_group = told.get("strategy") == "group" or (told.get("strategy") is None and size)
        yield _Scheme(bits, size if by_group else None, told.get("symmetric", True) is True)


def _packed(module: str, source: Source, schemes: tuple[_Scheme, ...]) -> Decoded:
    codes = source.need(f"{module}.weight_packed", ("I32",))
    scales = _scales(source.need(f"{module}.weight_scale", _FLOATS))
    if len(codes.shape) != 2:
        raise misfit(codes, "is no matrix of codes")
    fitting = {
        (
            scheme.bits,
            scheme.group_size or codes.shape[1] * 32 // scheme.bits,
            scheme.symmetric,
        )
        for scheme in schemes
        if _fits(scheme, codes.shape[1] * 32 // scheme.bits, scales.shape[1])
    }
    if len(fitting) != 1:
        raise misfit(codes, f"fits {len(fitting)} of the config's schemes")
    ((bits, size, symmetric),) = fitting
    rows, columns = codes.shape[0], codes.shape[1] * 32 // bits
    zeros = source.get(f"{module}.weight_zero_point")
    if (zeros is None) != symmetric:
        raise misfit(codes, f"has {'no' if zeros is None else 'a'} weight_zero_point")
    if zeros is not None and (
        zeros.dtype != "I32" or zeros.shape != (-(-rows * bits // 32), scales.shape[1])
    ):
        raise misfit(zeros, f"does not go with {rows} rows and {scales.shape[1]} groups")
    return _ordered(module, source, (rows, columns), (codes, scales, zeros), (bits, size))


def _plain(module: str, source: Source) -> Decoded:
    codes = source.tensors[f"{module}.weight"]
    scales = _scales(source.need(f"{module}.weight_scale", _FLOATS))
    if len(codes.shape) != 2 or codes.shape[1] % scales.shape[1]:
        raise misfit(scales, f"does not go with codes {list(codes.shape)}")
    zeros = source.get(f"{module}.weight_zero_point")
    if zeros is not None:
        zeros = _scales(zeros)
        if zeros.dtype != "I8" or zeros.shape != scales.shape:
            raise misfit(zeros, f"does not go with scales {list(scales.shape)}")
    size = codes.shape[1] // scales.shape[1]
    return _ordered(module, source, codes.shape, (codes, scales, zeros), (8, size))


def _fits(scheme: _Scheme, columns: int, groups: int) -> bool:
    size = scheme.group_size or columns
    return -(-columns // size) == groups


def _scales(ref: TensorRef) -> TensorRef:
    """Scales as [rows or 1, groups]."""
    if ref.shape in ((), (1,)):
        return replace(ref, shape=(1, 1))
    if len(ref.shape) == 1:
        return replace(ref, shape=(*ref.shape, 1))
    if len(ref.shape) != 2:
        raise misfit(ref, "is no matrix of scales")
    return ref


def _ordered(
    module: str,
    source: Source,
    shape: tuple[int, ...],
    parts: tuple[TensorRef, TensorRef, TensorRef | None],
    form: tuple[int, int],
) -> Decoded:
    codes, scales, zeros = parts
    bits, size = form
    if scales.shape[0] not in (1, shape[0]):
        raise misfit(scales, f"does not go with {shape[0]} rows")
    told = f"{NAME}, {bits} bits, " + (
        f"groups of {size}" if scales.shape[1] > 1 else "a scale a row"
    )
    refs = (codes, scales, *((zeros,) if zeros is not None else ()))
    exact = zeros is None and mlx_dtype(scales) == source.dtype
    plain = Integers(shape, source.dtype, refs, told, bits, size, exact)
    order = source.get(f"{module}.weight_g_idx")
    if order is None:
        return plain
    if order.shape != (shape[1],) or order.dtype != "I32":
        raise misfit(order, f"does not go with {shape[1]} columns")
    told, groups = f"{told}, act-order", scales.shape[1]
    return ActOrder(shape, source.dtype, (*refs, order), told, plain, order, groups)


@dataclass(frozen=True, eq=False, slots=True)
class Integers(Affine):
    """Integer codes, packed in words or one a byte."""

    def codes(self, box: Box, reader: TensorReader) -> mx.array:
        rows, (low, high) = box
        codes = self.refs[0]
        if codes.dtype == "I8":
            return reader.read(codes, box) ^ 0x80  # -128 becomes 0
        each = 32 // self.bits
        start, stop = low // each, -(-high // each)
        found = low_first(reader.read(codes, (rows, (start, stop))), self.bits)
        return found[:, low - start * each : high - start * each]

    def words(self, rows: Box, reader: TensorReader) -> mx.array:
        codes = self.refs[0]
        if codes.dtype == "I8":
            return (reader.read(codes, (*rows, (0, codes.shape[1]))) ^ 0x80).view(mx.uint32)
        return reader.read(codes, (*rows, (0, codes.shape[1])))

    def steps(self, box: Box, reader: TensorReader) -> tuple[mx.array, mx.array]:
        rows, groups = box
        scales = self.refs[1]
        kept_rows = rows if scales.shape[0] > 1 else (0, 1)
        shape = (rows[1] - rows[0], groups[1] - groups[0])
        steps = mx.broadcast_to(floats(scales, (kept_rows, groups), reader), shape)
        return steps, -steps * self._zeros(rows, kept_rows, groups, reader)

    def _zeros(
        self,
        rows: tuple[int, int],
        kept_rows: tuple[int, int],
        groups: tuple[int, int],
        reader: TensorReader,
    ) -> mx.array:
        half = mx.array(2.0 ** (self.bits - 1))
        if len(self.refs) < 3:
            return half
        zeros = self.refs[2]
        if zeros.dtype == "I8":
            return reader.read(zeros, (kept_rows, groups)).view(mx.int8).astype(mx.float32) + half
        each = 32 // self.bits
        start, stop = rows[0] // each, -(-rows[1] // each)
        words = reader.read(zeros, ((start, stop), groups))
        codes = low_first(mx.contiguous(words.T), self.bits)
        return codes[:, rows[0] - start * each : rows[1] - start * each].T.astype(mx.float32)
