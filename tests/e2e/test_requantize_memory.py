"""Stacks of packed experts are read row block by row block too, whatever is made of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.test_convert_memory import BOUND, EXPERTS, sparse_checkpoint


def convert(source: Path, out: Path, *flags: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "convert", "--hf-path", str(source), "--mlx-path", str(out)]
    done = subprocess.run(
        [*command, "--json", "--quiet", *flags], capture_output=True, check=True, text=True
    )
    receipt: dict[str, Any] = json.loads(done.stdout)
    return receipt


def test_peak_memory_is_bounded(tmp_path: Path) -> None:
    sparse_checkpoint(tmp_path / "source", EXPERTS)
    convert(tmp_path / "source", tmp_path / "packed", "-q", "--method", "rtn", "--bits", "8")
    shutil.rmtree(tmp_path / "source")
    for name, flags in (
        ("anew", ["-q", "--method", "rtn", "--bits", "3"]),
        ("back", ["--dequantize"]),
    ):
        receipt = convert(tmp_path / "packed", tmp_path / name, *flags)
        assert receipt["peak_memory_bytes"] <= BOUND, name
        assert receipt["peak_memory_bytes"] <= receipt["expected_peak_memory_bytes"], name
        shutil.rmtree(tmp_path / name)
