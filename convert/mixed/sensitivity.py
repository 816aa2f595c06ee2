"""What each layer loses in each form, estimated from the weights alone.

The estimate of a form is `gain * |W - Q(W)|^2 / |W|^2`: the relative error is measured with the
chosen method's own quantizer on rows spread evenly over the weight; the gain is what a relative
error in a layer of that kind and place adds to the KL divergence. That errors add up so is the
linearity theorem of HIGGS (Malinovskii et al. 2024, arXiv:2411.17525). Gains are shares of the
whole, taken from what two small models were measured to lose by each of their layers alone: the
first block counts several times as much as any other, a head half as much as all blocks together.
Where they are wrong for a model, a text measures better (`convert.mixed.fisher`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import mlx.core as mx

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, Recipe
from configs.errors import SourceError
from convert.mixed.layers import Layer
from convert.plan import Quantization
from convert.quantize import Quantizer

_SAMPLE_WEIGHTS = 1 << 15
_FEWEST_ROWS = 16

# Shares of what is lost at equal relative errors.
_HEAD, _EMBEDDING, _BLOCKS = 1.0, 0.25, 2.0
_FIRST_BLOCK = 6.0
# By what the name of a layer has in it, the first that fits; all others count 1.
_ROLES = (
    (("o_proj", "out_proj", "wo"), 1.3),
    (("v_proj",), 1.0),
    (("down_proj", "w2", "fc2"), 1.0),
    (("gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "fc1"), 0.8),
    (("q_proj", "k_proj"), 0.6),
)

Errors = Mapping[str, Sequence[float]]
"""For each layer, by its path, what it is estimated to lose in each of its forms."""


def gains(layers: Sequence[Layer]) -> dict[str, float]:
    """What a relative error of each layer counts, by path; 1 is a head's."""
    inside = {layer.path: _role_gain(layer) for layer in layers if layer.number is not None}
    whole = sum(inside.values()) or 1.0
    heads = any(not layer.is_embedding and layer.number is None for layer in layers)
    return {
        layer.path: _BLOCKS * inside[layer.path] / whole
        if layer.path in inside
        else _HEAD
        if not layer.is_embedding
        # A tied head is the embeddings: they are used for both.
        else _EMBEDDING + _HEAD * (not heads)
        for layer in layers
    }


def _role_gain(layer: Layer) -> float:
    gain = next((gain for roles, gain in _ROLES if layer.role in roles), 1.0)
    return gain * (_FIRST_BLOCK if layer.number == 0 else 1.0)


def from_weights(
    layers: Sequence[Layer],
    recipes: Mapping[str, Recipe],
    quantizer: Quantizer,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
    """Estimate every form of every layer.

    Args:
        layers: The layers.
        recipes: How each parameter is read.
        quantizer: The method's.
        tell: Told how many layers are done.

    Raises:
        DiskError: the source can't be read.
        SourceError: a weight is infinite or NaN.
    """
    found = {}
    share = gains(layers)
    with TensorReader() as reader:
        for done, layer in enumerate(layers, 1):
            recipe = recipes[f"{layer.path}.weight"]
            pieces = [recipe.read(box, reader) for box in sample_boxes(layer.shape)]
            sample = mx.concatenate([piece.reshape(-1, layer.shape[-1]) for piece in pieces])
            mx.eval(sample)
            recipe.release()
            if not mx.all(mx.isfinite(sample)).item():
                raise _not_finite(layer, sample.dtype)
            whole = _squares(sample)
            found[layer.path] = [
                share[layer.path] * (_squares(error) / whole if whole else 0.0)
                for error in errors_of(sample, layer.forms, quantizer)
            ]
            tell(done)
    return found


def _not_finite(layer: Layer, dtype: mx.Dtype) -> SourceError:
    return SourceError(
        f"{layer.path}.weight",
        "infinite or NaN values",
        "they may be too large for float16: try --dtype bfloat16"
        if dtype == mx.float16
        else "the checkpoint is damaged: download it again",
    )


def sample_boxes(shape: tuple[int, ...]) -> Iterator[Box]:
    """Single rows of a weight, spread evenly: enough of them to judge a form by."""
    *leading, columns = shape
    rows = math.prod(leading)
    count = min(rows, max(_FEWEST_ROWS, _SAMPLE_WEIGHTS // columns))
    for at in range(count):
        flat = (2 * at + 1) * rows // (2 * count)
        place = []
        for size in reversed(leading):
            place.append((flat % size, flat % size + 1))
            flat //= size
        yield (*reversed(place), (0, columns))


def errors_of(
    weights: mx.array, forms: Sequence[Quantization], quantizer: Quantizer
) -> Iterator[mx.array]:
    """What each form makes of some rows, less the rows themselves: float32, evaluated."""
    exact = weights.astype(mx.float32)
    for form in forms:
        codes, scales, *biases = quantizer(weights, form, [mx.default_stream(mx.default_device())])
        affine = form.mode == "affine"
        made = mx.dequantize(
            codes,
            scales.astype(mx.float32) if affine else scales,
            biases[0].astype(mx.float32) if affine else None,
            group_size=form.group_size,
            bits=form.bits,
            mode=form.mode,
            dtype=mx.float32,
        )
        error = made - exact
        mx.eval(error)
        yield error


def _squares(array: mx.array) -> float:
    return total(mx.square(array.astype(mx.float32)))


def total(array: mx.array) -> float:
    """The sum of all elements."""
    return cast(float, mx.sum(array).item())
