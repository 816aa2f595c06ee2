"""Parameters of mlx-lm's models to the names and layouts that transformers saves: a reviewed table.

Owns the way back for each architecture that has one, the reverse of mlx-lm's `sanitize`
and of `names`. Uses plain array operations only and never a value, so that the work can
be traced and streamed. That it is the reverse is for `hf_layout` to prove.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from checkpoint.architecture.names import ONE_BY_ONE

if TYPE_CHECKING:
    from checkpoint.architecture.names import Weights

Values = Mapping[str, Any]
Way = Callable[[Values, str, "Weights"], "Weights | None"]
"""Takes the config, a parameter's name and all parameters; gives the tensors that take its
place, or None if the way is not for this parameter."""


def _as_they_are(_: Values, name: str, weights: Weights) -> Weights:
    return {name: weights[name]}


def _renamed(*pairs: tuple[str, str]) -> Way:
    """Names changed by patterns."""

    def way(_: Values, name: str, weights: Weights) -> Weights | None:
        changed = name
        for pattern, replacement in pairs:
            changed = re.sub(pattern, replacement, changed)
        return {changed: weights[name]} if changed != name else None

    return way


def _one_by_one(values: Values, name: str, weights: Weights) -> Weights | None:
    """Stacked experts, one tensor for each."""
    found = re.fullmatch(r"(.*)\.(?:switch_mlp|experts)\.(gate|up|down)_proj\.weight", name)
    if not found or weights[name].ndim != 3:
        return None
    block, part = found[1], ONE_BY_ONE[values["model_type"]][f"{found[2]}_proj"]
    stack = weights[name]
    return {f"{block}.experts.{n}.{part}.weight": stack[n] for n in range(stack.shape[0])}


def _swapped(pattern: str, *axes: int) -> Way:
    """Two axes of a tensor swapped, such as those of a convolution."""

    def way(_: Values, name: str, weights: Weights) -> Weights | None:
        return {name: weights[name].swapaxes(*axes)} if re.search(pattern, name) else None

    return way


def _gates_and_ups(_: Values, name: str, weights: Weights) -> Weights | None:
    """Granite's experts: gates and ups in one tensor."""
    found = re.fullmatch(r"(.*\.block_sparse_moe)\.switch_mlp\.(gate|up|down)_proj\.weight", name)
    if not found:
        return None
    if found[2] == "down":
        return {f"{found[1]}.output_linear.weight": weights[name]}
    if found[2] == "up":
        return {}
    ups = weights[name.replace("gate_proj", "up_proj")]
    return {f"{found[1]}.input_linear.weight": mx.concatenate([weights[name], ups], axis=1)}


def _interleaved(_: Values, name: str, weights: Weights) -> Weights | None:
    """gpt-oss's experts: gates and ups take turns, and matrices are held as (in, out)."""
    found = re.fullmatch(r"(.*\.experts)\.(gate|up|down)_proj\.(weight|bias)", name)
    if not found:
        return None
    experts, part, kind = found.groups()
    suffix = "_bias" if kind == "bias" else ""
    value = weights[name]
    if part == "up":
        return {}
    if part == "gate":
        ups = weights[name.replace("gate_proj", "up_proj")]
        count, rows, *rest = value.shape
        value = mx.stack([value, ups], axis=2).reshape(count, 2 * rows, *rest)
    whole = value if kind == "bias" else value.swapaxes(-1, -2)
    return {f"{experts}.{'gate_up' if part == 'gate' else part}_proj{suffix}": whole}


def _latent(_: Values, name: str, weights: Weights) -> Weights | None:
    """DeepSeek's latent attention: two matrices a head, in one tensor."""
    if name.endswith(".unembed_out.weight"):
        return {}
    if not name.endswith(".embed_q.weight"):
        return None
    keys, values = weights[name].swapaxes(-1, -2), weights[name.replace("embed_q", "unembed_out")]
    both = mx.concatenate([keys, values], axis=1)
    return {name.replace("embed_q", "kv_b_proj"): both.reshape(-1, both.shape[-1])}


def _vectors(_: Values, name: str, weights: Weights) -> Weights | None:
    """Apertus's scalars, saved as vectors of one."""
    return {name: weights[name].reshape(1)} if re.search(r"\.alpha_[pn]$", name) else None


_CONVOLUTION = _swapped(r"\bconv1d\.weight$|\.conv\.conv\.weight$", 1, 2)

# By transformers' model_type; the first of the ways that is for a parameter is taken.
WAYS: Mapping[str, tuple[Way, ...]] = {
    **dict.fromkeys(("cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2"), ()),
    **dict.fromkeys(("gemma3_text", "glm4", "gpt_bigcode", "granite", "helium", "llama"), ()),
    **dict.fromkeys(
        ("hunyuan_v1_dense", "ministral3", "mistral", "nemotron", "olmo2", "olmo3"), ()
    ),
    **dict.fromkeys(("phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm"), ()),
    "starcoder2": (),
    **dict.fromkeys(("afmoe", "deepseek_v2", "dots1", "glm4_moe", "minimax_m2"), (_one_by_one,)),
    **dict.fromkeys(("mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"), (_one_by_one,)),
    **dict.fromkeys(("falcon_mamba", "jamba", "lfm2", "mamba", "mamba2"), (_CONVOLUTION,)),
    "apertus": (_vectors,),
    "deepseek_v3": (_one_by_one, _latent),
    "gpt2": (
        lambda values, name, weights: {
            re.sub(r"^model\.", "transformer.", name): weights[name].T
            if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name)
            else weights[name]
        },
    ),
    "gpt_neox": (
        _renamed(
            (r"^model\.h\.", "gpt_neox.layers."),
            (r"^model\.embed_out\.", "embed_out."),
            (r"^model\.", "gpt_neox."),
        ),
    ),
    "gpt_oss": (_interleaved,),
    "gptj": (_renamed((r"^model\.", "transformer.")),),
    "granitemoe": (_gates_and_ups,),
    "granitemoehybrid": (_gates_and_ups, _CONVOLUTION),
    "laguna": (
        _one_by_one,
        _renamed(
            (r"\.gate\.proj\.weight$", ".gate.weight"),
            (r"\.gate\.(e_score_correction_bias)$", r".experts.\1"),
        ),
    ),
    "lfm2_moe": (
        _one_by_one,
        _renamed(
            (r"(\.feed_forward)\.gate_proj\.", r"\1.w1."),
            (r"(\.feed_forward)\.up_proj\.", r"\1.w3."),
            (r"(\.feed_forward)\.down_proj\.", r"\1.w2."),
        ),
        _CONVOLUTION,
    ),
    "llama4_text": (_renamed((r"^output\.", "lm_head.")),),
    "nanochat": (
        _renamed(
            (r"^transformer\.wte\.", "model.embed_tokens."),
            (r"^transformer\.h\.", "model.layers."),
            (r"\.attn\.c_([qkv])\.", r".self_attn.\1_proj."),
            (r"\.attn\.c_proj\.", ".self_attn.o_proj."),
            (r"\.mlp\.c_fc\.", ".mlp.fc1."),
            (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        ),
    ),
}


def to_hugging_face(values: Values, weights: Weights) -> Weights:
    """The tensors that transformers saves, of those that mlx-lm's model has.

    Args:
        values: The explicit config; its `model_type` is in `WAYS`.
        weights: The model's parameters by name; lazy arrays, never evaluated here.
    """
    ways = (*WAYS[values["model_type"]], _as_they_are)
    made: Weights = {}
    for name in weights:
        tried = (way(values, name, weights) for way in ways)
        made |= next(tensors for tensors in tried if tensors is not None)
    return made
