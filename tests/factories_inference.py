"""Tiny MLX model folders, random but whole, as `infer` takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from checkpoint.architecture.mlx_lm_models import load_classes
from tests.factories_models import VOCABULARY, write_tokenizer

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 32.0,
    },
    "gemma3_text": {
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 32,
        "rope_local_base_freq": 10_000.0,
        "rope_global_base_freq": 1_000_000.0,
        "rope_traditional": False,
    },
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
    "mamba": {
        "intermediate_size": 128,
        "state_size": 8,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
        "tie_word_embeddings": True,
    },
    "mamba2": {
        "num_heads": 4,
        "head_dim": 32,
        "expand": 2,
        "state_size": 16,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "chunk_size": 16,
        "time_step_rank": 4,
        "time_step_limit": [0.001, 100.0],
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "n_ctx": 256,
        "layer_norm_epsilon": 1e-5,
    },
}
KINDS = tuple(_OWN)


class IdReader:
    """A reader for tests: each token's id as text, one that ends the answer.

    Args:
        stop_at: The token that does.
    """

    guides = False

    def __init__(self, stop_at: int | None = None) -> None:
        self.stopped = False
        self._stop_at = stop_at

    def allowed(self) -> None:
        """Any token may come."""

    def asides(self) -> tuple[()]:
        """Nothing is said beside the answer."""
        return ()

    def push(self, token: int) -> str:
        self.stopped = token == self._stop_at
        return "" if self.stopped else f"{token} "

    def flush(self) -> str:
        return ""


def tiny_config(kind: str, **changes: Any) -> dict[str, Any]:
    """The config of a tiny model."""
    return {**_COMMON, **_OWN[kind], "model_type": kind, **changes}


def tiny_network(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """mlx-lm's own model of that config, with random weights that make it talk."""
    classes = load_classes(config["model_type"])
    mx.random.seed(seed)
    model: nn.Module = classes.model(classes.args.from_dict(config))
    model.update(
        tree_map(
            lambda value: (
                mx.random.normal(value.shape) * 0.2
                if value.ndim > 1
                else value + mx.random.normal(value.shape) * 0.1
            ).astype(mx.float32),
            model.parameters(),
        )
    )
    mx.eval(model.parameters())
    return model


def write_mlx(
    folder: Path,
    kind: str = "llama",
    *,
    quantization: dict[str, Any] | None = None,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
    tokenizer: bool = True,
    **changes: Any,
) -> Path:
    """An MLX folder.

    Args:
        folder: Where to write it.
        kind: One of `KINDS`.
        quantization: As config.json has it, with per-layer rules.
        dtype: Of the floats.
        seed: Of the weights.
        tokenizer: Whether it has one.
        changes: Config values other than the tiny ones.
    """
    config = tiny_config(kind, **changes)
    model = tiny_network(config, seed)
    model.set_dtype(dtype)
    if quantization is not None:
        config["quantization"] = quantization
        default = {key: value for key, value in quantization.items() if not _is_rule(value)}

        def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
            if not hasattr(module, "to_quantized"):
                return False
            rule = quantization.get(path, True)
            return {**default, **rule} if isinstance(rule, dict) else default if rule else False

        nn.quantize(model, class_predicate=chosen)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder, dict(tree_flatten(model.parameters())), config)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def save(folder: Path, weights: dict[str, mx.array], config: dict[str, Any]) -> None:
    """Write weights and config as an MLX folder has them."""
    path = str(folder / "model.safetensors")
    mx.save_safetensors(path, weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def edit_json(path: Path, **changes: Any) -> None:
    """Change some keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _is_rule(value: object) -> bool:
    return isinstance(value, (dict, bool))
