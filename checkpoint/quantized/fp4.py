"""FP4 (E2M1) weights in small groups: MXFP4 as gpt-oss has it, and NVFP4.

Codes lie two in a byte, the first in the lower half. MXFP4 has a power of two for every 32
of a row, NVFP4 an FP8 number for every 16 and a float for the whole tensor. MXFP4 is
MLX's `mxfp4` mode; NVFP4 with that float has no mode that holds it exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import mlx.core as mx

from checkpoint.architecture.kept import Decoded, Kept
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, Copy, Recipe
from checkpoint.packing import Quantization
from checkpoint.quantized import fp8
from checkpoint.quantized.format import Decoding, Source, floats, misfit, unreadable
from checkpoint.tensors import TensorRef

MXFP4, NVFP4 = Quantization(4, 32, "mxfp4"), Quantization(4, 16, "nvfp4")
_LEAST_COLUMNS = 32  # that MLX dequantizes at a time
_EXPONENTS = ("U8", "F8_E8M0")


def decode_mxfp4(source: Source) -> Decoding:
    """The experts of gpt-oss: `*_blocks` [experts, rows, groups, 16] and `*_scales`."""
    weights: dict[str, Decoded] = {}
    for name, blocks in source.tensors.items():
        stem = name.removesuffix("_blocks")
        if stem == name:
            continue
        scales = source.need(f"{stem}_scales", _EXPONENTS)
        if blocks.dtype != "U8" or blocks.shape != (*scales.shape, 16) or len(blocks.shape) < 3:
            raise misfit(blocks, "are no blocks of 32 weights, one for each scale")
        codes = replace(blocks, shape=(*scales.shape[:-1], scales.shape[-1] * 16))
        # With rows before columns, as Linear has them and transformers' experts do not.
        weights[f"{stem}.weight"] = fp4_weight(source, codes, scales, None, divide=False)
    return Decoding(weights)


def decode_modelopt(source: Source) -> Decoding:
    """NVFP4 and FP8 as NVIDIA's ModelOpt saves them.

    NVFP4 has `weight` [rows, columns / 2] in bytes, `weight_scale` [rows, columns / 16]
    in FP8 and `weight_scale_2`, a float, to be multiplied.
    """
    algorithm = source.settings.get("quant_algo")
    quantization = source.settings.get("quantization")
    if algorithm is None and isinstance(quantization, Mapping):
        algorithm = quantization.get("quant_algo")
    if algorithm not in ("NVFP4", "FP8", "MIXED_PRECISION"):
        raise unreadable("ModelOpt", f"its {algorithm} can't be read, only NVFP4 and FP8")
    weights: dict[str, Decoded] = {}
    dropped = fp8.left_out(source.tensors)
    for name, ref in source.tensors.items():
        if name.endswith((".weight_scale", "_scale_inv")):
            continue
        if ref.dtype == "F8_E4M3":
            weights[name] = fp8.decode_weight(name, source)
        elif ref.dtype == "U8" and f"{name}_scale" in source.tensors:
            scales = source.need(f"{name}_scale", ("F8_E4M3",))
            factor = source.need(f"{name}_scale_2", ("F32",))
            weights[name] = fp4_weight(source, ref, scales, factor, divide=False)
    return Decoding(weights, dropped)


def fp4_weight(
    source: Source, codes: TensorRef, scales: TensorRef, factor: TensorRef | None, *, divide: bool
) -> Decoded:
    """One FP4 weight.

    Args:
        source: The checkpoint.
        codes: [..., rows, columns / 2] bytes.
        scales: [..., rows, groups]; FP8 numbers make it NVFP4, bytes MXFP4.
        factor: A float for the whole tensor.
        divide: Whether that divides the scales, rather than multiply them.

    Raises:
        SourceError: they don't go together.
    """
    form = NVFP4 if scales.dtype == "F8_E4M3" else MXFP4
    if codes.dtype != "U8" or len(codes.shape) < 2:
        raise misfit(codes, "is no matrix of 4-bit codes")
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    if scales.shape != (*shape[:-1], shape[-1] // form.group_size) or shape[-1] % form.group_size:
        raise misfit(scales, f"does not go with codes {list(codes.shape)} of {form.mode}")
    if factor is not None and factor.shape not in ((), (1,)):
        raise misfit(factor, "is no single factor")
    refs = (codes, scales, *((factor,) if factor is not None else ()))
    told = {NVFP4: "NVFP4, groups of 16", MXFP4: "MXFP4, groups of 32"}[form]
    return Fp4(shape, source.dtype, refs, told, form, divide)


@dataclass(frozen=True, eq=False, slots=True)
class Fp4(Decoded):
    """An FP4 weight, [..., rows, columns].

    Attributes:
        form: MLX's mode of the same codes and groups.
        divide: Whether the factor of the whole tensor divides.
    """

    form: Quantization
    divide: bool

    def decode(self, box: Box, reader: TensorReader) -> mx.array:
        *rows, (low, high) = box
        size, columns = self.form.group_size, self.shape[-1]
        first = low // _LEAST_COLUMNS * _LEAST_COLUMNS
        last = min(-(-high // _LEAST_COLUMNS) * _LEAST_COLUMNS, columns)
        values = mx.dequantize(
            reader.read(self._words, (*rows, (first // 8, last // 8))),
            reader.read(self.refs[1], (*rows, (first // size, last // size))),
            group_size=size,
            bits=4,
            mode=self.form.mode,
            dtype=mx.float32,
        )
        if len(self.refs) > 2:
            ref = self.refs[2]
            factor = floats(ref, tuple((0, length) for length in ref.shape), reader)
            values = values / factor if self.divide else values * factor
        return values[..., low - first : high - first]

    @property
    def _words(self) -> TensorRef:
        """The codes as MLX has them: the same bytes, eight codes at a time."""
        codes = self.refs[0]
        return replace(codes, dtype="U32", shape=(*codes.shape[:-1], codes.shape[-1] // 4))

    def kept(self) -> Kept | None:
        if len(self.refs) > 2:
            return None
        words, scales = self._words, self.refs[1]
        parts: tuple[Recipe, ...] = (
            Copy(words.shape, mx.uint32, words),
            Copy(scales.shape, mx.uint8, scales),
        )
        return Kept(self.form, parts, True)
