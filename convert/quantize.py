"""Packs a block of rows, and tells whether its values are finite.

Each function works on row blocks alone: quantization groups lie along the last
axis, so blocks are independent. Knows nothing of files or plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import mlx.core as mx

from convert.plan import Quantization
from convert.search import search

Quantizer = Callable[[mx.array, Quantization, Sequence[mx.Stream]], tuple[mx.array, ...]]
"""Makes codes, scales and, for `affine`, biases of a block of rows, on some streams."""

# The exponent bits of each float, all set for infinities and NaN.
_EXPONENTS = {
    mx.float16: (mx.uint16, 0x7C00),
    mx.bfloat16: (mx.uint16, 0x7F80),
    mx.float32: (mx.uint32, 0x7F800000),
}


def round_to_nearest(
    block: mx.array, quantization: Quantization, streams: Sequence[mx.Stream] = ()
) -> tuple[mx.array, ...]:
    """MLX's own quantizer: the largest and smallest weight of a group set scale and bias.

    Args:
        block: [..., rows, columns], floating.
        quantization: How to pack; its group size divides the columns.
        streams: Not needed: it computes on the current one.

    Returns:
        Codes [..., rows, columns * bits / 32] uint32, scales and, for `affine`,
        biases [..., rows, columns / group_size].
    """
    packed: tuple[mx.array, ...] = tuple(
        mx.quantize(
            block,
            group_size=quantization.group_size,
            bits=quantization.bits,
            mode=quantization.mode,
        )
    )
    return packed


QUANTIZERS: Mapping[str, Quantizer] = MappingProxyType(
    {"search": search, "rtn": round_to_nearest, "calibrated": search}
)
"""What `convert.method` stands for; `calibrated` leaves what it does not make to search."""


def largest_exponent(block: mx.array) -> mx.array:
    """A scalar to hand to `is_finite` once evaluated; 0 for integers.

    Bit tests are several times cheaper than `mx.isfinite`, and the quantizer
    itself lets NaN pass.
    """
    if block.dtype not in _EXPONENTS or not block.size:
        return mx.array(0, mx.uint32)
    unsigned, mask = _EXPONENTS[block.dtype]
    return mx.max(block.view(unsigned) & mask)


def is_finite(exponent: mx.array, dtype: mx.Dtype) -> bool:
    """Whether the block that `largest_exponent` saw holds neither infinity nor NaN."""
    return dtype not in _EXPONENTS or exponent.item() != _EXPONENTS[dtype][1]
