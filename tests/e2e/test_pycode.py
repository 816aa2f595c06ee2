"""A real trained model, from the folder that is shared with this project's developers."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from convert.cli import main as convert
from inference.cli import main as infer

SOURCE = Path(__file__).parents[3] / "shared" / "models" / "pycode-10m"
pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="needs ../shared/models/pycode-10m")
PROMPT = "def read_lines(path):\n    with open(path) as"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pycode") / "4bit"
    flags = ["-q", "--bits", "4", "--dtype", "float32", "--quiet"]
    assert convert(["--hf-path", str(SOURCE), "--mlx-path", str(out), *flags]) == 0
    return out


def test_it_continues_code_as_mlx_lm_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = mlx_lm.load(str(folder))
    prompt = tokenizer.encode(PROMPT)
    expected = [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=24)]
    flags = ["--raw", "--temperature", "0", "--max-tokens", "24", "--json", "--quiet"]
    assert infer(["--model", str(folder), "--prompt", PROMPT, *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["text"] == tokenizer.decode(expected)
    assert " f:" in answer["text"][:8]


def test_four_bits_cost_what_they_should(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, tokenizer = mlx_lm.load(str(folder), lazy=True)
    text = (SOURCE / "val.txt").read_text("utf-8")
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(tokenizer.encode(text)[:512]))
    plain = tmp_path / "plain"
    assert convert(["--hf-path", str(SOURCE), "--mlx-path", str(plain), "--quiet"]) == 0
    bits = {}
    for name, model in (("plain", plain), ("4bit", folder)):
        capsys.readouterr()
        flags = ["--score", "--ids-file", str(ids), "--json", "--quiet"]
        assert infer(["--model", str(model), *flags]) == 0
        score = json.loads(capsys.readouterr().out)
        assert score["tokens"][0]["logprob"] is None
        bits[name] = np.array([token["bits"] for token in score["tokens"][1:]])
    assert 3 < bits["plain"].mean() < 7
    assert 0 < bits["4bit"].mean() - bits["plain"].mean() < 0.2
