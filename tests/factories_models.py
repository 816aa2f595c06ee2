"""Tiny checkpoints in Hugging Face layout, random but whole: weights, config, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = "def main():\n    print('hello, world')\n你好，世界 🙂 the quick brown fox jumps\n"
VOCABULARY = 320


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of 320 ids with ChatML's marks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_checkpoint(
    folder: Path, config: dict[str, Any], weights: dict[str, mx.array], shards: int = 3
) -> Path:
    """A folder of shards with an index, its config and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(weights)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        chosen = {name: weights[name] for name in names[number::shards]}
        mx.save_safetensors(str(folder / file), chosen, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, file)
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in weights.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def _attention(config: dict[str, Any], biased: bool) -> dict[str, tuple[int, ...]]:
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if biased:
        for name, size in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"self_attn.{name}_proj.bias"] = (size,)
    return shapes


def _mlp(prefix: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (inner, hidden),
        f"{prefix}.up_proj.weight": (inner, hidden),
        f"{prefix}.down_proj.weight": (hidden, inner),
    }


def tiny_model(
    folder: Path, kind: str, *, dtype: mx.Dtype = mx.bfloat16, seed: int = 0, **changes: Any
) -> Path:
    """A checkpoint of one of three kinds.

    Args:
        folder: Where to write it.
        kind: `llama` (head of its own), `qwen2` (tied head, biases) or `qwen3_moe` (experts).
        dtype: Of all weights.
        seed: Of the random weights.
        changes: Config values other than the default ones.
    """
    config: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": kind == "qwen2",
        "torch_dtype": str(dtype).rpartition(".")[2],
        "eos_token_id": 2,
        "bos_token_id": 0,
    }
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3_moe": "Qwen3Moe"}
    config["architectures"] = [f"{names[kind]}ForCausalLM"]
    if kind == "qwen3_moe":
        config |= {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        }
    config |= changes
    mx.random.seed(seed)
    weights = {
        name: (
            mx.random.normal(shape) * (0.1 if len(shape) > 1 else 0.2) + (len(shape) == 1)
        ).astype(dtype)
        for name, shape in shapes(config).items()
    }
    return write_checkpoint(folder, config, weights)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a config that `tiny_model` made."""
    hidden, kind = config["hidden_size"], config["model_type"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        parts = _attention(config, biased=kind == "qwen2")
        if kind == "qwen3_moe":
            head = config["head_dim"]
            parts |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
            parts["mlp.gate.weight"] = (config["num_experts"], hidden)
            for expert in range(config["num_experts"]):
                parts |= _mlp(f"mlp.experts.{expert}", hidden, config["moe_intermediate_size"])
        else:
            parts |= _mlp("mlp", hidden, config["intermediate_size"])
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    return found
