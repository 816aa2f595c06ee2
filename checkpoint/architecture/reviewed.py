"""What mlx-lm's architectures compute without asking config.json: a reviewed table.

Owns the facts that can't be read off mlx-lm's `ModelArgs`: values that its code has
built in, keys that it calls by another name, keys that nobody needs at inference.
Knows neither weights nor how a config is written.

A key of transformers' class is honoured if mlx-lm's `ModelArgs` has it (or a name in
`renamed`). If not, its value must be one that is `built_in`; for a key in no table,
it must be the class's default, which is what each architecture was ported from.
RoPE is in no table: `rope.py` looks at what the model's rope modules compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.errors import ArchitectureError

from . import rope

Values = Mapping[str, Any]

# Read by nobody at inference: training, labels, token ids, outputs, kernels, bookkeeping.
UNNEEDED = frozenset(
    """
    architectures dtype torch_dtype transformers_version model_type quantization_config auto_map
    bos_token_id eos_token_id pad_token_id decoder_start_token_id sep_token_id cls_token_id
    unk_token_id eod_token_id image_token_id image_token_index video_token_id audio_token_id
    boi_token_index eoi_token_index vision_start_token_id vision_end_token_id
    id2label label2id num_labels problem_type classifier_dropout is_decoder is_encoder_decoder
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    return_dict output_attentions output_hidden_states output_router_logits use_cache
    chunk_size_feed_forward num_logits_to_keep pretraining_tp tie_last_hidden_states
    initializer_range initializer_factor attention_dropout hidden_dropout residual_dropout
    embedding_dropout resid_pdrop embd_pdrop attn_pdrop emb_pdrop ffn_dropout dropout
    attn_dropout hidden_dropout_prob embed_pdrop rescale_prenorm_residual embedding_initializer_range
    router_aux_loss_coef aux_loss_alpha seq_aux router_z_loss_coef router_jitter_noise
    input_jitter_noise router_aux_loss_factor load_balance_coeff
    time_step_init_scheme time_step_scale w_init_variance_scale final_w_init_variance_scale
    use_mamba_kernels use_mambapy use_associative_scan mamba_chunk_size chunk_size block_size
    reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32
    residual_in_fp32 mamba_ssm_dtype mamba_ssm_cache_dtype moe_shared_expert_overlap
    max_position_embeddings model_max_length original_max_position_embeddings max_window_layers
    mtp_num_hidden_layers num_nextn_predict_layers mtp_layer_types mtp_mlp_layer_types
    """.split()
)

# Told by rope_parameters, which rope.py translates and checks.
ROPE_KEYS = frozenset(
    """
    rope_parameters rope_scaling rope_theta rope_local_base_freq partial_rotary_factor rotary_pct
    rotary_emb_base rope_pct rotary_dim rope_interleave
    """.split()
)

# What an architecture computes when it has no such key, unless its own row says otherwise.
BUILT_IN: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "use_sliding_window": (False,),
    "use_bidirectional_attention": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "qk_layernorm": (False,),
    "add_cross_attention": (False,),
}

# mlx-lm computes some with the exact GELU and some with its tanh form. The two differ by less than
# 5e-4, which disappears in the logits' own tolerance, so either stands for the other.
GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python")


@dataclass(frozen=True)
class Architecture:
    """One row: what mlx-lm's module for an architecture has built in.

    Attributes:
        built_in: For keys of transformers' that its code does not ask for, the values that it
            computes; or a function that says whether a config's values fit.
        renamed: mlx-lm's keys, each with transformers' key or a function of its values.
        carried: transformers' keys whose meaning is wholly in the `renamed` ones.
        unread: Keys its `ModelArgs` has but its code never uses.
        ignored_tensors: Ends of names of tensors that transformers computes with and it does not.
    """

    built_in: Mapping[str, tuple[Any, ...] | Callable[[Values], bool]] = field(default_factory=dict)
    renamed: Mapping[str, str | Callable[[Values], Any]] = field(default_factory=dict)
    carried: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    ignored_tensors: tuple[str, ...] = ()


def every_nth(values: Values) -> int:
    """The n for which each nth layer, and only those, has full attention.

    Raises:
        ArchitectureError: no n gives these `layer_types`.
    """
    kinds = values["layer_types"]
    for n in range(1, len(kinds) + 2):
        if kinds == [
            "sliding_attention" if (i + 1) % n else "full_attention" for i in range(len(kinds))
        ]:
            return n
    raise ArchitectureError(
        "config.json", f"layer_types {kinds} can't be honoured: mlx-lm wants every nth layer full"
    )


def windows_as_letters(values: Values) -> str | None:
    """EXAONE's pattern, a letter a layer: local or global; None without sliding windows."""
    if not values["sliding_window"]:
        return None
    return "".join("L" if kind == "sliding_attention" else "G" for kind in values["layer_types"])


def mamba_and_attention(values: Values) -> list[str]:
    """Layer types by the names that they had before transformers 5."""
    old = {"linear_attention": "mamba", "full_attention": "attention"}
    return [old.get(kind, kind) for kind in values["layer_types"]]


