"""nanochat of 2026 for MLX: what mlx-lm's `nanochat`, which is that of 2025, lacks.

Owns the computation and its cache. Every constant comes from config.json; what a
checkpoint's era means is decided in `checkpoint.nanochat`. Follows mlx-lm's conventions
for models, so that whatever runs those runs this one.

The embedding of each token is smeared into the next, so the token before must be known
across pieces of a prompt and steps of an answer. What is kept for it is the history of
token ids, in a cache entry like that of a layer: it is trimmed, batched, copied and saved
like one. It stands last in the cache, in a list of its own, so that nothing takes its
entries for keys that could be quantized.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import (
    BaseModelArgs,
    create_attention_mask,
    scaled_dot_product_attention,
)
from mlx_lm.models.cache import CacheList, KVCache


@dataclass
class ModelArgs(BaseModelArgs):
    """config.json.

    Attributes:
        attention_windows: How many tokens back each layer sees, itself not counted.
        qk_scale: Factor of queries and of keys after their norm.
        residual_lambdas: Whether layers scale the residual stream and add the embedding.
        value_embedding_layers: The layers that add an embedding of the token to their values.
        value_gate_width: How much of a layer's input the gate of those sees.
        value_gate_scale: Factor before that gate's sigmoid.
        smear_gate_width: How much of an embedding the smearing gate sees; 0 for no smearing.
        backout_layer: After which layer the residual stream is kept, to be taken off at its
            end; None if it is not.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    final_logit_softcapping: float
    qk_scale: float
    attention_windows: list[int]
    residual_lambdas: bool
    value_embedding_layers: list[int]
    value_gate_width: int
    value_gate_scale: float
    smear_gate_width: int
    backout_layer: int | None

    def __post_init__(self) -> None:
        layers = range(self.num_hidden_layers)
        if len(self.attention_windows) != len(layers) or min(self.attention_windows) < 0:
            raise ValueError("attention_windows is not one number for each layer")
        if any(layer not in layers for layer in self.value_embedding_layers):
            raise ValueError("value_embedding_layers names a layer that there is not")
        if self.backout_layer is not None and self.backout_layer not in layers:
            raise ValueError("backout_layer is no layer")
        if not 0 <= max(self.value_gate_width, self.smear_gate_width) <= self.hidden_size:
            raise ValueError("a gate is wider than the model")
        if self.hidden_size % self.num_attention_heads or (
            self.num_attention_heads % self.num_key_value_heads
        ):
            raise ValueError("the heads do not divide the width, or each other")
        if not self.final_logit_softcapping > 0:
            raise ValueError("final_logit_softcapping is not positive")


class Gate(nn.Module):
    """A narrow matrix; too narrow for groups, so it is no `Linear` that could be quantized."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, width))

    def __call__(self, x: mx.array) -> mx.array:
        """[..., at least width] to [..., outputs], each between 0 and 1."""
        return mx.sigmoid(x[..., : self.weight.shape[1]] @ self.weight.T)


class Attention(nn.Module):
    """Attention over the last tokens, its keys normed after they are turned."""

    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        width, size = args.hidden_size, args.hidden_size // args.num_attention_heads
        kept = args.num_key_value_heads * size
        self.heads, self.kv_heads = args.num_attention_heads, args.num_key_value_heads
        # Scaling queries and keys each is scaling their products twice.
        self.scale = args.qk_scale**2 / math.sqrt(size)
        self.eps = args.rms_norm_eps
        self.gate_scale = args.value_gate_scale
        self.c_q = nn.Linear(width, width, bias=False)
        self.c_k = nn.Linear(width, kept, bias=False)
        self.c_v = nn.Linear(width, kept, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        if layer in args.value_embedding_layers:
            self.value_embed = nn.Embedding(args.vocab_size, kept)
            self.ve_gate = Gate(args.value_gate_width, args.num_key_value_heads)
        half = size // 2
        # Negated: nanochat turns the other way round.
        self._freqs = -mx.exp(
            mx.arange(half, dtype=mx.float32) * (math.log(args.rope_theta) / half)
        )

    def __call__(self, x: mx.array, ids: mx.array, mask: Any, cache: Any) -> mx.array:
        rows, count, width = x.shape
        offset = 0 if cache is None else cache.offset
        queries = self._turned(self.c_q(x), self.heads, offset)
        keys = self._turned(self.c_k(x), self.kv_heads, offset)
        values = self.c_v(x).reshape(rows, count, self.kv_heads, -1)
        if "value_embed" in self:
            gate = self.gate_scale * self.ve_gate(x)
            values = values + gate[..., None] * self.value_embed(ids).reshape(values.shape)
        values = values.astype(x.dtype).transpose(0, 2, 1, 3)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        mixed: mx.array = scaled_dot_product_attention(
            queries, keys, values, cache=cache, scale=self.scale, mask=mask
        )
        projected: mx.array = self.c_proj(mixed.transpose(0, 2, 1, 3).reshape(rows, count, width))
        return projected

    def _turned(self, x: mx.array, heads: int, offset: Any) -> mx.array:
        """[rows, n, heads * size] to [rows, heads, n, size], turned and normed."""
        rows, count, _ = x.shape
        apart = x.reshape(rows, count, heads, -1).transpose(0, 2, 1, 3)
        turned = mx.fast.rope(
            apart,
            dims=apart.shape[-1],
            traditional=False,
            base=None,
            freqs=self._freqs,
            scale=1.0,
            offset=offset,
        )
        return mx.fast.rms_norm(turned, None, self.eps)


class MLP(nn.Module):
    """Two matrices with a squared ReLU between them."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.c_fc = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.c_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        made: mx.array = self.c_proj(nn.relu2(self.c_fc(x)))
        return made


