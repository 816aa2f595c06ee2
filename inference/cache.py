"""The KV cache of one sequence, by mlx-lm's cache classes.

Owns making one, keeping it at fewer bits, and the evaluation of what it holds.
Knows nothing of requests or of tokens.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from configs.errors import UsageError

_GROUP_SIZES = (64, 32)


class SequenceCache:
    """What a model keeps of the tokens it has read, one entry per layer.

    Args:
        model: Makes its own kinds of entries.
        kv_bits: Keep keys and values at this many bits (4 or 8) in the layers whose entry
            allows it; entries that slide or recur stay as they are.
    """

    def __init__(self, model: nn.Module, kv_bits: int | None = None) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self.layers: list[Any] = make_prompt_cache(model)
        self._kv_bits = kv_bits
        self._waiting = kv_bits is not None

    def evaluate(self) -> None:
        """Compute what the last call of the model put in, and nothing that it gave out."""
        mx.eval([layer.state for layer in self.layers])

    def compress(self) -> None:
        """After the model's first call: turn the entries that allow it into quantized ones."""
        if not self._waiting:
            return
        self._waiting = False
        allowed = [
            index for index, layer in enumerate(self.layers) if type(layer).__name__ == "KVCache"
        ]
        if not allowed:
            raise UsageError(
                "memory.kv_bits", "no layer of this model has a cache that can be quantized"
            )
        for index in allowed:
            layer = self.layers[index]
            self.layers[index] = layer.to_quantized(
                group_size=_group_size(layer.keys, layer.values), bits=self._kv_bits
            )


def _group_size(keys: mx.array, values: mx.array) -> int:
    for size in _GROUP_SIZES:
        if keys.shape[-1] % size == 0 and values.shape[-1] % size == 0:
            return size
    raise UsageError(
        "memory.kv_bits", f"heads of {keys.shape[-1]} values do not divide into groups of 32"
    )


def check_kv_bits(model: nn.Module, kv_bits: int) -> None:
    """Refuse an architecture whose attention can't read a quantized cache.

    Raises:
        UsageError: It failed on two tokens.
    """
    cache = SequenceCache(model, kv_bits)
    try:
        for _ in range(2):
            mx.eval(model(mx.array([[0]]), cache=cache.layers))
            cache.compress()
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            "memory.kv_bits", f"this architecture can't read a quantized cache ({error})"
        ) from error
