"""Weights that a source holds packed, as recipes of the plain weights.

Owns the way from codes, scales and biases to floating-point numbers, row block by row
block, and back to the codes themselves where nothing is to change. What belongs to
which weight is for `checkpoint.packing` to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from checkpoint.architecture.reader import TensorReader, same_bytes
from checkpoint.architecture.recipes import Box, Copy, Elementwise, Recipe
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.folder import CONFIG
from checkpoint.packing import PackedWeight, Quantization, read_packing
from checkpoint.tensors import Catalog, TensorRef
from configs.errors import ModelConfigError, SourceError

_LEAST_COLUMNS = 32
_FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, eq=False, slots=True)
class Dequantize(Recipe):
    """The plain weight of a packed one, [..., rows, columns].

    Computed in float32 and rounded once, to `dtype`.
    """

    packed: PackedWeight

    @property
    def form(self) -> Quantization:
        """How the source has it packed."""
        return self.packed.form

    @property
    def reads(self) -> int:
        return 4  # the codes, and float32 beside what it becomes

    def read(self, box: Box, reader: TensorReader) -> mx.array:
        packed, form = self.packed, self.packed.form
        rows, (low, high) = box[:-1], box[-1]
        # Whole groups, and no fewer columns than MLX dequantizes at a time.
        step = max(form.group_size, _LEAST_COLUMNS)
        start, stop = low // step * step, min(-(-high // step) * step, self.shape[-1])
        codes = reader.read(packed.weight, (*rows, _per(start, stop, 32, form.bits)))
        groups = (*rows, _per(start, stop, form.group_size))
        scales = self._read(packed.scales, groups, reader)
        biases = self._read(packed.biases, groups, reader) if packed.biases else None
        if packed.global_scale is None:
            values = self._values(codes, scales, biases, None)
        else:
            factors = self._read(packed.global_scale, rows[:-1], reader)
            values = self._scaled(codes, scales, factors)
        return values[..., low - start : high - start].astype(self.dtype)

    def sources(self) -> Iterator[TensorRef]:
        yield from self.packed.parts

    def _read(self, ref: TensorRef, box: Box, reader: TensorReader) -> mx.array:
        """Scales or biases; floats of any width as float32."""
        dtype = mlx_dtype(ref)
        read = reader.read(ref, box).view(dtype)
        return read.astype(mx.float32) if mx.issubdtype(dtype, mx.floating) else read

    def _scaled(self, codes: mx.array, scales: mx.array, factors: mx.array) -> mx.array:
        """Matrices that have a factor each, one after the other."""
        flat = math.prod(codes.shape[:-2])
        pieces = [
            self._values(matrix, steps, None, factor)
            for matrix, steps, factor in zip(
                codes.reshape(flat, *codes.shape[-2:]),
                scales.reshape(flat, *scales.shape[-2:]),
                factors.reshape(flat),
                strict=True,
            )
        ]
        return mx.stack(pieces).reshape(*codes.shape[:-1], -1)

    def _values(
        self, codes: mx.array, scales: mx.array, biases: mx.array | None, factor: mx.array | None
    ) -> mx.array:
        form = self.packed.form
        return mx.dequantize(
            codes,
            scales,
            biases,
            group_size=form.group_size,
            bits=form.bits,
            mode=form.mode,
            global_scale=factor,
            dtype=mx.float32,
        )


def plain_view(
    config: Mapping[str, Any], catalog: Catalog, dtype: mx.Dtype | None
) -> dict[str, Recipe]:
    """The tensors of an MLX folder as if none were packed.

    Args:
        config: config.json, its `quantization` included.
        catalog: The folder's tensors.
        dtype: What packed weights become; that of their scales when None, or, where the
            scales are no floats, the config's.

    Raises:
        ModelConfigError: `quantization` is not of a form that is known.
        SourceError: a packed weight is not of the form that the config gives it.
    """
    packing = read_packing(config, catalog, Path(CONFIG))
    for where, what in packing.faults:
        error = ModelConfigError if where == CONFIG else SourceError
        raise error(where, what, "the folder is damaged, or config.json was edited")
    recipes: dict[str, Recipe] = {
        name: Copy(ref.shape, mlx_dtype(ref), ref) for name, ref in packing.plain.items()
    }
    for module, packed in packing.packed.items():
        of_scales = mlx_dtype(packed.scales)
        if not mx.issubdtype(of_scales, mx.floating):
            of_scales = config_dtype(config)
        recipes[f"{module}.weight"] = Dequantize(packed.shape, dtype or of_scales, packed)
    return dict(sorted(recipes.items()))


def _per(start: int, stop: int, size: int, times: int = 1) -> tuple[int, int]:
    return start * times // size, stop * times // size


def same_tensors(one: Recipe, other: Recipe) -> bool:
    """Whether two source tensors, packed or cast or as they are, hold the same bytes."""
    if isinstance(one, Elementwise) and isinstance(other, Elementwise):  # both cast
        (one,), (other,) = one.parts, other.parts
        return same_tensors(one, other)
    if isinstance(one, Copy) and isinstance(other, Copy):
        return _same(one.ref, other.ref)
    if isinstance(one, Dequantize) and isinstance(other, Dequantize):
        pairs = list(zip(one.packed.parts, other.packed.parts, strict=False))
        as_many = len(one.packed.parts) == len(other.packed.parts)
        return as_many and one.form == other.form and all(_same(*pair) for pair in pairs)
    return False


def _same(one: TensorRef, other: TensorRef) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and same_bytes(one, other)


def config_dtype(config: Mapping[str, Any]) -> mx.Dtype:
    """The floating dtype that a config names; bfloat16 if it names none."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in ("torch_dtype", "dtype"):
            if part.get(key) in _FLOATS:
                found: mx.Dtype = getattr(mx, part[key])
                return found
    return mx.bfloat16
