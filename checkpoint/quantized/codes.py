"""Integer codes: out of the words that a source packs them in, into those of MLX.

Owns bits and their order. Knows nothing of scales or of files.
"""

from __future__ import annotations

import mlx.core as mx


def low_first(words: mx.array, bits: int) -> mx.array:
    """Codes of words that hold the first in their lowest bits.

    Args:
        words: [..., n] of an unsigned integer type.
        bits: Bits of a code; divides those of a word.

    Returns:
        [..., n * codes of a word] uint8.
    """
    size = words.dtype.size * 8
    shifts = mx.arange(0, size, bits).astype(words.dtype)
    mask = mx.array((1 << bits) - 1, words.dtype)
    codes = (words[..., None] >> shifts) & mask
    return codes.astype(mx.uint8).reshape(*words.shape[:-1], -1)


def powers_of_two(exponents: mx.array) -> mx.array:
    """What E8M0 bytes stand for, float32; by their bits, since not every device's powers are exact.

    Args:
        exponents: uint8, biased by 127; 255 is no number.
    """
    bits = exponents.astype(mx.uint32) << 23
    bits = mx.where(exponents == 0, mx.array(0x400000, mx.uint32), bits)
    bits = mx.where(exponents == 255, mx.array(0x7FC00000, mx.uint32), bits)
    return bits.view(mx.float32)


def packed(codes: mx.array, bits: int) -> mx.array:
    """Codes as `mx.quantize` packs them.

    Args:
        codes: [..., n] uint8 below 2**bits; n * bits is a multiple of 32.
        bits: 2, 3, 4, 5, 6 or 8.

    Returns:
        [..., n * bits / 32] uint32.
    """
    *rows, count = codes.shape
    if bits == 8:
        return mx.contiguous(codes).view(mx.uint32)
    wide = mx.uint32 if bits <= 4 else mx.uint64
    eights = codes.reshape(*rows, count // 8, 8)
    total = eights[..., 0].astype(wide)
    for index in range(1, 8):
        shift = mx.array(bits * index, wide)
        total = total | (eights[..., index].astype(wide) << shift)
    if bits == 4:
        return total
    in_bytes = mx.contiguous(total[..., None]).view(mx.uint8)[..., :bits]
    return mx.contiguous(in_bytes.reshape(*rows, -1)).view(mx.uint32)
