"""Tiny models of many architectures, as transformers builds and saves them.

Every config holds values that are not the defaults, so that one left unread shows;
the weights are large enough that an error in a rotation or a norm shows too; sliding
windows and original context lengths are shorter than the sequence that is compared.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

VOCAB = 320  # as many as the tokenizer of tests/factories_models.py has ids
POSITIONS = 40

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 23456.0}
LINEAR: dict[str, Any] = {**ROPE, "rope_type": "linear", "factor": 3.0}
LLAMA3: dict[str, Any] = {
    **ROPE,
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN: dict[str, Any] = {
    **ROPE,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


def longrope(pairs: int, *, context: int = 16) -> dict[str, Any]:
    """LongRoPE for heads with so many pairs of rotated dimensions."""
    return {
        **ROPE,
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
        "long_factor": [1.5 + 0.7 * i for i in range(pairs)],
        "original_max_position_embeddings": context,
    }


def partial(fraction: float) -> dict[str, Any]:
    return {**ROPE, "partial_rotary_factor": fraction}


@dataclass(frozen=True)
class Tiny:
    """One tiny model: transformers' configuration class without `Config`, and its values."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)

    def config(self) -> Any:
        import transformers

        return getattr(transformers, f"{self.kind}Config")(**{**self.sizes, **self.values})

    def build(self, seed: int = 0) -> Any:
        """The model in float32, with weights that make its logits depend on everything."""
        import torch
        import transformers

        torch.manual_seed(seed)
        config = self.config()
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim >= 2:
                    weight.normal_(0.0, 0.2)
                elif "A_log" in name or name.endswith((".D", "dt_bias")):
                    weight.add_(0.1 * torch.randn_like(weight))
                else:
                    weight.add_(0.2 * torch.randn_like(weight))
        return model


