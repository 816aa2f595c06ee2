"""A model that does something of its own between its blocks is calibrated on that."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from tokenizers import Tokenizer

from convert.cli import main
from inference.device import Placement
from inference.load import load, open_folder
from tests.e2e.test_calibrated import words
from tests.factories_nanochat import sizes_of, write_checkpoint, write_tokenizer
from tests.nanochat_reference import random_weights


def log_probabilities(folder: Path) -> mx.array:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = mx.array(tokenizer.encode(words(300, seed=1)).ids[:256]).reshape(8, 32)
    logits = load(open_folder(folder), Placement("cpu", "float32")).model(ids)
    return logits - mx.logsumexp(logits, -1, keepdims=True)


@pytest.mark.parametrize("era", ["E2"])
def test_it_loses_less_than_search(tmp_path: Path, era: str) -> None:
    sizes = sizes_of(era)
    write_checkpoint(tmp_path / "d5", random_weights(era, sizes), sizes)
    source = write_tokenizer(tmp_path / "d5")
    text = tmp_path / "text.txt"
    text.write_text(words(600, seed=0), "utf-8")
    plain = tmp_path / "plain"
    assert main(["--hf-path", str(source), "--mlx-path", str(plain), "--quiet"]) == 0
    flags = ["--hf-path", str(plain), "-q", "--bits", "3", "--group-size", "32", "--quiet"]
    calibrate = ["--method", "calibrated", "--calibrate", str(text)]
    assert main([*flags, "--mlx-path", str(tmp_path / "calibrated"), *calibrate]) == 0
    assert main([*flags, "--mlx-path", str(tmp_path / "search")]) == 0
    told = json.loads((tmp_path / "calibrated" / "conversion.json").read_text("utf-8"))
    layers = told["calibration"]["layers"]
    assert any(each["method"] == "calibrated" for each in layers.values())
    exact = log_probabilities(plain)
    lost = {
        name: mx.sum(mx.exp(exact) * (exact - log_probabilities(tmp_path / name))).item()
        for name in ("calibrated", "search")
    }
    assert lost["calibrated"] < lost["search"]
