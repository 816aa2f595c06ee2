"""Brings a checkpoint's tensors to the names and layouts that mlx-lm's `sanitize` expects.

Owns the renames and layouts that `sanitize` does not know, and the reasons for which
tensors are left out. Uses plain array operations only and never a value, so that the
work can be traced and streamed. Knows nothing of files or of quantization.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from checkpoint.architecture import nanochat_names
from configs.errors import SourceError

if TYPE_CHECKING:
    import mlx.core as mx

Weights = dict[str, "mx.array"]

# Tensors that no model of mlx-lm has a use for.
DROPPED: Mapping[str, str] = {
    r"rotary_emb\.\w*(inv_freq|_cached)$": "a rotary buffer, computed from the config",
    r"\.(attn|attention)\.(masked_)?bias$": "an attention mask, not a weight",
}
# Tensors that its `sanitize` leaves out, and why that is right.
LEFT_OUT: Mapping[str, str] = {
    **DROPPED,
    r"(^|\.)lm_head\.weight$": "tied to the embeddings",
    r"(^|\.)mtp(\b|_)": "multi-token prediction, which mlx-lm does not run",
    r"\.layers\.\d+\.(eh_proj|enorm|hnorm|shared_head|embed_tokens)\b": (
        "multi-token prediction, which mlx-lm does not run"
    ),
    r"(^|\.)(vision|visual|audio|multi_modal|embed_vision|embed_audio|mm_)": (
        "for images or sound; mlx-lm runs the text part"
    ),
}

_SPARSE = (r"\.mlp\.(experts|gate|e_score_correction_bias)\b", r".block_sparse_moe.\1")
RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "gpt2": ((r"^transformer\.", ""),),
    "granitemoe": (
        (r"\.router\.weight$", ".router.layer.weight"),
        (r"\.experts\.gate_up_proj$", ".input_linear.weight"),
        (r"\.experts\.down_proj$", ".output_linear.weight"),
    ),
    "laguna": ((r"\.shared_experts\.", ".shared_expert."),),
    "llama4_text": ((r"^lm_head\.", "output."),),
    "minimax_m2": (_SPARSE,),
    "mixtral": (_SPARSE,),
    "nanochat": (
        (r"^model\.embed_tokens\.", "transformer.wte."),
        (r"^model\.layers\.", "transformer.h."),
        (r"\.self_attn\.([qkv])_proj\.", r".attn.c_\1."),
        (r"\.self_attn\.o_proj\.", ".attn.c_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    ),
    "phimoe": ((r"\.mlp\.router\.", ".mlp.gate."), _SPARSE),
}
# Architectures whose `sanitize` stacks experts that are saved one by one, and only those; each
# with its names for an expert's three matrices.
_NAMED = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_NUMBERED = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
ONE_BY_ONE: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("lfm2_moe", "minimax_m2", "mixtral", "phimoe"), _NUMBERED),
    **dict.fromkeys(("afmoe", "deepseek_v2", "deepseek_v3", "dots1", "glm4_moe", "laguna"), _NAMED),
    **dict.fromkeys(("olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next"), _NAMED),
}

# Architectures whose `sanitize` keeps a tied head that was saved, and has no place for it.
_KEEPS_TIED_HEAD = ("gpt2",)
# Architectures whose `sanitize` leaves out masks by their names alone.
_DROPS_MASKS = ("gpt2",)
TIED_PAIR = ("model.embed_tokens.weight", "lm_head.weight")
TIED_PAIRS: Mapping[str, tuple[str, str]] = {
    "gpt2": ("wte.weight", "lm_head.weight"),
    "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
    "gptj": ("transformer.wte.weight", "lm_head.weight"),
    "llama4_text": ("model.embed_tokens.weight", "output.weight"),
    "nanochat": ("transformer.wte.weight", "lm_head.weight"),
}
# Architectures of mlx-lm that have a head of their own even where transformers ties it.
OWN_HEAD = (
    *("deepseek_v2", "deepseek_v3", "glm4", "glm4_moe", "gpt_neox", "gpt_oss", "gptj", "helium"),
    *("nanochat", "phi", "phimoe", "qwen2_moe", "stablelm"),
)


def explain_drop(name: str) -> str | None:
    """Why a tensor that mlx-lm's `sanitize` leaves out is not needed; None if no reason is known.

    For a tied head it is the caller's to see that its bytes are those of the embeddings.
    """
    return _reason(name, LEFT_OUT)


def adapt_weights(config: Mapping[str, Any], weights: Weights) -> tuple[Weights, tuple[str, ...]]:
    """A checkpoint's tensors as mlx-lm's `sanitize` expects them.

    Args:
        config: The explicit config.
        weights: Source tensors by name; lazy arrays, never evaluated here.

    Returns:
        The tensors, and a line `name: reason` for each source tensor left out.

    Raises:
        SourceError: a tensor has the name of a mask and is none.
    """
    model_type = config["model_type"]
    if model_type in nanochat_names.MODEL_TYPES:
        weights = nanochat_names.adapt(config, weights)
    adapted: Weights = {}
    dropped: list[str] = []
    for name, weight in weights.items():
        if (reason := _reason(name, DROPPED)) is not None and not _is_weight(name, weight):
            dropped.append(f"{name}: {reason}")
            continue
        if reason is not None and model_type in _DROPS_MASKS:
            what = f"has the name of {reason}, and the shape {list(weight.shape)} of none"
            raise SourceError(name, what, "is config.json the checkpoint's own?")
        for pattern, replacement in RENAMED.get(model_type, ()):
            name = re.sub(pattern, replacement, name)
        adapted |= _unfused(model_type, name, weight)
    _tie(config, adapted)
    if config.get("tie_word_embeddings") and model_type in _KEEPS_TIED_HEAD:
        embeddings, head = TIED_PAIRS[model_type]
        if embeddings in adapted and adapted.pop(head, None) is not None:
            dropped.append(f"{head}: tied to the embeddings")
    return adapted, tuple(dropped)


def _is_weight(name: str, weight: mx.array) -> bool:
    """Whether a tensor that is called as a mask may be a bias: a mask has no such shape."""
    if not re.search(r"\.(masked_)?bias$", name):
        return False
    return weight.size != 1 and not (weight.ndim == 4 and weight.shape[:2] == (1, 1))


def _reason(name: str, table: Mapping[str, str]) -> str | None:
    return next((reason for pattern, reason in table.items() if re.search(pattern, name)), None)


def _unfused(model_type: str, name: str, weight: mx.array) -> Weights:
    """Experts that transformers saved as it holds them, in one tensor for a layer, one by one."""
    experts, _, kind = name.rpartition(".")
    if kind not in ("gate_up_proj", "down_proj") or not experts.endswith(".experts"):
        return {name: weight}
    if model_type == "gpt_oss":  # held as (experts, in, out); sanitize parts gates from ups
        return {f"{name}.weight": weight.swapaxes(-1, -2)}
    if model_type not in ONE_BY_ONE:
        return {name: weight}
    parts = {"down_proj": weight}
    if kind == "gate_up_proj":
        half = weight.shape[1] // 2
        parts = {"gate_proj": weight[:, :half], "up_proj": weight[:, half:]}
    return {
        f"{experts}.{expert}.{ONE_BY_ONE[model_type][part]}.weight": stack[expert]
        for part, stack in parts.items()
        for expert in range(weight.shape[0])
    }


def _tie(config: Mapping[str, Any], weights: Weights) -> None:
    """Give a tied pair the tensors that mlx-lm's model wants of it, whichever was saved."""
    if not config.get("tie_word_embeddings"):
        return
    embeddings, head = TIED_PAIRS.get(config["model_type"], TIED_PAIR)
    if embeddings not in weights and head in weights:
        weights[embeddings] = weights[head]
    if head not in weights and embeddings in weights and config["model_type"] in OWN_HEAD:
        weights[head] = weights[embeddings]
