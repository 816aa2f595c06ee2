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

# One formula under three names; mlx-lm's exact GELU and its tanh form stay within 5e-4.
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
EXACT_GELU = ("gelu",)


@dataclass(frozen=True)
class Architecture:
    """One row: what mlx-lm's module for an architecture has built in.

    Attributes:
        built_in: Values of transformers' keys that its code computes, whatever config.json says.
        renamed: mlx-lm's keys, each with transformers' key or a function of its values.
        carried: transformers' keys whose meaning is wholly in the `renamed` ones.
        unread: Keys its `ModelArgs` has but its code never uses.
        windowed: It implements the sliding windows that `layer_types` draws.
    """

    built_in: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str | Callable[[Values], Any]] = field(default_factory=dict)
    carried: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    windowed: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {}
