"""llama.cpp's block types as weights: Q4_0 to Q8_0, and the K-quants Q2_K to Q6_K.

Each row is a run of blocks, each with its own scales and codes. Those of 32 weights, and
Q4_K and Q5_K, whose scales are for 32, have MLX's `affine` grid; Q2_K, Q3_K and Q6_K have
a scale for every 16, which no mode has. Source: ggml's `ggml-common.h` and `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box
from checkpoint.gguf_files.header import BLOCKS
from checkpoint.quantized.affine import Affine
from checkpoint.tensors import TensorRef


class _Type(NamedTuple):
    """One block type.

    Attributes:
        bits: Bits of a code.
        group_size: Weights that share a step.
        halves: Whether steps and offsets are float16 without rounding.
        codes: Blocks [..., bytes] to codes [..., weights] uint8.
        steps: Blocks [..., bytes] to steps and offsets, [..., groups] float32.
    """

    bits: int
    group_size: int
    halves: bool
    codes: Callable[[mx.array], mx.array]
    steps: Callable[[mx.array], tuple[mx.array, mx.array]]


def block_weight(ref: TensorRef, dtype: mx.Dtype) -> Blocks:
    """A tensor in blocks as the plain weight that it stands for."""
    kind = _TYPES[ref.dtype]
    _, weights, _ = next(told for told in BLOCKS.values() if told[0] == ref.dtype)
    shape = (*ref.shape[:-2], ref.shape[-2] * weights)
    exact = dtype == mx.float32 or (kind.halves and dtype == mx.float16)
    told = f"GGUF {ref.dtype}"
    return Blocks(shape, dtype, (ref,), told, kind.bits, kind.group_size, exact, weights)


@dataclass(frozen=True, eq=False, slots=True)
class Blocks(Affine):
    """A weight in blocks of so many weights."""

    weights: int

    def codes(self, box: Box, reader: TensorReader) -> mx.array:
        *rows, (low, high) = box
        blocks, first = self._read(tuple(rows), low, high, self.weights, reader)
        codes = _TYPES[self.refs[0].dtype].codes(blocks)
        codes = codes.reshape(*blocks.shape[:-2], -1)
        return codes[..., low - first * self.weights : high - first * self.weights]

    def steps(self, box: Box, reader: TensorReader) -> tuple[mx.array, mx.array]:
        *rows, (low, high) = box
        each = self.weights // self.group_size
        blocks, first = self._read(tuple(rows), low, high, each, reader)
        pair = _TYPES[self.refs[0].dtype].steps(blocks)
        cut = slice(low - first * each, high - first * each)
        steps, offsets = (part.reshape(*blocks.shape[:-2], -1)[..., cut] for part in pair)
        return steps, offsets

    def _read(
        self, rows: Box, low: int, high: int, each: int, reader: TensorReader
    ) -> tuple[mx.array, int]:
        """The blocks that cover a range, each holding so many of it, and the first one's place."""
        first, last = low // each, -(-high // each)
        ref = self.refs[0]
        return reader.read(ref, (*rows, (first, last), (0, ref.shape[-1]))), first


def _half(blocks: mx.array, at: int) -> mx.array:
    """The float16 at a byte of each block, [..., 1] float32."""
    return mx.contiguous(blocks[..., at : at + 2]).view(mx.float16).astype(mx.float32)


def _nibbles(blocks: mx.array, start: int, stop: int, run: int) -> mx.array:
    """Codes of 4 bits: of each run of bytes all lower halves, then all upper ones."""
    found = blocks[..., start:stop].reshape(*blocks.shape[:-1], -1, run)
    return mx.stack([found & 15, found >> 4], axis=-2).reshape(*blocks.shape[:-1], -1)


def _shifted(found: mx.array, run: int, shifts: range, mask: int) -> mx.array:
    """Of each run of bytes: the bits under the mask after each shift, one shift after another."""
    runs = found.reshape(*found.shape[:-1], -1, run)
    parts = [(runs >> shift) & mask for shift in shifts]
    return mx.stack(parts, axis=-2).reshape(*found.shape[:-1], -1)


def _signed(found: mx.array) -> mx.array:
    return mx.contiguous(found).view(mx.int8).astype(mx.float32)


