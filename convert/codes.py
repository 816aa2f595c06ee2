"""Lays the codes of quantized weights out as MLX's kernels read them.

A stream of bits, the lowest first, in little-endian words of 32. Knows nothing of what a
code stands for.
"""

from __future__ import annotations

import mlx.core as mx

_WORD = mx.uint64
_PER_WORD = 8


def pack(codes: mx.array, bits: int) -> mx.array:
    """Packed codes.

    Args:
        codes: [..., n] uint8, each below 2 ** bits; n is a multiple of 32.
        bits: Of each code: 2, 3, 4, 5, 6 or 8.

    Returns:
        [..., n * bits / 32] uint32.
    """
    if bits == 8:
        return codes.view(mx.uint32)
    # Eight codes become `bits` bytes: neighbours are joined three times.
    joined = codes.view(_WORD)
    width, field = bits, 8
    while field < 8 * _PER_WORD:
        low = sum(((1 << width) - 1) << at for at in range(0, 64, 2 * field))
        high = joined >> mx.array(field - width, _WORD)
        joined = (joined & mx.array(low, _WORD)) | (high & mx.array(low << width, _WORD))
        width, field = 2 * width, 2 * field
    if bits == 4:
        return joined.astype(mx.uint32)
    if bits == 2:
        return joined.astype(mx.uint16).view(mx.uint32)
    of_bytes = joined.view(mx.uint8).reshape(*joined.shape, _PER_WORD)
    kept = of_bytes[..., :bits].reshape(*codes.shape[:-1], codes.shape[-1] * bits // 8)
    return kept.view(mx.uint32)
