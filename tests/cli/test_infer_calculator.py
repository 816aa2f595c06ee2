"""`infer --calculator`: what a nanochat model asks for is worked out, in every mode."""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoint.nanochat.chat import CHAT_TOKENS
from convert.cli import main as convert
from inference.arithmetic import work_out
from inference.calculator import parts_of
from inference.cli import main as infer
from inference.tokenizer import load_tokenizer
from tests.factories_nanochat import sizes_of, write_checkpoint, write_tokenizer
from tests.nanochat_reference import random_weights

SPECIAL = {token: 291 + index for index, token in enumerate(CHAT_TOKENS)}
WORKED_OUT = "<|python_start|>7*6<|python_end|><|output_start|>42<|output_end|>."


def chain(*tokens: str) -> list[int]:
    return [SPECIAL.get(token, ord(token[0])) for token in tokens]


def speaker(folder: Path, expression: str) -> Path:
    """A nanochat model that always answers with an expression, and a full stop after its result.

    What it says next hangs on the last token alone: the embeddings are orthogonal, the layers
    add nothing, and each row of the head is the embedding of the token before.
    """
    sizes = sizes_of("E1", n_embd=320, n_layer=1)
    weights = random_weights("E1", sizes)
    for name, value in weights.items():
        if name.endswith("c_proj.weight") or name in ("x0_lambdas", "lm_head.weight"):
            value[:] = 0
    weights["resid_lambdas"][:] = 1
    table = np.eye(320, dtype=np.float32)
    weights["transformer.wte.weight"][:] = table
    said = chain("<|assistant_start|>", "<|python_start|>", *expression, "<|python_end|>")
    said += chain("<|assistant_end|>")
    after = chain("<|output_end|>", ".", "<|assistant_end|>")
    for words in (said, after):
        for one, following in itertools.pairwise(words):
            weights["lm_head.weight"][following] += table[one]
    source = write_tokenizer(write_checkpoint(folder / "d1", weights, sizes))
    made = folder / "made"
    assert convert(["--hf-path", str(source), "--mlx-path", str(made), "--quiet"]) == 0
    return made


@pytest.fixture
def model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    made = speaker(tmp_path, "7*6")
    capsys.readouterr()
    return made


def test_the_result_is_forced_back(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", str(model), "--quiet", "--prompt", "what", "--max-tokens", "40"]

    assert infer([*common, "--calculator"]) == 0
    assert capsys.readouterr().out.strip() == WORKED_OUT
    assert infer(common) == 0
    assert capsys.readouterr().out.strip() == "7*6"


def test_in_every_mode(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", str(model), "--quiet", "--calculator", "--temperature", "0"]
    common += ["--max-tokens", "40"]

    assert infer([*common, "--prompt", "what", "--stream"]) == 0
    assert capsys.readouterr().out.strip() == WORKED_OUT
    assert infer([*common, "--prompt", "what", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == WORKED_OUT and told["finish_reason"] == "stop"
    rows, out = model.parent / "rows.jsonl", model.parent / "out.jsonl"
    rows.write_text('{"prompt": "what"}\n{"prompt": "is"}\n{"prompt": "a", "calculator": false}\n')
    assert infer([*common, "--batch", str(rows), "--output", str(out)]) == 0
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert texts == [WORKED_OUT, WORKED_OUT, "7*6"]


def test_a_chat_goes_on_with_what_was_worked_out(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"what\nis\n")))
    common = ["--model", str(model), "--calculator", "--temperature", "0", "--max-tokens", "40"]

    assert infer([*common, "--chat"]) == 0

    told = capsys.readouterr()
    assert told.out.splitlines() == [WORKED_OUT, WORKED_OUT]
    # The second turn reads what is new alone: a word, and the three marks about it.
    tokenizer = load_tokenizer(model, json.loads((model / "config.json").read_text()))
    new = len(tokenizer.encode_text("is")) - 1 + 3
    assert f"read {new} of " in told.err


def test_parts_of_an_answer() -> None:
    assert parts_of(f"a {WORKED_OUT}") == (
        {"type": "text", "text": "a "},
        {"type": "python", "text": "7*6"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "."},
    )
    assert parts_of("<|python_start|>1+1") == parts_of("") == ()


def test_what_has_no_result_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = speaker(tmp_path, "7*x")
    capsys.readouterr()

    flags = ["--calculator", "--quiet", "--prompt", "what", "--max-tokens", "40"]
    assert infer(["--model", str(made), *flags]) == 0

    assert capsys.readouterr().out.strip() == "<|python_start|>7*x<|python_end|>"


def test_a_model_without_the_tokens_is_refused(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(["--model", str(llama), "--raw", "--prompt", "a", "--calculator"]) == 2
    assert "calculator: this model has no tokens for it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("2+3*4", "14"),
        ("(2+3)*4", "20"),
        ("1,234*2", "2468"),
        ("7//2", "3"),
        ("7/2", "3.5"),
        ("-3 - -4", "1"),
        ("0.1+0.2", "0.30000000000000004"),
        ("'strawberry'.count('r')", "3"),
        ('"aXbX".count("X")', "2"),
    ],
)
def test_results(expression: str, result: str) -> None:
    assert work_out(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        *("", " ", "1/0", "2**9", "9**9**9", "007", "1e9", "1_0", "x", "(", "1+", "1;2", "1j"),
        *("'a'*9", "'a'", "['a']", "True", "abs(1)", "1 if 1 else 2", "1<2", "3%2", "~1"),
        *("__import__('os').system('true')", "'a'.count('a').real", "'a'.upper()"),
        *("'a'.count(*'a')", "'a'.count('a').count('a')", "b'a'.count(b'a')", "f'{1}'.count('1')"),
        *(
            "(" * 250 + "1" + ")" * 250,
            "-" * 400 + "1",
            "+".join("1" * 240),
            "1" * 600,
            "\0",
            "1\n2",
        ),
    ],
)
def test_what_is_no_arithmetic_has_no_result(expression: str) -> None:
    assert work_out(expression) is None
