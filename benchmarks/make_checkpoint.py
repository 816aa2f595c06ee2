"""Writes a random-weight checkpoint of a real model's shape, for measuring conversions.

    python benchmarks/make_checkpoint.py 0.5b /tmp/qwen2-1gb     (1 GB, bfloat16)
    python benchmarks/make_checkpoint.py 1.5b /tmp/qwen2-3gb     (3 GB)

The shapes are those of Qwen2.5; weights are normal with a standard deviation of
0.02, repeated from one block, which changes nothing for speed or memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy as np

SHAPES = {
    "0.5b": {"hidden": 896, "inner": 4864, "layers": 24, "heads": 14, "kv_heads": 2},
    "1.5b": {"hidden": 1536, "inner": 8960, "layers": 28, "heads": 12, "kv_heads": 2},
}
VOCABULARY = 151_936
SHARD_BYTES = 1 << 30
TOKENIZER = Path(__file__).parents[1] / "configs" / "demo_model"


def tensors(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int
) -> dict[str, list[int]]:
    """Name and shape of every tensor of a Qwen2 model with tied embeddings."""
    kv = hidden // heads * kv_heads
    shapes = {"model.embed_tokens.weight": [VOCABULARY, hidden], "model.norm.weight": [hidden]}
    for layer in range(layers):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "self_attn.q_proj.weight": [hidden, hidden],
                "self_attn.q_proj.bias": [hidden],
                "self_attn.k_proj.weight": [kv, hidden],
                "self_attn.k_proj.bias": [kv],
                "self_attn.v_proj.weight": [kv, hidden],
                "self_attn.v_proj.bias": [kv],
                "self_attn.o_proj.weight": [hidden, hidden],
                "mlp.gate_proj.weight": [inner, hidden],
                "mlp.up_proj.weight": [inner, hidden],
                "mlp.down_proj.weight": [hidden, inner],
                "input_layernorm.weight": [hidden],
                "post_attention_layernorm.weight": [hidden],
            }.items()
        }
    return shapes


def write_shard(path: Path, shapes: dict[str, list[int]], block: bytes) -> None:
    """One safetensors file of bfloat16 tensors, streamed."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while at:
            at -= file.write(block[: min(at, len(block))])


def main() -> None:
    """Write the checkpoint."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("shape", choices=SHAPES)
    arguments.add_argument("folder", type=Path)
    chosen = arguments.parse_args()
    shape, folder = SHAPES[chosen.shape], chosen.folder
    folder.mkdir(parents=True)
    normal = np.random.default_rng(0).normal(0, 0.02, 8 << 20).astype(np.float32)
    block = (normal.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    shards: list[dict[str, list[int]]] = [{}]
    filled = 0
    for name, dims in tensors(**shape).items():
        size = 2 * int(np.prod(dims))
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = dims
        filled += size
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / name, shard, block)
        weight_map |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)


if __name__ == "__main__":
    main()
