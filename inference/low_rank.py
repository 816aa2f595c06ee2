"""Layers with what an adapter adds computed beside the weight, packed or plain.

Owns the arithmetic, as mlx-lm's own layers of adapters define it, without their work that is the
same each time: scales, and DoRA's lengths of rows, are taken in once. Knows nothing of files or
of which layers are meant.
"""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from checkpoint.architecture.adapted import Updates
from checkpoint.architecture.low_rank import LowRank, factors
from checkpoint.architecture.mlx_lm_models import defer_mlx_lm_init
from checkpoint.architecture.reader import TensorReader
from configs.errors import AdapterError

_PIECE = 1 << 20
"""Weights whose lengths are found at once."""


class _Adapted(nn.Module):
    """A layer and two factors beside it.

    Args:
        base: The layer.
        rows: [..., rows, rank], scaled.
        columns: [..., rank, columns].
        gain: What each row of the sum is multiplied by, [rows]; None where it is not.
    """

    def __init__(
        self, base: nn.Module, rows: mx.array, columns: mx.array, gain: mx.array | None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # MLX's stubs
        self.base = base
        self.rows = rows
        self.columns = columns
        if gain is not None:
            self.gain = gain

    @property
    def weight(self) -> mx.array:
        """What a model that multiplies by a layer's weight itself asks for: it is not enough.

        Raises:
            AdapterError: Always; the adapter would be passed over.
        """
        raise AdapterError(
            "--adapter",
            "adapts a layer whose weight this architecture reads by itself",
            "make a model of both with convert --fuse-adapter",
        )


class AdaptedLinear(_Adapted):
    """A linear layer: [..., columns] to [..., rows]."""

    def __init__(
        self, base: nn.Module, rows: mx.array, columns: mx.array, gain: mx.array | None
    ) -> None:
        super().__init__(base, rows, columns, gain)
        if gain is not None and "bias" in base:
            # The base adds its bias before the gain, which is for the weight alone.
            self.shift = (1 - gain) * base.bias

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)
        y = y + ((x @ self.columns.T) @ self.rows.T).astype(y.dtype)
        if "gain" in self:
            y = self.gain * y
        return y + self.shift if "shift" in self else y


class AdaptedEmbedding(_Adapted):
    """An embedding: ids [...] to [..., columns]; as a head [..., columns] to [..., rows]."""

    def __call__(self, ids: mx.array) -> mx.array:
        y: mx.array = self.base(ids)
        y = y + (self.rows[ids] @ self.columns).astype(y.dtype)
        return self.gain[ids][..., None] * y if "gain" in self else y

    def as_linear(self, x: mx.array) -> mx.array:
        """The embedding as the head that is tied to it."""
        y: mx.array = self.base.as_linear(x)
        y = y + ((x @ self.columns.T) @ self.rows.T).astype(y.dtype)
        return self.gain * y if "gain" in self else y


class AdaptedExperts(_Adapted):
    """A stack of experts, each with factors of its own; inputs go to those that `indices` name."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y: mx.array = self.base(x, indices, sorted_indices=sorted_indices)
        z = x
        for factor in (self.columns, self.rows):
            z = mx.gather_mm(
                z,
                factor.swapaxes(-1, -2),
                rhs_indices=indices,
                sorted_indices=sorted_indices,
            )
        return y + z.astype(y.dtype)


def add_updates(model: nn.Module, updates: Updates, dtype: str) -> None:
    """Put an adapter's factors beside the weights of a model.

    Args:
        model: Filled; its layers may be packed.
        updates: What is added, by parameters of the layers that are fit for it.
        dtype: What the model computes in.

    Raises:
        AdapterError: Factors hold infinities or NaN, also once they are of that dtype.
        DiskError: The adapter can't be read.
    """
    modules = dict(model.named_modules())
    target: mx.Dtype = getattr(mx, dtype)
    replaced = []
    with TensorReader() as reader:
        for name, update in updates.items():
            path = name.removesuffix(".weight")
            layer = _beside(modules[path], update, target, reader)
            replaced.append((path, layer))
    model.update_modules(cast(dict[str, Any], tree_unflatten(replaced)))
    model.eval()


def _beside(base: nn.Module, update: LowRank, dtype: mx.Dtype, reader: TensorReader) -> nn.Module:
    rows, columns, magnitude = factors(update, reader)
    gain = None
    if magnitude is not None:
        gain = magnitude / _lengths(base, rows, columns)
    made = _kind(base)(
        base,
        rows.astype(dtype),
        columns.astype(dtype),
        None if gain is None else gain.astype(dtype),
    )
    own = [value for name, value in made.items() if isinstance(value, mx.array)]
    mx.eval(own)
    if not all(mx.all(mx.isfinite(value)).item() for value in own):
        source = next(update.rows.sources())
        what = f"holds infinite or NaN values for {update.module}, or what {dtype} can't hold"
        raise AdapterError(source.file, what, "try --dtype bfloat16, or train it again")
    return made


def _kind(base: nn.Module) -> type[_Adapted]:
    defer_mlx_lm_init()
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    if isinstance(base, (SwitchLinear, QuantizedSwitchLinear)):
        return AdaptedExperts
    if isinstance(base, (nn.Embedding, nn.QuantizedEmbedding)):
        return AdaptedEmbedding
    return AdaptedLinear


def _lengths(base: nn.Module, rows: mx.array, columns: mx.array) -> mx.array:
    """The length of each row of the weight with what is added, [rows], float32."""
    step = max(1, _PIECE // columns.shape[-1])
    found = []
    for start in range(0, rows.shape[0], step):
        cut = slice(start, start + step)
        weight = _plain_rows(base, cut).astype(mx.float32) + rows[cut] @ columns
        length = mx.linalg.norm(weight, axis=1)
        mx.eval(length)
        found.append(length)
    return mx.concatenate(found)


def _plain_rows(base: nn.Module, cut: slice) -> mx.array:
    if "scales" not in base:
        weight: mx.array = base.weight[cut]
        return weight
    return mx.dequantize(
        base.weight[cut],
        base.scales[cut],
        base.biases[cut] if base.get("biases") is not None else None,
        group_size=base.group_size,
        bits=base.bits,
        mode=base.mode,
        global_scale=base.get("global_scale"),
        dtype=mx.float32,
    )
