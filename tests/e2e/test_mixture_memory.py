"""Mixtures of 256 experts stay within the memory bound, fused or not, quantized or not.

The sources are sparse files: zeros that take no room on the disk, but as much memory as
any weights when they are read.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.factories_models import shapes, write_tokenizer

BOUND = 300_000_000
WIDE, INNER, COUNT = 1024, 640, 256
STACK = COUNT * INNER * WIDE * 2
QWEN: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": WIDE,
    "intermediate_size": 2048,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "num_experts": COUNT,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": INNER,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "hidden_size": WIDE,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
    "num_local_experts": COUNT,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"],
}
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U8": 1, "F8_E4M3": 1}
Tensors = dict[str, tuple[str, tuple[int, ...]]]
_EXPERT = ".mlp.experts."


def plain(config: dict[str, Any]) -> Tensors:
    return {name: ("BF16", shape) for name, shape in shapes(config).items()}


def fused() -> Tensors:
    """As transformers 5 holds a mixture."""
    tensors = {name: told for name, told in plain(QWEN).items() if _EXPERT not in name}
    layer = "model.layers.0.mlp.experts"
    tensors[f"{layer}.gate_up_proj"] = ("BF16", (COUNT, 2 * INNER, WIDE))
    tensors[f"{layer}.down_proj"] = ("BF16", (COUNT, WIDE, INNER))
    return tensors


def gptq() -> Tensors:
    tensors: Tensors = {}
    for name, (dtype, shape) in plain(QWEN).items():
        if _EXPERT not in name:
            tensors[name] = (dtype, shape)
            continue
        rows, columns = shape
        module = name.removesuffix(".weight")
        tensors[f"{module}.qweight"] = ("I32", (columns // 8, rows))
        tensors[f"{module}.qzeros"] = ("I32", (columns // 128, rows // 8))
        tensors[f"{module}.scales"] = ("F16", (columns // 128, rows))
    return tensors


def fp8() -> Tensors:
    tensors: Tensors = {}
    for name, (dtype, shape) in plain(QWEN).items():
        tensors[name] = (dtype if _EXPERT not in name else "F8_E4M3", shape)
        if _EXPERT in name:
            tensors[f"{name}_scale_inv"] = ("F32", (shape[0] // 128, shape[1] // 128))
    return tensors


def mxfp4() -> Tensors:
    dense = QWEN | {"num_experts": 1, "tie_word_embeddings": False, "num_hidden_layers": 2}
    tensors = {
        name: told
        for name, told in plain(dense).items()
        if ".mlp." not in name and "_norm.weight" not in name
    }
    for layer in ("model.layers.0", "model.layers.1"):
        for name, size in (("q", 1024), ("k", 256), ("v", 256), ("o", WIDE)):
            tensors[f"{layer}.self_attn.{name}_proj.bias"] = ("BF16", (size,))
        tensors |= {
            f"{layer}.self_attn.sinks": ("BF16", (16,)),
            f"{layer}.mlp.router.weight": ("BF16", (COUNT, WIDE)),
            f"{layer}.mlp.router.bias": ("BF16", (COUNT,)),
        }
        for name, rows, columns in (("gate_up_proj", 2 * INNER, WIDE), ("down_proj", WIDE, INNER)):
            stem = f"{layer}.mlp.experts.{name}"
            tensors[f"{stem}_blocks"] = ("U8", (COUNT, rows, columns // 32, 16))
            tensors[f"{stem}_scales"] = ("U8", (COUNT, rows, columns // 32))
            tensors[f"{stem}_bias"] = ("BF16", (COUNT, rows))
    return tensors


def sparse(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """Write a checkpoint of zeros."""
    folder.mkdir()
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    common = {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(common | config | {"torch_dtype": "bfloat16"}))
    write_tokenizer(folder)


def quantized(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return config | {"quantization_config": settings}


FP8 = quantized(QWEN, quant_method="fp8", weight_block_size=[128, 128])
GPTQ = quantized(QWEN, quant_method="gptq", bits=4, group_size=128, desc_act=False, sym=True)
SOURCES: dict[str, tuple[dict[str, Any], Tensors, list[str]]] = {
    "bfloat16, fused": (QWEN, fused(), ["-q", "--method", "rtn"]),
    "GPTQ, kept": (GPTQ, gptq(), []),
    "GPTQ, quantized anew": (GPTQ, gptq(), ["-q", "--method", "rtn", "--bits", "8"]),
    "FP8": (FP8, fp8(), ["-q", "--method", "rtn"]),
    "MXFP4, fused, kept": (quantized(GPT_OSS, quant_method="mxfp4"), mxfp4(), []),
    "MXFP4, fused, anew": (
        quantized(GPT_OSS, quant_method="mxfp4"),
        mxfp4(),
        ["-q", "--method", "rtn"],
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_peak_memory_is_bounded(name: str, tmp_path: Path) -> None:
    assert STACK > BOUND
    config, tensors, flags = SOURCES[name]
    sparse(tmp_path / "source", config, tensors)
    command = [sys.executable, "-m", "convert", "--hf-path", str(tmp_path / "source")]
    done = subprocess.run(
        [*command, "--mlx-path", str(tmp_path / "out"), "--json", "--quiet", *flags],
        capture_output=True,
        check=True,
        text=True,
    )
    receipt = json.loads(done.stdout)
    assert receipt["parameters"] > 3 * COUNT * INNER * WIDE
    assert receipt["peak_memory_bytes"] <= BOUND
    assert receipt["peak_memory_bytes"] <= receipt["expected_peak_memory_bytes"]
    shutil.rmtree(tmp_path)
