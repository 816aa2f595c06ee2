"""FP8 (E4M3) weights with scales for blocks, rows or whole tensors.

Beside a weight of dtype F8_E4M3 lies `<name>_scale_inv` (DeepSeek and transformers) or
`<name>_scale` (compressed-tensors, ModelOpt, FBGEMM); the plain weight is code times scale.
Scales that are powers of two over 32 columns or more fit MLX's `mxfp8` mode exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from checkpoint.architecture.kept import Decoded, Kept
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, Copy, Recipe
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.json_file import quoted
from checkpoint.packing import Quantization
from checkpoint.quantized.codes import powers_of_two
from checkpoint.quantized.format import (
    ACTIVATIONS,
    CACHE_SCALE,
    Decoding,
    Source,
    misfit,
    unreadable,
)
from checkpoint.tensors import TensorRef
from configs.errors import SourceError

NAME = "FP8"
SUFFIXES = ("_scale_inv", "_scale")
_SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
_POWERS = ("F8_E8M0", "U8")
_MXFP8 = Quantization(8, 32, "mxfp8")
_DROPPED = (
    (re.compile(r"(\.|_)(input|activation)_(global_)?scale(_inv|_ub)?$"), ACTIVATIONS),
    (re.compile(r"\.(k|v|q|kv|output|prob_output)_(proj\.output_)?scale$"), CACHE_SCALE),
)


def decode(source: Source) -> Decoding:
    """The weights of an FP8 checkpoint.

    Raises:
        ArchitectureError: it is of a form that can't be read.
        SourceError: its tensors don't go together.
    """
    weights: dict[str, Recipe] = {
        name: decode_weight(name, source)
        for name, ref in source.tensors.items()
        if ref.dtype == "F8_E4M3"
    }
    return Decoding(weights, left_out(source.tensors))


def left_out(tensors: Mapping[str, TensorRef]) -> dict[str, str]:
    """Scales that are not of weights, each with the reason why it is not needed."""
    return {
        name: reason
        for name in tensors
        for pattern, reason in _DROPPED
        if pattern.search(name) and len(tensors[name].shape) <= 1
    }


def decode_weight(name: str, source: Source) -> Decoded:
    """One FP8 weight with its scales.

    Raises:
        SourceError: it has none, or they don't fit.
    """
    codes = source.tensors[name]
    found = [ref for end in SUFFIXES if (ref := source.get(f"{name}{end}")) is not None]
    if len(found) != 1:
        raise misfit(codes, f"has {len(found)} tensors of scales")
    scales = found[0]
    if scales.dtype not in _SCALES:
        raise misfit(scales, f"is no scale of {NAME} that can be read")
    if len(codes.shape) < 2:
        raise misfit(codes, "is no matrix of codes")
    shape = _scale_shape(codes, scales)
    told_rows, told_columns = _told_block(source.settings)
    block = (
        _side(codes.shape[-2], shape[-2], told_rows, scales),
        _side(codes.shape[-1], shape[-1], told_columns, scales),
    )
    told = f"{NAME}, {_in_words(codes.shape, block)}"
    powers = scales.dtype in _POWERS or source.settings.get("scale_fmt") == "ue8m0"
    refs = (codes, replace(scales, shape=shape))
    return Fp8(codes.shape, source.dtype, refs, told, block, powers)


def _scale_shape(codes: TensorRef, scales: TensorRef) -> tuple[int, ...]:
    """The scales' shape with as many axes as the codes have."""
    *lead, rows, _ = codes.shape
    found = scales.shape
    if len(found) == len(codes.shape) and found[:-2] == tuple(lead):
        return found
    if found in ((), (1,)):
        return (1,) * len(codes.shape) if not lead else _none(scales)
    if found == (*lead, rows):
        return (*found, 1)
    if lead and found == tuple(lead):
        return (*found, 1, 1)
    return _none(scales)


def _none(scales: TensorRef) -> tuple[int, ...]:
    raise misfit(scales, "does not fit the codes that it should scale")


