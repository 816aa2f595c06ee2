"""Measures how far two tensors are apart, row block by row block.

Owns the figures of one pair. Everything is computed in float32 over values brought to
[-1, 1], and added up in double precision, so that neither large nor small weights are
lost. Knows nothing of folders or names.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import mlx.core as mx

from checkpoint.architecture.packed import Dequantize
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, Copy, Recipe, box_shape, row_blocks
from checkpoint.dtypes import DTYPES
from convert.diff_report import State, Sums

# Larger ones fall out of the processor's caches.
_BLOCK_BYTES = 2 << 20
_FLOAT32_BYTES = 4
_CACHED_BYTES = 32 << 20
_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
_FP8 = "F8_E4M3"
_INFINITY = 0x7F800000
_NAMES = {dtype.mlx: dtype.name for dtype in DTYPES.values() if not dtype.needs_scales}


@dataclass(frozen=True)
class Measured:
    """How far two tensors are apart; see `TensorDiff`."""

    state: State
    sums: Sums | None
    largest: float | None


def form_of(recipe: Recipe) -> str:
    """How a folder holds a tensor, in words: its dtype, or how it is packed."""
    if isinstance(recipe, Dequantize):
        return str(recipe.form)
    if isinstance(recipe, Copy):
        return recipe.ref.dtype
    return _NAMES[str(recipe.dtype).removeprefix("mlx.core.")]


class Measurer:
    """Measures pairs of tensors; a context manager that closes its files at the end."""

    def __init__(self) -> None:
        self._readers = TensorReader(), TensorReader()
        # A CPU stream is one thread, so there are two; a GPU fills itself from one.
        device = mx.default_device()
        self._streams = [mx.default_stream(device)]
        if device == mx.Device(mx.cpu):
            self._streams = [mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)]
        self._cached = 0

    def __enter__(self) -> Self:
        # Memory that MLX keeps for reuse counts as ours.
        self._cached = mx.set_cache_limit(_CACHED_BYTES)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        mx.set_cache_limit(self._cached)
        for reader in self._readers:
            reader.__exit__(kind, error, trace)

    def measure(self, one: Recipe, other: Recipe, tell: Callable[[int], None]) -> Measured:
        """Compare two tensors of one shape.

        Args:
            one: A's, to which the error is relative.
            other: B's.
            tell: Told, after each block, how many elements it had.

        Raises:
            DiskError: A file can't be read.
            SourceError: One ends too early.
        """
        total = _Total(same_form=_same_form(one, other))
        row_bytes = _FLOAT32_BYTES * (one.shape[-1] if len(one.shape) > 1 else 1)
        turns = itertools.cycle(self._streams)
        waiting: deque[mx.array] = deque()
        for box in row_blocks(one.shape, row_bytes, _BLOCK_BYTES):
            size = math.prod(box_shape(box))
            if not size:
                continue
            with mx.stream(next(turns)):
                figures = _block(one, other, box, self._readers, total)
            mx.async_eval(figures)
            waiting.append(figures)
            if len(waiting) > len(self._streams):  # the next block is read meanwhile
                total.add(waiting.popleft())
            tell(size)
        while waiting:
            total.add(waiting.popleft())
        one.release()
        other.release()
        return total.measured()


def _same_form(one: Recipe, other: Recipe) -> bool:
    """Whether equal bytes would make the two equal in every bit."""
    if isinstance(one, Dequantize) or isinstance(other, Dequantize):
        packed = isinstance(one, Dequantize) and isinstance(other, Dequantize)
        return packed and form_of(one) == form_of(other) and _parts(one) == _parts(other)
    return form_of(one) == form_of(other) and one.dtype == other.dtype


def _parts(recipe: Recipe) -> list[tuple[str, tuple[int, ...]]]:
    return [(ref.dtype, ref.shape) for ref in recipe.sources()]


class _Total:
    """The figures of a pair so far."""

    def __init__(self, *, same_form: bool) -> None:
        self.same_bits = same_form
        self._same_values = True
        self._finite = True
        self._largest = 0.0
        self._sums = Sums()

    def add(self, figures: mx.array) -> None:
        """Take in what `_block` computed."""
        same_bits, same_values, finite, peak, largest, *sums = map(float, figures.tolist())  # type: ignore[arg-type]
        self.same_bits = self.same_bits and bool(same_bits)
        self._same_values = self._same_values and bool(same_values) and not largest
        self._finite = self._finite and bool(finite)
        if finite:
            self._largest = max(self._largest, largest * peak)
            self._sums += Sums(*(value * peak * peak for value in sums))

    def measured(self) -> Measured:
        """The result."""
        if self.same_bits:
            state: State = "equal"
        else:
            state = "same values" if self._same_values else "differs"
        if not self._finite:
            return Measured(state, None, None)
        return Measured(state, self._sums, self._largest)


def _block(
    one: Recipe,
    other: Recipe,
    box: Box,
    readers: tuple[TensorReader, TensorReader],
    total: _Total,
) -> mx.array:
    """Figures of a block: same bits, same values, finite, scale, largest difference, sums."""
    pair = [recipe.read(box, reader) for recipe, reader in zip((one, other), readers, strict=True)]
    same_bits = mx.array(total.same_bits)
    if total.same_bits:
        for first, second in _bits(one, other, box, readers, pair):
            same_bits = same_bits & mx.array_equal(first, second)
    x, y = (_real(recipe, array) for recipe, array in zip((one, other), pair, strict=True))
    highest = mx.maximum(_highest(x), _highest(y))
    finite = highest < _INFINITY
    scale = mx.where(finite & (highest > 0), highest.view(mx.float32), 1.0)
    # The difference first: it is zero only where the two are the same.
    apart = (x - y) / scale
    x, y = x / scale, y / scale
    # Of large integers float32 may not tell two apart.
    are_real = any(mx.issubdtype(recipe.dtype, mx.inexact) for recipe in (one, other))
    same_values = mx.array(True) if are_real else mx.array_equal(pair[0], pair[1])
    return mx.stack(
        [
            same_bits.astype(mx.float32),
            same_values.astype(mx.float32),
            finite.astype(mx.float32),
            scale,
            mx.max(mx.abs(apart)),
            *(_sum(product) for product in (apart * apart, x * x, y * y)),
        ]
    )


def _highest(values: mx.array) -> mx.array:
    """The bits of the largest absolute value; `_INFINITY` or more if one is not finite."""
    return mx.max(values.view(mx.uint32) & 0x7FFFFFFF)


def _sum(values: mx.array) -> mx.array:
    """Row by row first: float32 adds few numbers more exactly than many."""
    return mx.sum(mx.sum(values, axis=-1))


def _real(recipe: Recipe, array: mx.array) -> mx.array:
    """The values as float32, [rows, columns]."""
    if array.dtype == mx.complex64:
        array = mx.contiguous(array).reshape(-1).view(mx.float32)
    elif isinstance(recipe, Copy) and recipe.ref.dtype == _FP8:
        array = mx.from_fp8(array, mx.float32)
    array = array.astype(mx.float32)
    return array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)


def _bits(
    one: Recipe,
    other: Recipe,
    box: Box,
    readers: tuple[TensorReader, TensorReader],
    pair: list[mx.array],
) -> list[tuple[mx.array, mx.array]]:
    """What has to be equal for the two to be equal in every bit."""
    if isinstance(one, Dequantize) and isinstance(other, Dequantize):
        # Read again, from the system's cache: the values alone do not tell the codes.
        codes = _packed(one, box, readers[0]), _packed(other, box, readers[1])
        return list(zip(*codes, strict=True))
    first, second = (mx.contiguous(array).view(_UNSIGNED[array.itemsize]) for array in pair)
    return [(first, second)]


def _packed(recipe: Dequantize, box: Box, reader: TensorReader) -> list[mx.array]:
    """The bytes of all parts of a packed weight; a box cuts none of its rows."""
    rows = box[:-1]
    boxes = {
        ref.name: (*rows, (0, ref.shape[-1]))
        for ref in (recipe.packed.weight, recipe.packed.scales, recipe.packed.biases)
        if ref is not None
    }
    return [reader.read(ref, boxes.get(ref.name, rows[:-1])) for ref in recipe.sources()]
