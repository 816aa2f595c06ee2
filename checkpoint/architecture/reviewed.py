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

from checkpoint.architecture import rope
from configs.errors import ArchitectureError

Values = Mapping[str, Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Ids that only the source can know: transformers' classes have defaults, of another vocabulary.
TOKEN_IDS = _words(
    """
    bos_token_id eos_token_id pad_token_id sep_token_id eod_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id image_token_id video_token_id audio_token_id
    image_token_index video_token_index audio_token_index boi_token_index eoi_token_index
    """
)

# Bookkeeping of transformers' base class: left as a config.json has it, or has it not.
BOOKKEEPING = TOKEN_IDS | _words(
    """
    architectures dtype torch_dtype transformers_version quantization_config auto_map
    id2label label2id num_labels problem_type return_dict output_attentions output_hidden_states
    chunk_size_feed_forward is_encoder_decoder is_decoder num_logits_to_keep tie_last_hidden_states
    """
)

# What no logit depends on: training, token ids, kernels, and lengths that only limit.
UNJUDGED = BOOKKEEPING | _words(
    """
    model_type use_cache pretraining_tp
    output_router_logits classifier_dropout use_sliding_window
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    initializer_range attention_dropout hidden_dropout residual_dropout embedding_dropout
    resid_pdrop embd_pdrop attn_pdrop emb_pdrop rescale_prenorm_residual
    router_aux_loss_coef aux_loss_alpha seq_aux router_z_loss_coef router_jitter_noise
    input_jitter_noise time_step_init_scheme time_step_scale time_step_min time_step_max
    time_step_floor w_init_variance_scale final_w_init_variance_scale
    use_mamba_kernels use_mambapy use_associative_scan mamba_chunk_size chunk_size block_size
    reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32
    residual_in_fp32 mamba_ssm_dtype mamba_ssm_cache_dtype moe_shared_expert_overlap
    max_position_embeddings model_max_length original_max_position_embeddings max_window_layers
    mtp_num_hidden_layers num_nextn_predict_layers mtp_layer_types mtp_mlp_layer_types
    """
)

# Told by rope_parameters, which rope.py translates and checks.
ROPE_KEYS = _words(
    """
    rope_parameters rope_scaling rope_theta rope_local_base_freq partial_rotary_factor rotary_pct
    rotary_emb_base rope_pct rotary_dim
    """
)

# What an architecture computes when it has no such key, unless its own row says otherwise.
BUILT_IN: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "use_bidirectional_attention": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "qk_layernorm": (False,),
    "add_cross_attention": (False,),
}

EXACT_GELU = ("gelu", "gelu_python")
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh")


@dataclass(frozen=True)
class Architecture:
    """One row: what mlx-lm's module for an architecture has built in.

    Attributes:
        built_in: For keys of transformers' that its code does not ask for, the values that it
            computes; or a function that says whether a config's values fit.
        near: Values that it does not compute, but so nearly that the logits agree to 1e-3.
        renamed: mlx-lm's keys, each with transformers' key or a function of its values.
        carried: transformers' keys whose meaning is wholly in the `renamed` ones.
        unread: Keys its `ModelArgs` has but its code never uses.
        ignored_tensors: Ends of names of tensors that transformers computes with and it does not.
    """

    built_in: Mapping[str, tuple[Any, ...] | Callable[[Values], bool]] = field(default_factory=dict)
    near: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
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
        "config.json",
        f"layer_types {kinds} can't be honoured: mlx-lm wants every nth layer full",
        "it can be converted once mlx-lm's architecture reads them",
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


def yarn_at_least(values: Values) -> dict[str, Any] | None:
    """Plain RoPE as YaRN with a factor of 1, for code that knows no other."""
    told = values["rope_parameters"]
    if told["rope_type"] == "default":
        context = values["max_position_embeddings"]
        told = {**told, "rope_type": "yarn", "factor": 1.0}
        told["original_max_position_embeddings"] = context
    return rope.scaling(told, values, [])


def irrelevant(_: Values) -> bool:
    """For keys that transformers' models do not compute with either, whatever they hold."""
    return True


def _tanh_gelu(key: str, **built_in: Any) -> Architecture:
    return Architecture({key: TANH_GELU, **built_in}, near={key: EXACT_GELU})


def _exact_gelu(key: str, **built_in: Any) -> Architecture:
    return Architecture({key: EXACT_GELU, **built_in}, near={key: TANH_GELU})


def _plain_inner(values: Values) -> bool:
    return values["n_inner"] in (None, 4 * values["n_embd"])


_MLA: Mapping[str, Callable[[Values], bool]] = {
    "head_dim": lambda v: v["head_dim"] == v["qk_rope_head_dim"],
    "qk_head_dim": lambda v: v["qk_head_dim"] == v["qk_rope_head_dim"] + v["qk_nope_head_dim"],
    "num_key_value_heads": irrelevant,
}

# mlx-lm's architecture for the text part of a multimodal model, where the type names none.
TEXT_TYPES: Mapping[str, str] = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}

