"""Reads config.json and refuses what no architecture could be built from.

Owns the checks that hold for every model: a model type that mlx-lm has, dimensions that
are sane numbers, heads that divide. Knows nothing of what one architecture makes of its
values, and imports no architecture.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint.architecture.mlx_lm_models import model_types
from checkpoint.folder import CONFIG, file_in
from checkpoint.json_file import json_type, json_value, quoted, read_json_object
from configs.errors import ArchitectureError, ModelConfigError

# Keys that name Python files of the folder's own.
_CUSTOM_CODE = ("auto_map", "model_file")
# Where configs of several modalities keep the language model's values.
_NESTED = ("text_config", "language_config", "llm_config")

# The largest value that a dimension may have: far beyond any model, far below what would
# take the machine down. Zero is allowed only where it means "none".
_WIDTH, _COUNT, _VOCABULARY, _CONTEXT = 1 << 20, 1 << 16, 1 << 25, 1 << 31
_POSITIVE = {
    "hidden_size": _WIDTH,
    "n_embd": _WIDTH,
    "d_model": _WIDTH,
    "intermediate_size": 1 << 24,
    "head_dim": _WIDTH,
    "num_hidden_layers": _COUNT,
    "n_layer": _COUNT,
    "n_layers": _COUNT,
    "num_attention_heads": _COUNT,
    "n_head": _COUNT,
    "n_heads": _COUNT,
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
# With one of these, an attention head's size does not follow from the hidden size.
_OWN_HEAD_SIZE = ("head_dim", "qk_nope_head_dim", "qk_head_dim", "kv_lora_rank", "kv_channels")


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json.

    Returns:
        Its content, unchanged.

    Raises:
        ModelConfigError: It is missing, not JSON, or holds a value that can't be.
        ArchitectureError: mlx-lm has no architecture for its model type.
        DiskError: It can't be read.
    """
    path = file_in(folder, CONFIG)
    if not path.exists():
        raise ModelConfigError(path, "is missing", "give the folder that a model was saved in")
    config = read_json_object(path, ModelConfigError, infinities=True)
    _check_model_type(path, config)
    _check_dimensions(path, config, "")
    for key in _NESTED:
        nested = config.get(key)
        if nested is None:
            continue
        if not isinstance(nested, dict):
            raise ModelConfigError(path, f"{key} is {json_type(nested)}, not an object")
        _check_dimensions(path, nested, f"{key}.")
    return config


def _check_model_type(path: Path, config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        what = "has no model_type" if model_type is None else "model_type is not a string"
        raise ModelConfigError(path, what, "add the one that the model's family uses")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(x, str) for x in architectures):
        raise ModelConfigError(path, "architectures is not an array of strings")
    if model_type in model_types():
        return
    what = f"model_type {quoted(model_type)} is not one mlx-lm has"
    code = [key for key in _CUSTOM_CODE if config.get(key) is not None]
    if code:
        what += f", and the folder's own code ({code[0]}) is never run"
    near = difflib.get_close_matches(model_type[:50], sorted(model_types()), n=3, cutoff=0)
    raise ArchitectureError(path, what, f"the nearest supported are {', '.join(near)}")


def _check_dimensions(path: Path, config: Mapping[str, Any], prefix: str) -> None:
    for least, keys in ((1, _POSITIVE), (0, _ZERO_OR_MORE)):
        for key, most in keys.items():
            value = config.get(key)
            # Some families give one value for each layer, with null where there is none.
            for each in value if isinstance(value, list) else [value]:
                if each is not None:
                    _check_dimension(path, prefix + key, each, least, most)
    _check_heads(path, config, prefix)


def _check_dimension(path: Path, key: str, value: object, least: int, most: int) -> None:
    if type(value) is not int:
        raise ModelConfigError(path, f"{key} is {json_value(value)}, not an integer")
    if not least <= value <= most:
        what = f"{key} is {json_value(value)}, outside {least} to {most}"
        raise ModelConfigError(path, what)


def _check_heads(path: Path, config: Mapping[str, Any], prefix: str) -> None:
    """Hold the heads to divide the hidden size, and the key-value heads the heads."""
    width, width_key = _first(config, ("hidden_size", "n_embd", "d_model"))
    heads, heads_key = _first(config, ("num_attention_heads", "n_head", "n_heads"))
    kv_heads, kv_key = _first(config, ("num_key_value_heads",))
    own_size = any(config.get(key) is not None for key in _OWN_HEAD_SIZE)
    if width and heads and width % heads and not own_size:
        what = f"{prefix}{heads_key} {heads} does not divide {prefix}{width_key} {width}"
        raise ModelConfigError(path, what)
    if heads and kv_heads and heads % kv_heads:
        what = f"{prefix}{kv_key} {kv_heads} does not divide {prefix}{heads_key} {heads}"
        raise ModelConfigError(path, what)


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[int, str]:
    """The first of the keys that holds one number for all layers; 0 if none does."""
    for key in keys:
        if isinstance(config.get(key), int):
            return config[key], key
    return 0, keys[0]
