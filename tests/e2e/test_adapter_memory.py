"""Fusing an adapter keeps the memory bound: no tensor of the model is ever whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.test_convert_memory import BOUND, EXPERTS, WIDE, sparse_checkpoint
from tests.factories_adapters import mlx_pairs, write_mlx_adapter

EMBEDDINGS = {"model.embed_tokens": (1024, 160_000)}
STACK = {"model.layers.0.mlp.switch_mlp.up_proj": (128, 1216, 1024)}
CASES = {
    "embeddings of 328 MB": (WIDE, EMBEDDINGS, "lora", ["-q", "--method", "rtn"]),
    "embeddings by DoRA": (WIDE, EMBEDDINGS, "dora", []),
    "experts of 319 MB": (EXPERTS, STACK, "lora", []),
}


@pytest.mark.parametrize("case", CASES)
def test_peak_memory_is_bounded(case: str, tmp_path: Path) -> None:
    config, shapes, kind, flags = CASES[case]
    sparse_checkpoint(tmp_path / "source", config)
    tensors = mlx_pairs(shapes)
    if kind == "dora":
        tensors["model.embed_tokens.m"] = np.ones(160_000, np.float32)
    adapter = write_mlx_adapter(tmp_path / "a", tensors, kind=kind, keys=list(shapes))
    if "layers" in next(iter(shapes)):
        adapter = write_mlx_adapter(tmp_path / "a", tensors)
    command = [sys.executable, "-m", "convert", "--hf-path", str(tmp_path / "source"), "--json"]
    command += ["--mlx-path", str(tmp_path / "out"), "--quiet", "--fuse-adapter", str(adapter)]
    done = subprocess.run([*command, *flags], capture_output=True, check=True, text=True)
    receipt = json.loads(done.stdout)
    assert receipt["adapter"]["modules"] == 1
    assert receipt["peak_memory_bytes"] <= BOUND
    assert receipt["peak_memory_bytes"] <= receipt["expected_peak_memory_bytes"]
    shutil.rmtree(tmp_path)