def logits(model: Any, ids: list[int]) -> Any:
    """transformers' logits for one sequence, a float32 numpy array (len(ids), vocabulary)."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def sample_ids(seed: int = 7) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(3, VOCAB) for _ in range(POSITIONS)]


UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

TABLE: dict[str, Tiny] = {
    "llama": Tiny("Llama", {"rope_parameters": ROPE, **TIED}),
    "llama-biased": Tiny(
        "Llama", {"rope_parameters": ROPE, "attention_bias": True, "mlp_bias": True}
    ),
    "mistral": Tiny("Mistral", {"rope_parameters": ROPE, "head_dim": 32}),
    "mixtral": Tiny("Mixtral", {"rope_parameters": ROPE, "num_local_experts": 4}),
    "qwen2": Tiny("Qwen2", {"rope_parameters": ROPE, **TIED}),
    "qwen2-moe": Tiny(
        "Qwen2Moe", {"rope_parameters": ROPE, **MOE, "shared_expert_intermediate_size": 80}
    ),
    "qwen3": Tiny("Qwen3", {"rope_parameters": ROPE, "head_dim": 32}),
    "qwen3-moe": Tiny(
        "Qwen3Moe", {"rope_parameters": ROPE, "head_dim": 32, "norm_topk_prob": True, **MOE}
    ),
    "olmo2": Tiny("Olmo2", {"rope_parameters": ROPE}),
    "olmo3": Tiny(
        "Olmo3",
        {
            "rope_parameters": {"full_attention": YARN, "sliding_attention": ROPE},
            "sliding_window": 16,
            "num_hidden_layers": 4,
        },
    ),
    "olmoe": Tiny("Olmoe", {"rope_parameters": ROPE, "num_experts": 4, "num_experts_per_tok": 2}),
    "phi": Tiny("Phi", {"rope_parameters": partial(0.5), "num_key_value_heads": 4}),
    "phi3": Tiny("Phi3", {"rope_parameters": partial(0.5)}),
    "phimoe": Tiny(
        "Phimoe",
        {
            "rope_parameters": ROPE,
            "num_local_experts": 4,
            "attention_bias": True,
            "lm_head_bias": True,
        },
    ),
    "gemma": Tiny("Gemma", {"rope_parameters": ROPE, "head_dim": 32}),
    "gemma2": Tiny(
        "Gemma2",
        {
            "rope_parameters": ROPE,
            "head_dim": 32,
            "query_pre_attn_scalar": 48,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
            "sliding_window": 4096,
        },
    ),
    "gemma3": Tiny(
        "Gemma3Text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 48,
            "sliding_window": 16,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {**ROPE, "rope_theta": 345.0},
            },
        },
    ),
    "cohere": Tiny("Cohere", {"rope_parameters": ROPE, "logit_scale": 0.2, "use_qk_norm": True}),
    "cohere2": Tiny(
        "Cohere2",
        {"rope_parameters": ROPE, "logit_scale": 0.2, "sliding_window": 16, "num_hidden_layers": 4},
    ),
    "smollm3": Tiny("SmolLM3", {"rope_parameters": ROPE, "no_rope_layers": [1, 0, 1]}),
    "starcoder2": Tiny("Starcoder2", {"rope_parameters": ROPE}),
    "stablelm": Tiny("StableLm", {"rope_parameters": partial(0.5), "use_qkv_bias": True}),
    "granite": Tiny(
        "Granite",
        {
            "rope_parameters": ROPE,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.0,
        },
    ),
    "granite-moe": Tiny(
        "GraniteMoe",
        {
            "rope_parameters": ROPE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.0,
        },
    ),
    "glm4": Tiny("Glm4", {"rope_parameters": partial(0.5), "head_dim": 16, "attention_bias": True}),
    "glm4-moe": Tiny(
        "Glm4Moe",
        {
            "rope_parameters": partial(0.5),
            "head_dim": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "n_group": 2,
            "topk_group": 1,
        },
    ),
    "ernie4.5": Tiny("Ernie4_5", {"rope_parameters": ROPE, "head_dim": 32}),
    "gpt2": Tiny(
        "GPT2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
        {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gpt-neox": Tiny("GPTNeoX", {"rope_parameters": partial(0.5), "intermediate_size": 256}),
    "gpt-oss": Tiny(
        "GptOss",
        {
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "num_hidden_layers": 4,
            "rope_parameters": YARN,
        },
    ),
    "nanochat": Tiny("NanoChat", {"rope_parameters": ROPE}),
    "mamba": Tiny(
        "Mamba",
        {"state_size": 8, "use_conv_bias": True, "time_step_rank": 4},
        {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2},
    ),
    "mamba2": Tiny(
        "Mamba2",
        {
            "state_size": 16,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 1,
            "expand": 2,
            "chunk_size": 16,
        },
        {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2},
    ),
    "deepseek-v2": Tiny(
        "DeepseekV2",
        {
            "rope_parameters": ROPE,
            "num_key_value_heads": 4,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "deepseek-v3": Tiny(
        "DeepseekV3",
        {
            "rope_parameters": ROPE,
            "num_key_value_heads": 4,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
        },
    ),
    "seed-oss": Tiny("SeedOss", {"rope_parameters": ROPE, "head_dim": 32}),
    "hunyuan-dense": Tiny("HunYuanDenseV1", {"rope_parameters": ROPE, "head_dim": 16}),
    "exaone4": Tiny(
        "Exaone4",
        {
            "rope_parameters": ROPE,
            "sliding_window": 16,
            "sliding_window_pattern": 4,
            "num_hidden_layers": 4,
        },
    ),
    "lfm2": Tiny(
        "Lfm2",
        {
            "rope_parameters": ROPE,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_multiple_of": 16,
        },
    ),
    "apertus": Tiny("Apertus", {"rope_parameters": LLAMA3}),
    "nemotron": Tiny("Nemotron", {"rope_parameters": partial(0.5)}),
    "helium": Tiny("Helium", {"rope_parameters": ROPE, "head_dim": 16}),
    "dots1": Tiny(
        "Dots1",
        {
            "rope_parameters": ROPE,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
        },
    ),
    "minimax-m2": Tiny(
        "MiniMaxM2",
        {
            "rope_parameters": partial(0.5),
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "jamba": Tiny(
        "Jamba",
        {
            "num_experts": 1,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "falcon-h1": Tiny(
        "FalconH1",
        {
            "rope_parameters": ROPE,
            "head_dim": 16,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 16,
            "mamba_chunk_size": 16,
        },
    ),
    "qwen3-next": Tiny(
        "Qwen3Next",
        {
            "rope_parameters": partial(0.5),
            "head_dim": 32,
            "num_hidden_layers": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "shared_expert_intermediate_size": 48,
            **MOE,
        },
    ),
    "llama4-text": Tiny(
        "Llama4Text",
        {
            "rope_parameters": ROPE,
            "head_dim": 16,
            "intermediate_size_mlp": 96,
            "moe_layers": [],
            "attn_temperature_tuning": False,
        },
    ),
    "granite-hybrid": Tiny(
        "GraniteMoeHybrid",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["mamba", "attention", "mamba"],
            "shared_intermediate_size": 48,
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
    ),
    "ministral3": Tiny(
        "Ministral3", {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}, "head_dim": 16}
    ),
    "gpt-bigcode": Tiny(
        "GPTBigCode",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 96},
        {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gptj": Tiny(
        "GPTJ",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8},
        {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "afmoe": Tiny(
        "Afmoe",
        {
            "rope_parameters": ROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "num_dense_layers": 1,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "sliding_window": 16,
        },
    ),
    "laguna": Tiny(
        "Laguna",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "head_dim": 16,
            "sliding_window": 16,
        },
    ),
    "lfm2-moe": Tiny(
        "Lfm2Moe",
        {
            "rope_parameters": ROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv"],
        },
    ),
    "falcon-mamba": Tiny(
        "FalconMamba",
        {"state_size": 8, "time_step_rank": 4},
        {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2},
    ),
    "deepseek-v3-yarn": Tiny(
        "DeepseekV3",
        {
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
        },
    ),
    "qwen3-moe-dense-layers": Tiny(
        "Qwen3Moe",
        {
            "rope_parameters": ROPE,
            "head_dim": 32,
            "mlp_only_layers": [1],
            "decoder_sparse_step": 2,
            "num_hidden_layers": 4,
            **MOE,
        },
    ),
    "stablelm-parallel": Tiny(
        "StableLm",
        {"rope_parameters": partial(0.25), "use_parallel_residual": True, "qk_layernorm": True},
    ),
    "gpt-neox-sequential": Tiny(
        "GPTNeoX",
        {
            "rope_parameters": partial(0.25),
            "intermediate_size": 256,
            "use_parallel_residual": False,
        },
    ),
    "llama-linear": Tiny("Llama", {"rope_parameters": LINEAR}),
    "llama-llama3": Tiny("Llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": Tiny("Llama", {"rope_parameters": YARN}),
    "llama-yarn-attention": Tiny(
        "Llama", {"rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 16.0}}
    ),
    "llama-yarn-mscale": Tiny(
        "Llama", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3}}
    ),
    "llama-longrope": Tiny("Llama", {"rope_parameters": longrope(8)}),
    "phi3-longrope": Tiny(
        "Phi3",
        {
            "rope_parameters": {
                k: v for k, v in longrope(8).items() if k != "original_max_position_embeddings"
            },
            "original_max_position_embeddings": 16,
        },
    ),
    "llama-dynamic": Tiny(
        "Llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}}
    ),
}
