"""RoPE whose factors depend on the length of the text, which a config alone can't make right."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
import torch
from transformers import AutoModelForCausalLM

from convert.cli import main as convert
from inference.cli import main as infer
from tests.factories_models import tiny_model

SCALING = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [2.0 + 0.5 * i for i in range(16)],
}


@pytest.mark.parametrize("length", [40, 100])
def test_short_and_long_texts_score_as_in_transformers(
    length: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_model(
        tmp_path / "source",
        "llama",
        dtype=mx.float32,
        max_position_embeddings=256,
        rope_scaling=SCALING,
    )
    out = tmp_path / "out"
    assert convert(["--hf-path", str(source), "--mlx-path", str(out), "--quiet"]) == 0
    ids = [(7 * position) % 300 + 3 for position in range(length)]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    capsys.readouterr()
    flags = ["--score", "--ids-file", str(tmp_path / "ids.json"), "--json", "--quiet"]
    assert infer(["--model", str(out), *flags]) == 0
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for position in range(1, length):
        expected = logits[position - 1, ids[position]].item()
        assert tokens[position]["logprob"] == pytest.approx(expected, abs=1e-3)
