"""The numbers in a config.json: sane sizes, heads that divide, finite factors.

Owns the checks that hold for every model, so that nothing is allocated on a file's word.
Knows nothing of what one architecture makes of its values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint.folder import CONFIG
from checkpoint.json_file import json_type, json_value
from configs.errors import ModelConfigError

_MEND = "download it again"
# Where configs of several modalities keep the language model's values.
_NESTED = ("text_config", "language_config", "llm_config")

# The largest value that a dimension may have: far beyond any model, far below what would
# take the machine down. Zero is allowed only where it means "none".
_WIDTH, _LAYERS, _COUNT, _VOCABULARY, _CONTEXT = 1 << 20, 10_000, 1 << 16, 1 << 25, 1 << 31
_POSITIVE = {
    "hidden_size": _WIDTH,
    "n_embd": _WIDTH,
    "d_model": _WIDTH,
    "intermediate_size": 1 << 24,
    "head_dim": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_layers": _LAYERS,
    "n_layer": _LAYERS,
    "n_layers": _LAYERS,
    "num_attention_heads": _COUNT,
    "n_head": _COUNT,
    "n_heads": _COUNT,
    "num_heads": _COUNT,
    "num_key_value_heads": _COUNT,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": _CONTEXT,
    "n_positions": _CONTEXT,
}
_ZERO_OR_MORE = {
    "num_experts": _COUNT,
    "num_local_experts": _COUNT,
    "n_routed_experts": _COUNT,
    "n_shared_experts": _COUNT,
    "num_experts_per_tok": _COUNT,
    "moe_intermediate_size": 1 << 24,
    "shared_expert_intermediate_size": 1 << 24,
}
# Numbers that need not be whole, here and in the tables of RoPE.
_FACTORS = (
    *("rope_theta", "rope_local_base_freq", "global_rope_theta", "local_rope_theta"),
    *("rotary_emb_base", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
    *("norm_epsilon", "partial_rotary_factor", "rotary_pct", "factor", "low_freq_factor"),
    *("high_freq_factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
)
_ROPE_TABLES = ("rope_scaling", "rope_parameters")
# With one of these, an attention head's size does not follow from the hidden size.
_OWN_HEAD_SIZE = ("head_dim", "qk_nope_head_dim", "qk_head_dim", "kv_lora_rank", "kv_channels")


def check_dimensions(config: Mapping[str, Any], where: Path | str = CONFIG) -> None:
    """Refuse sizes that are no sizes before anything is built from them.

    Args:
        config: config.json; the language model's own part is checked too.
        where: The file to name.

    Raises:
        ModelConfigError: naming the key.
    """
    _check_part(where, config, "")
    for key in _NESTED:
        nested = config.get(key)
        if nested is None:
            continue
        if not isinstance(nested, Mapping):
            raise ModelConfigError(where, f"{key} is {json_type(nested)}, not an object", _MEND)
        _check_part(where, nested, f"{key}.")


def _check_part(path: Path | str, config: Mapping[str, Any], prefix: str) -> None:
    for least, keys in ((1, _POSITIVE), (0, _ZERO_OR_MORE)):
        for key, most in keys.items():
            value = config.get(key)
            # Some families give one value for each layer, with null where there is none.
            for each in value if isinstance(value, list) else [value]:
                if each is not None:
                    _check_dimension(path, prefix + key, each, least, most)
    _check_heads(path, config, prefix)
    _check_factors(path, config, prefix)
    for table in _ROPE_TABLES:
        rope = config.get(table)
        if isinstance(rope, Mapping):
            _check_factors(path, rope, f"{prefix}{table}.")
            for kind, entry in rope.items():  # one for each kind of layer
                if isinstance(entry, Mapping):
                    _check_factors(path, entry, f"{prefix}{table}.{kind}.")


def _check_factors(path: Path | str, table: Mapping[str, Any], prefix: str) -> None:
    for key in _FACTORS:
        value = table.get(key)
        for each in value if isinstance(value, list) else [value]:
            if each is None:
                continue
            if isinstance(each, bool) or not isinstance(each, int | float):
                what = f"{prefix}{key} is {json_value(each)}, not a number"
                raise ModelConfigError(path, what, _MEND)
            if not 0 <= each < math.inf:
                what = f"{prefix}{key} is {json_value(each)}, which no factor can be"
                raise ModelConfigError(path, what, _MEND)


def _check_dimension(path: Path | str, key: str, value: object, least: int, most: int) -> None:
    if type(value) is not int:
        raise ModelConfigError(path, f"{key} is {json_value(value)}, not an integer", _MEND)
    if not least <= value <= most:
        what = f"{key} is {json_value(value)}, outside {least} to {most}"
        raise ModelConfigError(path, what, _MEND)


def _check_heads(path: Path | str, config: Mapping[str, Any], prefix: str) -> None:
    """Hold the heads to divide the hidden size, and the key-value heads the heads."""
    width, width_key = _first(config, ("hidden_size", "n_embd", "d_model"))
    heads, heads_key = _first(config, ("num_attention_heads", "n_head", "n_heads"))
    kv_heads, kv_key = _first(config, ("num_key_value_heads",))
    own_size = any(config.get(key) is not None for key in _OWN_HEAD_SIZE)
    if width and heads and width % heads and not own_size:
        what = f"{prefix}{heads_key} {heads} does not divide {prefix}{width_key} {width}"
        raise ModelConfigError(path, what, _MEND)
    if heads and kv_heads and heads % kv_heads:
        what = f"{prefix}{kv_key} {kv_heads} does not divide {prefix}{heads_key} {heads}"
        raise ModelConfigError(path, what, _MEND)


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[int, str]:
    """The first of the keys that holds one number for all layers; 0 if none does."""
    for key in keys:
        if isinstance(config.get(key), int):
            return config[key], key
    return 0, keys[0]
