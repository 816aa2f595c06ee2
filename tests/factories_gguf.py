"""Tiny GGUF files, written by the gguf package from tiny checkpoints as llama.cpp's script does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.factories_models import write_tokenizer

Array = NDArray[Any]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name: str, family: str) -> str:
    stem, _, leaf = name.rpartition(".")
    names = NAMES | FOUR_NORMS if family in ("gemma2", "gemma3") else NAMES
    if stem in names:
        return f"{names[stem]}.{leaf}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{names[part]}.{leaf}"


def neighbours(weight: Array, heads: int) -> Array:
    """A Llama's queries or keys with the two of a pair side by side."""
    parted = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return parted.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    plain: Path, out: Path, family: str, kind: str, more: Mapping[str, Any] | None = None
) -> Path:
    """A GGUF file of a plain checkpoint; the checkpoint is given the values that it then has.

    Args:
        plain: The checkpoint, whose weights are replaced by what the file's blocks stand for.
        out: The file.
        family: llama.cpp's name of the architecture.
        kind: The type of all matrices.
        more: Metadata beyond the usual.
    """
    config = json.loads((plain / "config.json").read_text())
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(plain.glob("*.safetensors")):
        weights |= load_file(shard)
        shard.unlink()
    (plain / "model.safetensors.index.json").unlink(missing_ok=True)
    writer = gguf.GGUFWriter(out, family)
    _write_metadata(writer, family, config, plain)
    for key, value in (more or {}).items():
        writer.add_key_value(key, value, _value_type(value))
    qtype = gguf.GGMLQuantizationType[kind]
    experts: dict[str, list[Array]] = {}
    for name, tensor in sorted(weights.items()):
        array = tensor.float().numpy()
        if array.ndim == 2 and ".mlp.gate." not in name:
            blocks = quantize(array, qtype)
            weights[name] = torch.tensor(dequantize(blocks, qtype))
        if ".experts." in name:
            before, _, rest = name.partition(".experts.")
            part = rest.split(".", 1)[1].removesuffix("_proj.weight")
            layer = before.split(".")[2]
            experts.setdefault(f"blk.{layer}.ffn_{part}_exps.weight", []).append(array)
            continue
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            array = neighbours(array, config[key])
        if family.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        _add(writer, gguf_name(name, family), array, qtype)
    for name, stack in experts.items():
        _add(writer, name, np.stack(stack), qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plain_values = {name: tensor.float().contiguous() for name, tensor in weights.items()}
    save_file(plain_values, plain / "model.safetensors", {"format": "pt"})
    return out


def _add(writer: gguf.GGUFWriter, name: str, array: Array, qtype: Any) -> None:
    if array.ndim == 1 or "ffn_gate_inp" in name:
        writer.add_tensor(name, array.astype(np.float32))
    else:
        writer.add_tensor(name, quantize(array, qtype), raw_dtype=qtype)


def _value_type(value: object) -> Any:
    kinds = {int: "UINT32", float: "FLOAT32", str: "STRING", bool: "BOOL"}
    return gguf.GGUFValueType[kinds[type(value)]]


def _write_metadata(
    writer: gguf.GGUFWriter, family: str, config: dict[str, Any], plain: Path
) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    writer.add_rope_freq_base(full.get("rope_theta") or config["rope_theta"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("num_experts"):
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    write_tokenizer(plain)
    tokenizer = json.loads((plain / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"<pad {place}>" for place in range(len(tokens), config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if place in special else 1 for place in range(len(tokens))])
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]
    ]
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
