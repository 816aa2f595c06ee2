"""The KV cache of one sequence, by mlx-lm's cache classes.

Owns making one, keeping it at fewer bits, copying it, going back in it, and the
evaluation of what it holds. Knows nothing of requests or of what the tokens are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from configs.errors import UsageError

_GROUP_SIZES = (64, 32)


class SequenceCache:
    """What a model keeps of the tokens it has read, one entry per layer.

    Attributes:
        layers: What to call the model with.
        length: Tokens read; who calls the model counts them with `advance`.

    Args:
        model: Makes its own kinds of entries.
        kv_bits: Keep keys and values at this many bits (4 or 8) in the layers whose entry
            allows it; entries that slide or recur stay as they are.
    """

    def __init__(self, model: nn.Module, kv_bits: int | None = None) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self.layers: list[Any] = make_prompt_cache(model)
        self.length = 0
        self._kv_bits = kv_bits
        self._waiting = kv_bits is not None

    @classmethod
    def of(cls, layers: list[Any], length: int) -> SequenceCache:
        """A cache of entries that have read so many tokens."""
        made = cls.__new__(cls)
        made.layers, made.length = layers, length
        made._kv_bits, made._waiting = None, False
        return made

    def advance(self, count: int) -> None:
        """After a call of the model with so many tokens."""
        self.length += count
        self.compress()

    def copy(self) -> SequenceCache:
        """One that goes its own way from here; what both hold is shared until it changes."""
        return copy.deepcopy(self)

    def trim(self, length: int) -> bool:
        """Go back to the first `length` tokens; False, and unchanged, if it can't."""
        if length < self.length:
            if not all(layer.is_trimmable() for layer in self.layers):
                return False
            for layer in self.layers:
                layer.trim(self.length - length)
            self.length = length
        return True

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


@dataclass(frozen=True)
class Held:
    """A cache, and the tokens that it has read.

    Whoever hands one on gives it away: it is changed by its next owner.
    """

    tokens: tuple[int, ...]
    cache: SequenceCache

    def begin(self, prompt: tuple[int, ...]) -> SequenceCache | None:
        """The cache, gone back to what `prompt` begins with; None if that is nothing.

        The prompt's last token is left to be read, since what follows it is asked for.
        """
        shared = min(common_length(self.tokens, prompt), len(prompt) - 1)
        return self.cache if shared and self.cache.trim(shared) else None


def common_length(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """How many tokens two sequences begin with alike."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while low < high - 1:  # alike up to low, not up to high
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


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
