"""A calibration takes one block and a gigabyte, whatever the text and however wide the layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convert.cli import main
from tests.e2e.test_calibrated import words
from tests.e2e.test_convert_memory import WIDE, sparse_checkpoint
from tests.factories_models import tiny_model

LLAMA_8B: dict[str, Any] = WIDE | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128_256,
    "tie_word_embeddings": False,
}
BLOCK_8B = 2 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)


def calibrated(source: Path, out: Path, text: Path, *more: str) -> list[str]:
    places = ["--hf-path", str(source), "--mlx-path", str(out)]
    return [*places, "-q", "--method", "calibrated", "--calibrate", str(text), "--json", *more]


def test_what_an_8b_model_is_said_to_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse_checkpoint(tmp_path / "source", LLAMA_8B)
    text = tmp_path / "text.txt"
    text.write_text(words(30_000, seed=0), "utf-8")
    assert main(calibrated(tmp_path / "source", tmp_path / "out", text, "--dry-run")) == 0
    expected = json.loads(capsys.readouterr().out)["expected_peak_memory_bytes"]
    assert BLOCK_8B < expected < BLOCK_8B + 1_900_000_000


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_it_needs_no_more_than_is_said(tmp_path: Path, kind: str) -> None:
    source = tiny_model(tmp_path / "source", kind, hidden_size=256, intermediate_size=768)
    text = tmp_path / "text.txt"
    text.write_text(words(3000, seed=0), "utf-8")
    command = [sys.executable, "-m", "convert", *calibrated(source, tmp_path / "out", text)]
    done = subprocess.run([*command, "--quiet"], capture_output=True, check=True, text=True)
    receipt = json.loads(done.stdout)
    assert receipt["calibration"]["tokens"] > 1500
    assert receipt["peak_memory_bytes"] <= receipt["expected_peak_memory_bytes"]