def _told_block(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Rows and columns of a block, if config.json says."""
    told = settings.get("weight_block_size")
    if told is None:
        return None, None
    if not isinstance(told, list) or len(told) != 2 or any(type(n) is not int for n in told):
        raise unreadable(NAME, "weight_block_size is no pair of numbers")
    return told[0], told[1]


def _side(size: int, count: int, told: int | None, scales: TensorRef) -> int:
    """Weights along one axis that share a scale."""
    if count == 1 and (told is None or size <= told):
        return max(1, size)
    if count == size:
        return 1
    if told is None and count and not size % count:
        return size // count
    if told is None or told <= 0 or -(-size // told) != count:
        raise misfit(scales, f"does not cut an axis of {size} in {count} blocks")
    return told


def _in_words(shape: tuple[int, ...], block: tuple[int, int]) -> str:
    rows, columns = block
    if columns == shape[-1]:
        return "a scale a row" if rows == 1 else "a scale a tensor"
    return f"scales of {rows} x {columns} blocks"


@dataclass(frozen=True, eq=False, slots=True)
class Fp8(Decoded):
    """An FP8 weight, [..., rows, columns].

    Attributes:
        block: Rows and columns that share a scale.
        powers: Whether the source says that all scales are powers of two.
    """

    block: tuple[int, int]
    powers: bool

    def decode(self, box: Box, reader: TensorReader) -> mx.array:
        values = mx.from_fp8(reader.read(self.refs[0], box), mx.float32)
        scales = self._spread(box, self.block, reader)
        if self.refs[1].dtype in _POWERS:
            scales = powers_of_two(scales)
        return values * scales

    def _spread(self, box: Box, block: tuple[int, int], reader: TensorReader) -> mx.array:
        """The scale of each place of a box: float32, or bytes where they are exponents."""
        *lead, rows, columns = box
        cuts = [
            (low // size, -(-high // size))
            for (low, high), size in zip((rows, columns), block, strict=True)
        ]
        ref = self.refs[1]
        scales = reader.read(ref, (*lead, *cuts))
        if ref.dtype not in _POWERS:
            scales = scales.view(mlx_dtype(ref)).astype(mx.float32)
        for axis, (low, high), size, (first, _) in zip(
            (-2, -1), (rows, columns), block, cuts, strict=True
        ):
            if size > 1:
                scales = mx.take(scales, mx.arange(low, high) // size - first, axis=axis)
        return scales

    def exponents(self, box: Box, reader: TensorReader) -> mx.array:
        """Biased exponents of the scales, uint8; the box's last axis counts groups of 32."""
        rows, columns = self.block
        scales = self._spread(box, (rows, columns // 32), reader)
        if self.refs[1].dtype in _POWERS:
            return scales
        bits = scales.view(mx.uint32)
        exponents = bits >> 23
        plain = ((bits & 0x7FFFFF) == 0) & (exponents > 0) & (exponents < 255)
        if not plain.all().item():
            raise SourceError(
                quoted(self.refs[1].name),
                "holds scales that are no powers of two, though config.json says ue8m0",
                "take scale_fmt out of its quantization_config",
            )
        return exponents.astype(mx.uint8)

    def kept(self) -> Kept | None:
        *rows, columns = self.shape
        if not self.powers or columns % 32 or self.block[1] % 32:
            return None
        codes = self.refs[0]
        words = replace(codes, dtype="U32", shape=(*rows, columns // 4))
        parts: tuple[Recipe, ...] = (
            Copy(words.shape, mx.uint32, words),
            _Exponents((*rows, columns // 32), mx.uint8, self),
        )
        return Kept(_MXFP8, parts, True)


@dataclass(frozen=True, eq=False, slots=True)
class _Exponents(Recipe):
    """The scales of an FP8 weight as `mxfp8` has them."""

    weight: Fp8

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        return self.weight.exponents(box, reader)
