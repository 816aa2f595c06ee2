"""AWQ, as AutoAWQ saves it for its GEMM kernel.

`qweight` [columns, rows / 8] packs the 4-bit codes of eight consecutive rows in a word, in
the order 0 2 4 6 1 3 5 7 from the lowest bits; `qzeros` [groups, rows / 8] the zero points
likewise; `scales` [groups, rows]. A weight is `scale * (code - zero)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from checkpoint.architecture.kept import Decoded
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box
from checkpoint.json_file import json_value
from checkpoint.quantized.affine import Affine
from checkpoint.quantized.format import Decoding, Source, floats, integer, misfit, unreadable

NAME = "AWQ"
_BITS = 4
_EACH = 32 // _BITS
# Where, in units of four bits, the code of each of a word's eight rows lies.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def decode(source: Source) -> Decoding:
    """The weights of an AWQ checkpoint.

    Raises:
        ArchitectureError: it is of a form that can't be read.
        SourceError: its tensors don't go together.
    """
    settings = source.settings
    integer({"bits": settings.get("bits", settings.get("w_bit"))}, "bits", (_BITS,), NAME)
    version = settings.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise unreadable(NAME, f"its version {json_value(version)} can't be read, only gemm")
    size = settings.get("group_size", settings.get("q_group_size", 128))
    if type(size) is not int or (size != -1 and size <= 0):
        raise unreadable(NAME, f"group_size is {json_value(size)}")
    weights: dict[str, Decoded] = {}
    for name in source.tensors:
        module, _, leaf = name.rpartition(".")
        if leaf == "qweight":
            weights[f"{module}.weight"] = _weight(module, source, size)
    return Decoding(weights)


def _weight(module: str, source: Source, group_size: int) -> Decoded:
    codes = source.need(f"{module}.qweight", ("I32",))
    scales = source.need(f"{module}.scales", ("F16", "BF16", "F32"))
    if len(codes.shape) != 2:
        raise misfit(codes, "is no matrix of codes")
    columns, rows = codes.shape[0], codes.shape[1] * _EACH
    size = columns if group_size == -1 else group_size
    groups = -(-columns // size)
    if scales.shape != (groups, rows):
        raise misfit(scales, f"does not go with {rows} x {columns} codes in groups of {size}")
    zeros = source.get(f"{module}.qzeros")
    if zeros is not None and (zeros.dtype, zeros.shape) != ("I32", (groups, rows // _EACH)):
        raise misfit(zeros, f"does not go with {groups} groups of {rows} rows")
    told = f"{NAME}, {_BITS} bits, groups of {size}"
    refs = (codes, scales, *((zeros,) if zeros is not None else ()))
    # A product of a scale and a zero point has more digits than a half-precision float.
    exact = scales.dtype == "F32" and source.dtype == mx.float32
    return Awq((rows, columns), source.dtype, refs, told, _BITS, size, exact)


def _by_rows(words: mx.array, low: int, high: int) -> mx.array:
    """Codes [n, rows] of words [n, rows / 8] whose first row is a multiple of eight."""
    shifts = mx.array(_PLACES, mx.uint32) * _BITS
    codes = ((words[..., None] >> shifts) & 15).astype(mx.uint8)
    return codes.reshape(words.shape[0], -1)[:, low % _EACH : low % _EACH + high - low]


@dataclass(frozen=True, eq=False, slots=True)
class Awq(Affine):
    """An AWQ weight."""

    def codes(self, box: Box, reader: TensorReader) -> mx.array:
        (low, high), columns = box
        words = reader.read(self.refs[0], (columns, (low // _EACH, -(-high // _EACH))))
        return mx.contiguous(_by_rows(words, low, high).T)

    def steps(self, box: Box, reader: TensorReader) -> tuple[mx.array, mx.array]:
        (low, high), groups = box
        scales = floats(self.refs[1], (groups, (low, high)), reader).T
        if len(self.refs) < 3:
            return scales, -8 * scales
        words = reader.read(self.refs[2], (groups, (low // _EACH, -(-high // _EACH))))
        zeros = _by_rows(words, low, high).T.astype(mx.float32)
        return scales, -scales * zeros
