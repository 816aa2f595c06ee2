"""The values of a config.json as plain data: sizes that are sizes, infinities that are numbers.

Owns the checks that need no model, and the form in which transformers writes floats
that JSON lacks. Knows nothing of what any value means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from configs.errors import ModelConfigError

# The keys of sizes that models are built from, each with the most that is plausible.
_SIZES: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 10_000),
    **dict.fromkeys(
        ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"), 100_000
    ),
    **dict.fromkeys(("hidden_size", "intermediate_size", "head_dim", "n_embd", "d_model"), 10**7),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), 2**31 - 1),
}


def check_dimensions(config: Mapping[str, Any]) -> None:
    """Refuse sizes that are no sizes before anything is built from them.

    Raises:
        ModelConfigError: naming the key.
    """
    for part in (config, config.get("text_config") or {}):
        if not isinstance(part, Mapping):
            raise ModelConfigError("config.json", "text_config is not an object")
        for key, most in _SIZES.items():
            value = part.get(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
                raise ModelConfigError("config.json", f"{key} {value!r} is not from 1 to {most}")
        width, heads = part.get("hidden_size"), part.get("num_attention_heads")
        if width and heads and not part.get("head_dim") and width % heads:
            raise ModelConfigError(
                "config.json",
                f"hidden_size {width} is not a multiple of num_attention_heads {heads}",
            )
        groups = part.get("num_key_value_heads")
        if heads and groups and heads % groups:
            raise ModelConfigError(
                "config.json",
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}",
            )


def untagged(value: Any) -> Any:
    """A config with the infinities that transformers writes as objects put back."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:
            if value["__float__"] not in ("Infinity", "-Infinity"):
                raise ModelConfigError("config.json", f"{dict(value)} is not an infinity")
            return float(value["__float__"])
        return {key: untagged(item) for key, item in value.items()}
    return [untagged(item) for item in value] if isinstance(value, list) else value


def tagged(value: Any) -> Any:
    """A config that is valid JSON: the reverse of `untagged`."""
    if isinstance(value, float) and not math.isfinite(value):
        name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return {"__float__": name}
    if isinstance(value, Mapping):
        return {key: tagged(item) for key, item in value.items()}
    return [tagged(item) for item in value] if isinstance(value, list) else value