def yarn_at_least(values: Values) -> dict[str, Any]:
    """Plain RoPE as YaRN with a factor of 1, for code that knows no other."""
    plain = {**values["rope_parameters"], "rope_type": "yarn", "type": "yarn", "factor": 1.0}
    plain["original_max_position_embeddings"] = values["max_position_embeddings"]
    return rope.scaling(values["rope_parameters"], values, []) or plain


def _gelu(**built_in: Any) -> Architecture:
    names = ("hidden_act", "hidden_activation", "activation_function")
    return Architecture({**dict.fromkeys(names, GELU), **built_in})


_MLA_HEADS: Mapping[str, Callable[[Values], bool]] = {
    "head_dim": lambda v: v["head_dim"] == v["qk_rope_head_dim"],
    "qk_head_dim": lambda v: v["qk_head_dim"] == v["qk_rope_head_dim"] + v["qk_nope_head_dim"],
}

# By transformers' model_type. An architecture with no row was not reviewed: the rules above hold.
ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(
        """
        llama mistral qwen2 qwen3 mixtral phi3 olmo2 olmo3 olmoe cohere smollm3 stablelm granite
        granitemoe glm4 glm4_moe ernie4_5 mamba seed_oss hunyuan_v1_dense nemotron helium dots1
        qwen3_next ministral3
        """.split(),
        Architecture(),
    ),
    "qwen2_moe": Architecture({"qkv_bias": (True,), "norm_topk_prob": (False,)}),
    "qwen3_moe": Architecture(renamed={"num_experts": "num_local_experts"}, carried=frozenset({"num_local_experts"})),
    "phi": _gelu(),
    "phimoe": Architecture({"attention_bias": (True,), "lm_head_bias": (True,)}),
    "gemma": _gelu(),
    "gemma2": _gelu(),
    "gemma3_text": Architecture(
        {"hidden_activation": GELU},
        renamed={"sliding_window_pattern": every_nth},
        carried=frozenset({"layer_types"}),
    ),
    "cohere2": Architecture(
        renamed={"sliding_window_pattern": every_nth}, carried=frozenset({"layer_types"})
    ),
    "exaone4": Architecture(
        renamed={"sliding_window_pattern": windows_as_letters},
        carried=frozenset({"layer_types"}),
    ),
    "starcoder2": _gelu(use_bias=(True,)),
    "gpt2": Architecture(
        {"activation_function": GELU, "n_inner": lambda v: v["n_inner"] in (None, 4 * v["n_embd"])},
        renamed={"n_ctx": "n_positions"},
    ),
    "gpt_bigcode": _gelu(),
    "gptj": _gelu(n_inner=lambda v: v["n_inner"] in (None, 4 * v["n_embd"])),
    "gpt_neox": _gelu(
        intermediate_size=lambda v: v["intermediate_size"] == 4 * v["hidden_size"],
        attention_bias=(True,),
    ),
    "gpt_oss": Architecture({"attention_bias": (True,)}),
    # The norms' built-in epsilon is 1e-5; on inputs of size one the difference is 5e-6.
    "nanochat": Architecture(
        {"hidden_act": ("relu2",), "rms_norm_eps": (1e-5, 1e-6), "final_logit_softcapping": (15.0,)}
    ),
    "bitnet": Architecture({"hidden_act": ("relu2",)}),
    "apertus": Architecture(
        {"hidden_act": ("xielu",)},
        renamed={"mlp_bias": lambda _: False, "post_norm": lambda _: False, "qk_norm": lambda _: True},
    ),
    "mamba2": Architecture(
        {"n_groups": (1,)},
        renamed={"intermediate_size": lambda v: int(v["expand"] * v["hidden_size"])},
        carried=frozenset({"expand"}),
    ),
    "deepseek_v2": Architecture(
        {**_MLA_HEADS, "norm_topk_prob": (False,)}, renamed={"rope_scaling": yarn_at_least}
    ),
    "deepseek_v3": Architecture({**_MLA_HEADS, "rope_interleave": (True,)}),
    "ernie4_5_moe": Architecture(ignored_tensors=("moe_statics.e_score_correction_bias",)),
    "jamba": Architecture({"num_experts": (1,)}),  # it normalizes the experts' scores
    "falcon_h1": Architecture(),
    "minimax_m2": Architecture(renamed={"shared_intermediate_size": lambda _: 0}),  # never used
    "lfm2": Architecture(renamed={"block_dim": "hidden_size"}),
    "granitemoehybrid": Architecture(
        {"mamba_n_groups": (1,), "position_embedding_type": (None, "rope", "nope")},
        renamed={
            "layer_types": mamba_and_attention,
            "position_embedding_type": lambda v: v["position_embedding_type"] or "nope",
        },
        carried=frozenset({"mamba_expand"})
    ),
    "llama4_text": Architecture({"moe_layers": ([],), "attn_temperature_tuning": (False, 0)}),
}