class Block(nn.Module):
    """One layer."""

    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.eps = args.rms_norm_eps
        self.attn = Attention(args, layer)
        self.mlp = MLP(args)

    def __call__(self, x: mx.array, ids: mx.array, mask: Any, cache: Any) -> mx.array:
        x = x + self.attn(mx.fast.rms_norm(x, None, self.eps), ids, mask, cache)
        made: mx.array = x + self.mlp(mx.fast.rms_norm(x, None, self.eps))
        return made


class Transformer(nn.Module):
    """Embedding and layers."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.wte = nn.Embedding(args.vocab_size, args.hidden_size)
        self.h = [Block(args, layer) for layer in range(args.num_hidden_layers)]
        if args.residual_lambdas:
            self.resid_lambdas = mx.ones((args.num_hidden_layers,))
            self.x0_lambdas = mx.zeros((args.num_hidden_layers,))
        if args.smear_gate_width:
            self.smear_gate = Gate(args.smear_gate_width, 1)
            self.smear_lambda = mx.zeros((1,))
        if args.backout_layer is not None:
            self.backout_lambda = mx.zeros((1,))

    def __call__(self, ids: mx.array, cache: list[Any] | None) -> mx.array:
        layers = [None] * len(self.h) if cache is None else cache[: len(self.h)]
        x = self._embedded(ids)
        if "smear_gate" in self:
            x = self._smeared(x, ids, None if cache is None else cache[len(self.h)][0])
        first, middle = x, x
        masks: dict[int, Any] = {}
        windows = self.args.attention_windows
        for index, (block, window, entry) in enumerate(zip(self.h, windows, layers, strict=True)):
            # All layers hold as many tokens, so those with one window share a mask.
            if window not in masks:
                masks[window] = _mask(x, window, entry)
            if "resid_lambdas" in self:
                scaled = self.resid_lambdas[index] * x + self.x0_lambdas[index] * first
                x = scaled.astype(x.dtype)
            x = block(x, ids, masks[window], entry)
            if index == self.args.backout_layer:
                middle = x
        if "backout_lambda" in self:
            x = (x - self.backout_lambda * middle).astype(x.dtype)
        return mx.fast.rms_norm(x, None, self.args.rms_norm_eps)

    def _embedded(self, ids: mx.array) -> mx.array:
        return mx.fast.rms_norm(self.wte(ids), None, self.args.rms_norm_eps)

    def _smeared(self, x: mx.array, ids: mx.array, history: Any) -> mx.array:
        """Each embedding with some of the one before it, [rows, n, width]."""
        lead = self._lead(x, ids, history)
        before = mx.concatenate([lead, x[:, :-1]], axis=1)
        return (x + self.smear_lambda * self.smear_gate(x) * before).astype(x.dtype)

    def _lead(self, x: mx.array, ids: mx.array, history: Any) -> mx.array:
        """The embedding of what comes before these tokens, [rows, 1, width]; zeros for nothing."""
        nothing = mx.zeros_like(x[:, :1])
        if history is None:
            return nothing
        offset = history.offset
        entries = ids.astype(mx.int32)[:, None, :, None]
        held = history.update_and_fetch(entries, entries)[0][:, 0, :, 0]
        if isinstance(offset, int):
            return self._embedded(held[:, offset - 1 : offset]) if offset else nothing
        place = mx.maximum(offset - 1, 0)[:, None]
        found = self._embedded(mx.take_along_axis(held, place, axis=1))
        return mx.where((offset > 0)[:, None, None], found, nothing)


class Model(nn.Module):
    """Token ids [rows, n] to logits [rows, n, vocabulary], in float32."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.transformer = Transformer(args)
        self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        logits = self.lm_head(self.transformer(inputs, cache)).astype(mx.float32)
        cap = self.args.final_logit_softcapping
        return cap * mx.tanh(logits / cap)

    @property
    def layers(self) -> list[Block]:
        """The blocks."""
        return self.transformer.h

    def make_cache(self) -> list[Any]:
        """An entry for each layer, and one for the tokens read."""
        entries: list[Any] = [KVCache() for _ in self.layers]
        if self.args.smear_gate_width:
            entries.append(CacheList(KVCache()))
        return entries

    @staticmethod
    def cast_predicate(path: str) -> bool:
        """The scalars stay in float32: they weigh nothing, and nanochat has them so."""
        return not path.endswith("_lambdas") and not path.endswith("_lambda")


def _mask(x: mx.array, window: int, entry: Any) -> Any:
    """What a layer sees; the token itself counts in MLX's windows, and not in nanochat's."""
    offset = 0 if entry is None else entry.offset
    if isinstance(offset, int) and offset + x.shape[1] <= window + 1:
        return create_attention_mask(x, entry)
    return create_attention_mask(x, entry, window_size=window + 1)
