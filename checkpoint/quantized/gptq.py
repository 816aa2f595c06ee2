"""GPTQ, as AutoGPTQ and GPTQModel save it.

`qweight` [columns * bits / 32, rows] packs the codes of 32 / bits consecutive columns in
a word, first in the lowest bits; `scales` [groups, rows]; `qzeros` [groups, rows * bits / 32]
packs the zero points, each one too small unless `checkpoint_format` is `gptq_v2`; `g_idx`
[columns] gives each column's group. A weight is `scale * (code - zero)`. Without act-order
the groups are consecutive columns, and the codes are those of MLX's `affine` mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from checkpoint.architecture.kept import Decoded
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.json_file import quoted
from checkpoint.quantized.affine import ActOrder, Affine
from checkpoint.quantized.codes import low_first
from checkpoint.quantized.format import Decoding, Source, floats, integer, misfit, unreadable
from checkpoint.tensors import TensorRef
from configs.errors import SourceError

NAME = "GPTQ"
BITS = (2, 4, 8)
_FLOATS = ("F16", "BF16", "F32")
_FORMATS = ("gptq", "gptq_v2")


def decode(source: Source) -> Decoding:
    """The weights of a GPTQ checkpoint.

    Raises:
        ArchitectureError: it is of a form that can't be read.
        SourceError: its tensors don't go together.
    """
    settings = source.settings
    version = settings.get("checkpoint_format") or "gptq"
    if version not in _FORMATS:
        raise unreadable(NAME, f"checkpoint_format {quoted(str(version))} can't be read")
    weights: dict[str, Decoded] = {}
    for name in source.tensors:
        module, _, leaf = name.rpartition(".")
        if leaf == "qweight":
            weight = _weight(module, source, first_zero=1 if version == "gptq" else 0)
            weights[f"{module}.weight"] = weight
    return Decoding(weights)


def _weight(module: str, source: Source, first_zero: int) -> Decoded:
    settings = source.settings
    codes = source.need(f"{module}.qweight", ("I32",))
    scales = source.need(f"{module}.scales", _FLOATS)
    zeros = source.need(f"{module}.qzeros", ("I32",))
    order = source.get(f"{module}.g_idx")
    bits = _bits(settings, codes, order)
    if len(codes.shape) != 2 or len(scales.shape) != 2:
        raise misfit(codes, "is no matrix of codes")
    columns, rows = codes.shape[0] * 32 // bits, codes.shape[1]
    groups = scales.shape[0]
    size = _group_size(settings, columns, groups, scales)
    if scales.shape != (groups, rows):
        raise misfit(scales, f"does not go with codes of {rows} rows")
    if zeros.shape != (groups, rows * bits // 32):
        raise misfit(zeros, f"does not go with {groups} groups of {rows} rows")
    if order is not None and (order.shape != (columns,) or order.dtype != "I32"):
        raise misfit(order, f"does not go with {columns} columns")
    told = f"{NAME}, {bits} bits, groups of {size}"
    act_order = bool(settings.get("desc_act"))
    refs = (codes, scales, zeros, *((order,) if order is not None else ()))
    symmetric = settings.get("sym") is True
    exact = symmetric and mlx_dtype(scales) == source.dtype
    if act_order and order is not None:
        plain = Gptq((rows, columns), source.dtype, refs[:3], told, bits, size, exact, first_zero)
        return ActOrder(plain.shape, source.dtype, refs, f"{told}, act-order", plain, order, groups)
    return Gptq((rows, columns), source.dtype, refs, told, bits, size, exact, first_zero)


def _bits(settings: Mapping[str, Any], codes: TensorRef, order: TensorRef | None) -> int:
    """Bits of a module's codes: as its tensors say, where GPTQModel's `dynamic` may differ."""
    told = integer(settings, "bits", BITS, NAME)
    if not settings.get("dynamic"):
        return told
    if order is None:
        raise unreadable(NAME, f"{quoted(codes.name)} has no g_idx to tell its bits by")
    found, rest = divmod(codes.shape[0] * 32, max(1, order.shape[0]))
    if rest or found not in BITS:
        raise unreadable(NAME, f"{quoted(codes.name)} has codes of {found} bits")
    return found


def _group_size(settings: Mapping[str, Any], columns: int, groups: int, scales: TensorRef) -> int:
    told = settings.get("group_size", -1)
    if settings.get("dynamic"):
        told = -(-columns // max(1, groups))
    size = columns if told == -1 else told
    if type(size) is not int or size <= 0 or -(-columns // size) != groups:
        raise misfit(scales, f"does not go with {columns} columns in groups of {size}")
    return size


def _zeros(ref: TensorRef, bits: int, first: int, box: Box, reader: TensorReader) -> mx.array:
    """Zero points [groups, rows] of a box of them, float32."""
    groups, (low, high) = box
    each = 32 // bits
    start, stop = low // each, -(-high // each)
    words = reader.read(ref, (groups, (start, stop)))
    codes = low_first(words, bits)[:, low - start * each : high - start * each]
    # As AutoGPTQ has it: a zero point of 0 was saved as the largest code.
    return ((codes + first) & ((1 << bits) - 1)).astype(mx.float32)


@dataclass(frozen=True, eq=False, slots=True)
class Gptq(Affine):
    """A weight whose groups are consecutive columns."""

    first_zero: int

    def codes(self, box: Box, reader: TensorReader) -> mx.array:
        rows, (low, high) = box
        each = 32 // self.bits
        start, stop = low // each, -(-high // each)
        words = reader.read(self.refs[0], ((start, stop), rows))
        codes = low_first(mx.contiguous(words.T), self.bits)
        return codes[:, low - start * each : high - start * each]

    def words(self, rows: Box, reader: TensorReader) -> mx.array:
        return reader.read(self.refs[0], ((0, self.refs[0].shape[0]), *rows)).T

    def steps(self, box: Box, reader: TensorReader) -> tuple[mx.array, mx.array]:
        rows, groups = box
        self._check_order(reader)
        scales = floats(self.refs[1], (groups, rows), reader).T
        zeros = _zeros(self.refs[2], self.bits, self.first_zero, (groups, rows), reader).T
        return scales, -scales * zeros

    def _check_order(self, reader: TensorReader) -> None:
        if len(self.refs) < 4:
            return
        order = self.refs[3]
        found = reader.read(order, ((0, order.shape[0]),))
        plain = mx.arange(order.shape[0]) // self.group_size
        if not mx.array_equal(found, plain.astype(mx.uint32)).item():
            raise SourceError(
                quoted(order.name),
                "orders the columns, though config.json says desc_act is false",
                "set desc_act to true in quantization_config",
            )
