"""What error is allowed, and where the figures come from.

structure   The layer of mlx-lm with the source's own weights in float32 against the layer
            of transformers: the same arithmetic in another order. Over tiny models of 68
            kinds the largest error of a layer's update was 1.4e-6, and 1.6e-4 where mlx-lm
            approximates a GELU otherwise; a wrong RoPE, scale, window or norm gave 1e-2 and
            more. So 1e-3, whatever the bits. Where mlx-lm's `sanitize` computes a weight as
            a whole in the source's half precision, four units of that rounding more.
as written  The layer with the weights that were written. How much of a rounding error
            comes through depends on the layer, so the measure is the layer itself with the
            source's weights rounded to nearest by MLX in the same form: twice that. What
            rounding to nearest has written gives just that, a calibrated method less;
            `twice` is for text unlike the one that it was calibrated on.
weights     A written weight against the source's, row by row, as multiples of what rounding
            it to nearest costs, measured on a trained model of 10 M parameters at 2 to 4
            bits: a search for the best scale gives 0.8 to 1.0, GPTQ with refitted scales,
            which moves weights apart for the sake of the layer's output, 1.1 to 1.5 for a
            matrix and up to 1.8 for a row; it scales no row by more than 0.13, nor the
            search by more than 0.16. A row of something else is scaled by 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import mlx.core as mx

from checkpoint.packing import Quantization

STRUCTURE = 1e-3
ROUNDING = {mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11}
TIMES_ROUNDED = 2.0

ROW_ERROR = 4.0
TENSOR_ERROR = 3.0
ROW_SLOPE = 0.3
"""How far a row may be scaled, beside what rounding it to nearest does; a scale that was halved
or forgotten is further off, at any number of bits."""

# The most that rounding a weight to nearest may cost, relative to the weight: for the formats
# of floats, from their spacing (e2m1: 1/4 at the most, and clipped by up to 1/4 where the scale
# is a power of two; e4m3: 1/16, and 1/8; the scales of nvfp4 are e4m3 too, and coarse for small
# weights). Weights of trained models come to 0.12, 0.1 and 0.03.
_MOST_OF_FLOATS = {"mxfp4": 0.35, "nvfp4": 0.5, "mxfp8": 0.15}


def structure(half_dtypes: Iterable[mx.Dtype]) -> float:
    """The most error of a layer with the source's weights.

    Args:
        half_dtypes: Dtypes in which mlx-lm computes some of those weights as a whole.
    """
    return STRUCTURE + 4 * max((ROUNDING[dtype] for dtype in half_dtypes), default=0.0)


def computed(dtype: mx.Dtype) -> float:
    """How far a value that mlx-lm computes may be off, relative to it: GPUs round otherwise."""
    return 2 * float(mx.finfo(dtype).eps) if mx.issubdtype(dtype, mx.floating) else 0.0


def as_written(structure_allowed: float, rounded_error: float) -> float:
    """The most error of a layer with the written weights.

    Args:
        structure_allowed: What `structure` gives for the layer.
        rounded_error: The error with the source's weights rounded to nearest.
    """
    return structure_allowed + TIMES_ROUNDED * rounded_error


def most_by_rounding(form: Quantization) -> float:
    """The most that rounding to nearest may cost a weight, relative to it.

    For `affine` with g weights of a range R in a group: an error of at most a whole step,
    R / (2^bits - 1), in each (MLX moves the scale so that zero is exact, which may clip the far
    end), against at least R / sqrt(2) for the two ends alone; and never more than the weight.
    """
    if form.mode != "affine":
        return _MOST_OF_FLOATS[form.mode]
    return min(1.0, math.sqrt(2 * form.group_size) / ((1 << form.bits) - 1))