# By transformers' model_type. Without a row, the rules above hold and a note says so.
ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(
        _words(
            """
        afmoe cohere ernie4_5 falcon_mamba glm granite granitemoe hunyuan_v1_dense iquestcoder
        laguna lfm2_moe llama mamba ministral3 mistral mixtral olmo2 olmo3 olmoe phi3 qwen2 qwen3
        qwen3_next seed_oss smollm3 stablelm glm4
        """
        ),
        Architecture(),
    ),
    "apertus": Architecture(
        {"hidden_act": ("xielu",)},
        renamed={
            "mlp_bias": lambda _: False,
            "post_norm": lambda _: False,
            "qk_norm": lambda _: True,
        },
        unread=frozenset({"attention_bias", "post_norm", "qk_norm"}),
    ),
    "cohere2": Architecture(
        renamed={"sliding_window_pattern": every_nth}, carried=frozenset({"layer_types"})
    ),
    # its mscale needs a rope_scaling even where nothing is scaled
    "deepseek_v2": Architecture(
        {**_MLA, "norm_topk_prob": (False,)},
        renamed={"rope_scaling": yarn_at_least, "rope_parameters": yarn_at_least},
        unread=frozenset({"num_key_value_heads"}),
    ),
    "deepseek_v3": Architecture(
        {**_MLA, "rope_interleave": (True,)},
        unread=frozenset({"num_key_value_heads", "scoring_func"}),
    ),
    "dots1": Architecture(unread=frozenset({"scoring_func", "attention_bias"})),
    "ernie4_5_moe": Architecture(
        unread=frozenset({"moe_capacity", "moe_use_aux_free"}),
        ignored_tensors=("moe_statics.e_score_correction_bias",),
    ),
    "exaone4": Architecture(
        renamed={"sliding_window_pattern": windows_as_letters}, carried=frozenset({"layer_types"})
    ),
    "falcon_h1": Architecture(
        {"mamba_expand": irrelevant},  # mamba_d_ssm is always held
        unread=frozenset({"mamba_expand", "mamba_use_mlp", "mlp_expansion_factor"}),
    ),
    "gemma": _exact_gelu("hidden_act"),
    "gemma2": _tanh_gelu(
        "hidden_activation",
        attn_logit_softcapping=lambda v: v["attn_logit_softcapping"] is not None,
        final_logit_softcapping=lambda v: v["final_logit_softcapping"] is not None,
    ),
    "gemma3_text": Architecture(
        {"hidden_activation": TANH_GELU},
        near={"hidden_activation": EXACT_GELU},
        renamed={"sliding_window_pattern": every_nth},
        carried=frozenset({"layer_types"}),
    ),
    "glm4_moe": Architecture(unread=frozenset({"tie_word_embeddings", "scoring_func"})),
    "gpt2": Architecture(
        {"activation_function": TANH_GELU, "n_inner": _plain_inner},
        near={"activation_function": EXACT_GELU},
        renamed={"n_ctx": "n_positions"},
        unread=frozenset({"n_ctx"}),
    ),
    "gpt_bigcode": _exact_gelu("activation_function"),
    "gpt_neox": _tanh_gelu(
        "hidden_act",
        intermediate_size=lambda v: v["intermediate_size"] == 4 * v["hidden_size"],
        attention_bias=(True,),
    ),
    "gpt_oss": Architecture({"attention_bias": (True,)}),
    "gptj": _tanh_gelu("activation_function", n_inner=_plain_inner),
    "granitemoehybrid": Architecture(
        {"mamba_n_groups": (1,), "position_embedding_type": (None, "rope", "nope")},
        renamed={
            "layer_types": mamba_and_attention,
            "position_embedding_type": lambda v: v["position_embedding_type"] or "nope",
        },
        carried=frozenset({"mamba_expand"}),
    ),
    "helium": Architecture(unread=frozenset({"head_dim"})),
    "jamba": Architecture({"num_experts": (1,)}),  # it normalizes the scores of experts
    "lfm2": Architecture(renamed={"block_dim": "hidden_size"}),
    "llama4_text": Architecture(
        {
            "moe_layers": ([],),
            "attn_temperature_tuning": (False, 0),
            "intermediate_size": irrelevant,  # of experts
        },
        unread=frozenset({"intermediate_size"}),
    ),
    "mamba2": Architecture(
        {"n_groups": (1,)},
        renamed={"intermediate_size": lambda v: int(v["expand"] * v["hidden_size"])},
        carried=frozenset({"expand"}),
    ),
    "minimax_m2": Architecture(
        renamed={"shared_intermediate_size": lambda _: 0},
        unread=frozenset({"shared_intermediate_size", "scoring_func"}),
    ),
    "nanochat": Architecture(
        {"hidden_act": ("relu2",), "rms_norm_eps": (1e-5,), "final_logit_softcapping": (15.0,)},
        near={"rms_norm_eps": (1e-6,)},  # what it divides by is of size one
    ),
    "nemotron": Architecture(
        {"hidden_act": ("relu2",)}, unread=frozenset({"hidden_act", "rope_traditional"})
    ),
    "phi": _tanh_gelu("hidden_act"),
    "phimoe": Architecture({"attention_bias": (True,), "lm_head_bias": (True,)}),
    "qwen2_moe": Architecture(
        {"qkv_bias": (True,), "norm_topk_prob": (False,), "intermediate_size": irrelevant},
        unread=frozenset({"intermediate_size", "tie_word_embeddings"}),
    ),
    "qwen3_moe": Architecture(
        renamed={"num_experts": "num_local_experts"}, carried=frozenset({"num_local_experts"})
    ),
    "starcoder2": _exact_gelu("hidden_act", use_bias=(True,)),
}
