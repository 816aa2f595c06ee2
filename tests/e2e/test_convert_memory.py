"""The whole process stays under 300 MB, however large a tensor or a stack of experts is.

The sources are sparse files: zeros that take no room on the disk, but as much
memory as any weights when they are read.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.factories_models import shapes, write_tokenizer
from tests.factories_pickles import as_pickle

BOUND = 300_000_000
WIDE = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 160_000,
    "tie_word_embeddings": True,
}
EXPERTS = WIDE | {
    "model_type": "qwen3_moe",
    "vocab_size": 4096,
    "num_experts": 128,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1216,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}


def sparse_checkpoint(folder: Path, config: dict[str, Any]) -> int:
    """Write a checkpoint of zeros; gives its bytes."""
    folder.mkdir()
    header, at = {}, 0
    for name, shape in shapes(config).items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    common = {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(common | config | {"torch_dtype": "bfloat16"}))
    write_tokenizer(folder)
    return at


@pytest.mark.parametrize(
    ("config", "largest", "flags"),
    [
        pytest.param(WIDE, 160_000 * 1024 * 2, ["-q"], id="a tensor of 328 MB"),
        pytest.param(EXPERTS, 128 * 1216 * 1024 * 2, ["-q"], id="stacks of experts of 319 MB"),
        pytest.param(EXPERTS, 128 * 1216 * 1024 * 2, ["--dtype", "float16"], id="not quantized"),
    ],
)
def test_peak_memory_is_bounded(
    config: dict[str, Any], largest: int, flags: list[str], tmp_path: Path
) -> None:
    assert largest > BOUND
    total = sparse_checkpoint(tmp_path / "source", config)
    command = [sys.executable, "-m", "convert", "--hf-path", str(tmp_path / "source")]
    done = subprocess.run(
        [*command, "--mlx-path", str(tmp_path / "out"), "--json", "--quiet", *flags],
        capture_output=True,
        check=True,
        text=True,
    )
    receipt = json.loads(done.stdout)
    assert receipt["tensor_bytes"] >= total * (0.25 if "-q" in flags else 1)
    assert receipt["peak_memory_bytes"] <= BOUND
    assert receipt["peak_memory_bytes"] <= receipt["expected_peak_memory_bytes"]
    shutil.rmtree(tmp_path)


def test_peak_memory_is_bounded_for_pytorch_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    sparse_checkpoint(source, WIDE)
    as_pickle(source)
    command = [sys.executable, "-m", "convert", "--hf-path", str(source), "-q", "--json"]
    done = subprocess.run(
        [*command, "--mlx-path", str(tmp_path / "out"), "--quiet"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(done.stdout)["peak_memory_bytes"] <= BOUND
    shutil.rmtree(tmp_path)
