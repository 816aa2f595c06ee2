"""`infer` on real trained weights, ../shared/models/pycode-10m in the layout of MLX."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from inference.cli import main
from tests.factories_inference import edit_json, save

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "pycode-10m"
PROMPT = "def read_lines(path):\n    with open(path) as f"

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/models/pycode-10m")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in float32; Llama's names and layouts are the same in MLX."""
    made = tmp_path_factory.mktemp("pycode")
    weights: dict[str, mx.array] = {}
    for shard in sorted(SHARED.glob("*.safetensors")):
        loaded: Any = mx.load(str(shard))
        weights |= {name: array.astype(mx.float32) for name, array in loaded.items()}
    save(made, weights, json.loads((SHARED / "config.json").read_text()))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(SHARED / name, made)
    shutil.copy(SHARED / "chat_template.jinja", made)
    edit_json(made / "config.json", rope_theta=10_000.0)
    return made


def answer(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json", "--quiet"]) == 0
    made: dict[str, Any] = json.loads(capfd.readouterr().out)
    return made


def test_greedy_text_is_mlx_lms(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model, _ = load_model(folder)
    prompt = mx.array(tokenizer.encode(PROMPT).ids)
    ids = [token for token, _ in generate_step(prompt, model, max_tokens=120)]
    if 1 in ids:
        ids = ids[: ids.index(1)]
    asked = ("--model", folder, "--prompt", PROMPT, "--raw", "--temperature", 0)
    made = answer(capfd, *asked, "--max-tokens", 120)
    assert made["text"] == tokenizer.decode(ids) and len(made["text"]) > 50


def test_it_goes_on_with_python(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", folder, "--prompt", PROMPT, "--raw", "--temperature", 0)
    made = answer(capfd, *asked, "--stop", "\n\n", "--max-tokens", 60)
    assert made["text"].startswith(":\n        ")


def test_score_agrees_with_transformers(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    text = (SHARED / "val.txt").read_text()[:3000]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids[:700]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    made = answer(capfd, "--model", folder, "--score", "--ids-file", tmp_path / "ids.json")
    reference = AutoModelForCausalLM.from_pretrained(SHARED, dtype=torch.float32)
    with torch.no_grad():
        logits = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [logits[at, token].item() for at, token in enumerate(ids[1:])]
    found = [token["logprob"] for token in made["tokens"][1:]]
    assert found == pytest.approx(expected, abs=2e-3)
    assert made["perplexity"] == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-4)
    assert text.startswith("".join(token["text"] for token in made["tokens"]))
