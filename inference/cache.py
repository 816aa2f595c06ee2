"""The KV cache of one sequence, by mlx-lm's cache classes.

Owns making one, keeping it at fewer bits, copying it, going back in it, and the
evaluation of what it holds. Knows nothing of requests or of what the tokens are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from configs.errors import UsageError

_GROUP_SIZES = (64, 32)
# What layers that are never quantized keep, in words.
_KINDS = {
    "RotatingKVCache": "a sliding window",
    "ChunkedKVCache": "a sliding window",
    "ArraysCache": "a recurrent state",
    "CacheList": "several caches",
}


@dataclass(frozen=True)
class KvForm:
    """How keys and values are kept.

    Attributes:
        bits: 4 or 8, in the layers whose entry allows it; None for the compute dtype.
        start: They are so once the cache holds so many tokens.
    """

    bits: int | None = None
    start: int = 0

    @property
    def begins(self) -> int:
        """After so many tokens: one at least, since an empty entry has no form yet."""
        return max(1, self.start)


class SequenceCache:
    """What a model keeps of the tokens it has read, one entry per layer.

    Attributes:
        layers: What to call the model with.
        length: Tokens read; who calls the model counts them with `advance`.

    Args:
        model: Makes its own kinds of entries.
        form: How keys and values are kept; entries that slide or recur stay as they are.
    """

    def __init__(self, model: nn.Module, form: KvForm | None = None) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self.layers: list[Any] = make_prompt_cache(model)
        self.length = 0
        self._form = form or KvForm()
        self._waiting = self._form.bits is not None

    @classmethod
    def of(cls, layers: list[Any], length: int, form: KvForm | None = None) -> SequenceCache:
        """A cache of entries that have read so many tokens, and are as they are by then."""
        made = cls.__new__(cls)
        made.layers, made.length = layers, length
        made._form = form or KvForm()
        made._waiting = made._form.bits is not None and length < made._form.begins
        return made

    @property
    def changes_at(self) -> int | None:
        """After so many tokens its entries take another form; None if they never do again.

        Whoever reads on stops there, so that the form in which a token is seen depends on
        its position alone.
        """
        return self._form.begins if self._waiting else None

    def advance(self, count: int) -> None:
        """After a call of the model with so many tokens."""
        self.length += count
        if self.length >= self._form.begins:
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
        """Turn the entries that allow it into quantized ones, where that is asked for."""
        if not self._waiting:
            return
        self._waiting = False
        kept = kept_as_they_are(self.layers)
        if len(kept) == len(self.layers):
            raise UsageError(
                "memory.kv_bits", "no layer of this model has a cache that can be quantized"
            )
        for index, layer in enumerate(self.layers):
            if index not in kept:
                self.layers[index] = layer.to_quantized(
                    group_size=_group_size(layer.keys, layer.values), bits=self._form.bits
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


def kept_as_they_are(layers: Sequence[Any]) -> dict[int, str]:
    """The layers whose entry can't be quantized, and the kind of it."""
    return {
        index: _KINDS.get(kind, kind)
        for index, layer in enumerate(layers)
        if (kind := type(layer).__name__) not in ("KVCache", "QuantizedKVCache")
    }


def check_kv_bits(model: nn.Module, kv_bits: int) -> dict[int, str]:
    """Refuse an architecture whose attention can't read a quantized cache.

    Returns:
        The layers that are not quantized, and the kind of what they keep.

    Raises:
        UsageError: It failed on two tokens.
    """
    cache = SequenceCache(model, KvForm(kv_bits))
    try:
        for _ in range(2):
            mx.eval(model(mx.array([[0]]), cache=cache.layers))
            cache.advance(1)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            "memory.kv_bits", f"this architecture can't read a quantized cache ({error})"
        ) from error
    return kept_as_they_are(cache.layers)
