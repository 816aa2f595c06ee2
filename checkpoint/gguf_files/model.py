"""What a GGUF file's metadata mean: the config of its model, as transformers would have it.

Owns the families that can be read, and the refusal of all others by name. The tensors'
names are `tensors`'; knows nothing of blocks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.gguf_files.header import GgufHeader
from checkpoint.json_file import json_value, quoted
from checkpoint.tensors import TensorRef
from configs.errors import ArchitectureError, SourceError

FAMILIES: Mapping[str, tuple[str, str]] = {
    "gemma": ("gemma", "GemmaForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
}
"""By llama.cpp's name of the architecture: transformers' model type and class."""

QUANTIZATION = "quantization_config"
_TAKE_ANOTHER = "take the model's safetensors checkpoint"
# Llama 3's scaled RoPE, of which a file holds only what comes of it.
_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def model_config(header: GgufHeader, path: Path) -> dict[str, Any]:
    """The config of a file's model.

    Raises:
        ArchitectureError: It is of no family that can be read, or uses what can't be.
        SourceError: It lacks a value.
    """
    keys = Keys(header.metadata, path)
    family = keys.family
    model_type, name = FAMILIES[family]
    heads = keys.integer("attention.head_count")
    hidden = keys.integer("embedding_length")
    head_dim = keys.integer("attention.key_length", hidden // max(1, heads))
    embeddings = header.tensors.get("token_embd.weight")
    if embeddings is None:
        raise SourceError(path, "holds no token_embd.weight", "download it again")
    half = "bfloat16" if family.startswith("gemma") or _has(header, "BF16") else "float16"
    kv_heads = keys.integer("attention.head_count_kv", heads)
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [name],
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": _rounded(keys.number("attention.layer_norm_rms_epsilon")),
        "rope_theta": keys.number("rope.freq_base", 1e6 if family == "gemma3" else 10_000.0),
        "vocab_size": embeddings.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "torch_dtype": half,
        **_tokens(header.metadata),
        QUANTIZATION: {
            "quant_method": "gguf",
            "architecture": family,
            "heads": heads,
            "kv_heads": kv_heads,
        },
    }
    if (scaling := _rope_scaling(keys, header)) is not None:
        config["rope_scaling"] = scaling
    if family == "qwen3moe":
        config |= _mixture(keys)
    if family.startswith("gemma"):
        config |= _gemma(keys, config)
    return config


class Keys:
    """A file's metadata, those of its family under their short names."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self._metadata, self._path = metadata, path
        family = metadata.get("general.architecture")
        if not isinstance(family, str) or family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise ArchitectureError(
                path,
                f"is a GGUF file of {quoted(str(family))}; what can be read is {known}",
                _TAKE_ANOTHER,
            )
        self.family = family
        if metadata.get("split.count", 1) > 1:
            raise SourceError(
                path, "is one of several parts of a GGUF file", "join them with gguf-split --merge"
            )
        if family == "llama" and metadata.get("llama.expert_count", 0):
            raise ArchitectureError(
                path, "is a GGUF file of a Mixtral, which can't be read", _TAKE_ANOTHER
            )

    def get(self, key: str) -> Any:
        """A value of the family's; None if there is none."""
        return self._metadata.get(f"{self.family}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self._lacking(key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self._lacking(key, value)
        return float(value)

    def refused(self, what: str) -> ArchitectureError:
        """The refusal of what the file asks for."""
        return ArchitectureError(self._path, what, _TAKE_ANOTHER)

    def _lacking(self, key: str, value: object) -> SourceError:
        told = "nothing" if value is None else json_value(value)
        return SourceError(
            self._path, f"says {told} for {self.family}.{key}", "convert it to GGUF anew"
        )


def _has(header: GgufHeader, dtype: str) -> bool:
    return any(ref.dtype == dtype for ref in header.tensors.values())


def _rounded(value: float) -> float:
    """A float32 by the shortest decimal that is it, such as 1e-06."""
    return float(f"{value:.6g}")


def _tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    def token(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if type(value) is int else None

    ends = list(dict.fromkeys(end for end in (token("eos"), token("eot")) if end is not None))
    told = {
        "bos_token_id": token("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": token("padding"),
    }
    return {key: value for key, value in told.items() if value is not None}


def _rope_scaling(keys: Keys, header: GgufHeader) -> dict[str, Any] | None:
    kind, factor = keys.get("rope.scaling.type"), keys.get("rope.scaling.factor")
    factors = header.tensors.get("rope_freqs.weight")
    if factors is not None:
        return _llama3(keys, factors)
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": keys.number("rope.scaling.factor")}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": keys.number("rope.scaling.factor"),
            "original_max_position_embeddings": keys.integer(
                "rope.scaling.original_context_length"
            ),
        }
    raise keys.refused(f"scales RoPE by {json_value(kind)} ({factor}), which can't be read")


def _llama3(keys: Keys, ref: TensorRef) -> dict[str, Any]:
    """Llama 3's scaling, found in the divisors of the frequencies that it comes to."""
    theta, dim = keys.number("rope.freq_base", 10_000.0), ref.shape[0] * 2
    if ref.dtype != "F32" or len(ref.shape) != 1 or ref.nbytes > 1 << 16:
        raise keys.refused("holds RoPE factors that can't be read")
    content = bytearray(ref.nbytes)
    with disk.reading(ref.file) as descriptor:
        disk.read_into(descriptor, ref.file, content, ref.offset)
    found = struct.unpack(f"<{ref.shape[0]}f", content)
    factor = _rounded(max(found))
    for index, divisor in enumerate(found):
        length = 2 * math.pi * theta ** (2 * index / dim)
        smooth = min(1.0, max(0.0, (8192 / length - 1.0) / (4.0 - 1.0)))
        expected = 1 / ((1 - smooth) / factor + smooth)
        if abs(divisor - expected) > 1e-3 * expected:
            raise keys.refused("scales RoPE by factors other than Llama 3's, which can't be read")
    return {**_LLAMA3, "factor": factor}


def _mixture(keys: Keys) -> dict[str, Any]:
    return {
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gemma(keys: Keys, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the Gemmas have beyond the rest; llama.cpp tells the largest ones by their layers."""
    found: dict[str, Any] = {"hidden_activation": "gelu_pytorch_tanh"}
    if keys.family == "gemma":
        return {**found, "hidden_act": "gelu_pytorch_tanh"}
    largest = {"gemma2": 46, "gemma3": 62}[keys.family]
    by_width = config["num_hidden_layers"] == largest
    found["query_pre_attn_scalar"] = (
        config["hidden_size"] // config["num_attention_heads"] if by_width else config["head_dim"]
    )
    found["sliding_window"] = keys.integer("attention.sliding_window")
    if keys.family == "gemma2":
        found["final_logit_softcapping"] = keys.number("final_logit_softcapping", 30.0)
        found["attn_logit_softcapping"] = keys.number("attn_logit_softcapping", 50.0)
        return found
    period = keys.integer("attention.sliding_window_pattern", 6)
    layers = range(1, config["num_hidden_layers"] + 1)
    kinds = ["sliding_attention" if layer % period else "full_attention" for layer in layers]
    return {
        **found,
        "layer_types": kinds,
        "sliding_window_pattern": period,
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10_000.0),
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    }
