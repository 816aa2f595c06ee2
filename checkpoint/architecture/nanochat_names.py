"""nanochat's names for its tensors to those of the models that run it.

Owns the renames, of a key of config.json too, and the rows of padding that are cut off. Uses
plain array operations only, so that the work can be traced and streamed. Knows nothing of
files or constants.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from checkpoint.nanochat.eras import plain_names
from checkpoint.nanochat.model_config import OURS, padded

if TYPE_CHECKING:
    import mlx.core as mx

MODEL_TYPES = ("nanochat", OURS)
_RENAMED = (
    (
        r"^(resid_lambdas|x0_lambdas|smear_gate\.weight|smear_lambda|backout_lambda)$",
        r"transformer.\1",
    ),
    (r"^value_embeds\.(\d+)\.weight$", r"transformer.h.\1.attn.value_embed.weight"),
)
_ROWS_ARE_TOKENS = re.compile(r"(^|\.)(wte|embed_tokens|lm_head|value_embed)\.weight$")


def present_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with a key of nanochat's that was once called otherwise under its present name."""
    made = dict(config)
    if made.get("model_type") == "nanochat" and "logits_soft_cap" in made:
        earlier = made.pop("logits_soft_cap")
        made.setdefault("final_logit_softcapping", earlier)
    return made


def adapt(config: Mapping[str, Any], weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """A checkpoint's tensors under their models' names, without the padding of the vocabulary.

    Args:
        config: The explicit config.
        weights: Tensors by nanochat's names or by transformers'.

    Raises:
        ArchitectureError: Two tensors have one name.
    """
    rows, made = int(config["vocab_size"]), {}
    for name, short in plain_names(weights).items():
        weight = weights[name]
        for pattern, replacement in _RENAMED:
            short = re.sub(pattern, replacement, short)
        if _ROWS_ARE_TOKENS.search(short) and rows < weight.shape[0] == padded(rows):
            weight = weight[:rows]
        made[short] = weight
    return made