def _centred(zero: int) -> Callable[[mx.array], tuple[mx.array, mx.array]]:
    def steps(blocks: mx.array) -> tuple[mx.array, mx.array]:
        scale = _half(blocks, 0)
        return scale, -zero * scale

    return steps


def _with_least(blocks: mx.array) -> tuple[mx.array, mx.array]:
    return _half(blocks, 0), _half(blocks, 2)


def _fifth_bits(blocks: mx.array, start: int) -> mx.array:
    """The highest bits of 32 codes of 5 bits, in place."""
    return _shifted_bits(blocks[..., start : start + 4]) << 4


def _shifted_bits(found: mx.array) -> mx.array:
    """Bits of bytes, the lowest first."""
    bits = (found[..., None] >> mx.arange(8).astype(mx.uint8)) & 1
    return bits.reshape(*found.shape[:-1], -1)


def _k_steps(blocks: mx.array) -> tuple[mx.array, mx.array]:
    """Q4_K and Q5_K: eight pairs of 6 bits, times a float16 each."""
    low, middle, high = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scales = mx.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], axis=-1)
    least = mx.concatenate([middle & 63, (high >> 4) | ((middle >> 2) & 48)], axis=-1)
    return (
        _half(blocks, 0) * scales.astype(mx.float32),
        -_half(blocks, 2) * least.astype(mx.float32),
    )


def _q5_k(blocks: mx.array) -> mx.array:
    high = _shifted(blocks[..., 16:48], 32, range(8), 1)
    return _nibbles(blocks, 48, 176, 32) | (high << 4)


def _q2_k_steps(blocks: mx.array) -> tuple[mx.array, mx.array]:
    scales = blocks[..., :16]
    return (
        _half(blocks, 80) * (scales & 15).astype(mx.float32),
        -_half(blocks, 82) * (scales >> 4).astype(mx.float32),
    )


def _q3_k(blocks: mx.array) -> mx.array:
    high = _shifted(blocks[..., :32], 32, range(8), 1)
    return _shifted(blocks[..., 32:96], 32, range(0, 8, 2), 3) | (high << 2)


def _q3_k_steps(blocks: mx.array) -> tuple[mx.array, mx.array]:
    packed = blocks[..., 96:108]
    low = mx.concatenate([packed[..., :8] & 15, packed[..., :8] >> 4], axis=-1)
    high = _shifted(packed[..., 8:], 4, range(0, 8, 2), 3)
    scales = _half(blocks, 108) * ((low | (high << 4)).astype(mx.float32) - 32)
    return scales, -4 * scales


def _q6_k(blocks: mx.array) -> mx.array:
    high = _shifted(blocks[..., 128:192], 32, range(0, 8, 2), 3)
    return _nibbles(blocks, 0, 128, 64) | (high << 4)


def _q6_k_steps(blocks: mx.array) -> tuple[mx.array, mx.array]:
    scales = _half(blocks, 208) * _signed(blocks[..., 192:208])
    return scales, -32 * scales


_TYPES = {
    "Q4_0": _Type(4, 32, True, lambda b: _nibbles(b, 2, 18, 16), _centred(8)),
    "Q4_1": _Type(4, 32, True, lambda b: _nibbles(b, 4, 20, 16), _with_least),
    "Q5_0": _Type(5, 32, True, lambda b: _nibbles(b, 6, 22, 16) | _fifth_bits(b, 2), _centred(16)),
    "Q5_1": _Type(5, 32, True, lambda b: _nibbles(b, 8, 24, 16) | _fifth_bits(b, 4), _with_least),
    "Q8_0": _Type(8, 32, True, lambda b: b[..., 2:] ^ 128, _centred(128)),
    "Q2_K": _Type(
        2, 16, False, lambda b: _shifted(b[..., 16:80], 32, range(0, 8, 2), 3), _q2_k_steps
    ),
    "Q3_K": _Type(3, 16, False, _q3_k, _q3_k_steps),
    "Q4_K": _Type(4, 32, False, lambda b: _nibbles(b, 16, 144, 32), _k_steps),
    "Q5_K": _Type(5, 32, False, _q5_k, _k_steps),
    "Q6_K": _Type(6, 16, False, _q6_k, _q6_k_steps),
}
