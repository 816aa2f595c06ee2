"""`--prompt-lookup` and `--draft-model` give the same text with every option, or are refused."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tokenizers import Tokenizer

from inference import speculation
from inference.cli import main
from tests.factories_inference import edit_json, write_mlx
from tests.factories_talk import TEMPLATE

TEXT = "the quick brown fox and the quick brown fox and the quick"
FORMS = {
    "free": [],
    "regex": ["--regex", "(fox and ){2,20}the end"],
    "schema": ["--json-schema", "{folder}/schema.json"],
    "choice": ["--choice", "the quick brown fox", "--choice", "the quick brown dog"],
    "stop": ["--stop", "e", "--stop", "qu", "--min-tokens", "6"],
    "penalties": ["--repetition-penalty", "1.2", "--frequency-penalty", "0.3"],
    "logprobs": ["--logprobs", "2"],
    "bias": ["--logit-bias", "70=50"],
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking costs little, so that there is much of it."""
    monkeypatch.setattr(speculation, "_TOKEN_COST", {"cpu": 0.04, "gpu": 0.04})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_mlx(tmp_path_factory.mktemp("model"))
    edit_json(made / "tokenizer_config.json", chat_template=TEMPLATE)
    schema = {"type": "array", "items": {"enum": ["fox", "the"]}}
    (made / "schema.json").write_text(json.dumps(schema))
    return made


@pytest.fixture(scope="module")
def draft(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other last bits, so that it is right now and then."""
    made = write_mlx(tmp_path_factory.mktemp("draft"))
    path = str(made / "model.safetensors")
    weights: Any = mx.load(path)
    mx.eval(weights)
    mx.random.seed(2)
    noisy = {name: value + 0.01 * mx.random.normal(value.shape) for name, value in weights.items()}
    mx.save_safetensors(path, noisy, metadata={"format": "mlx"})
    return made


def answer(
    capfd: pytest.CaptureFixture[str], folder: Path, *flags: str, code: int = 0
) -> dict[str, Any]:
    flags = ("--model", str(folder), "--prompt", TEXT, "--device", "cpu", *flags)
    assert main([*flags, "--json", "--seed", "7", "--max-tokens", "40"]) == code
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def same(answer: dict[str, Any]) -> list[Any]:
    usage = {
        k: v for k, v in answer["usage"].items() if k.split("_")[0] in ("prompt", "completion")
    }
    ids = [each["id"] for each in answer.get("logprobs", ())]
    values = [round(each["logprob"], 3) for each in answer.get("logprobs", ())]
    return [answer["text"], answer["finish_reason"], usage, ids, values]


@pytest.mark.parametrize("form", FORMS)
def test_the_text_is_the_same(
    form: str, folder: Path, draft: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [flag.replace("{folder}", str(folder)) for flag in FORMS[form]]
    flags += ["--temperature", "0.9"]
    plain = answer(capfd, folder, *flags)
    assert "drafted_tokens" not in plain["usage"]
    for guesses in (["--prompt-lookup"], ["--draft-model", str(draft)]):
        found = answer(capfd, folder, *flags, *guesses)
        assert same(found) == same(plain)
        usage = found["usage"]
        assert 0 <= usage["accepted_tokens"] <= usage["drafted_tokens"]
        assert found["timings"]["tokens_per_pass"] >= 1


def test_forms_take_fewer_passes(
    folder: Path, draft: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = answer(capfd, folder, *FORMS["regex"], "--prompt-lookup", "--temperature", "0")
    assert found["usage"]["accepted_tokens"] > 0 and found["timings"]["tokens_per_pass"] > 1.2


def test_a_batch_s_rows_choose_for_themselves(
    folder: Path, draft: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": TEXT, "prompt_lookup": True, "temperature": 0},
        {"prompt": TEXT, "temperature": 0.8, "seed": 4},
        {"prompt": "fox", "regex": "(the fox ){3,9}end", "prompt_lookup": True, "seed": 9},
        {"prompt": f"{TEXT} {TEXT}", "logit_bias": {"70": 40}, "prompt_lookup": True},
    ]
    source = tmp_path / "rows.jsonl"

    def texts(rows: list[dict[str, Any]], *flags: str) -> list[str]:
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        asked = ["--model", str(folder), "--batch", str(source), "--device", "cpu", "--seed", "1"]
        assert main([*asked, "--max-tokens", "30", *flags]) == 0
        return [json.loads(line)["text"] for line in capfd.readouterr().out.splitlines()]

    plain = [{key: row[key] for key in row if key != "prompt_lookup"} for row in rows]
    expected = texts(plain)
    assert texts(rows) == expected
    assert texts(plain, "--prompt-lookup") == expected
    assert texts(plain, "--draft-model", str(draft)) == expected
    assert texts(rows, "--draft-model", str(draft), "--batch-size", "1") == expected


def test_a_chat_goes_on_the_same(
    folder: Path,
    draft: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for guesses in ([], ["--prompt-lookup"], ["--draft-model", str(draft)]):
        lines = io.TextIOWrapper(io.BytesIO(b"say it\nsay it again\n"))
        monkeypatch.setattr(sys, "stdin", lines)
        flags = ["--chat", "--max-tokens", "20", "--seed", "3", "--device", "cpu", *guesses]
        assert main(["--model", str(folder), *flags]) == 0
        out, err = capfd.readouterr()
        found.append(out)
        assert ("guesses right" in err) == bool(guesses)
    assert found[0] == found[1] == found[2] != ""


def test_what_is_refused(
    folder: Path, draft: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = write_mlx(tmp_path / "other")
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|more|>"])
    tokenizer.save(str(other / "tokenizer.json"))
    asked = ["--model", str(folder), "--prompt", "hi", "--max-tokens", "3"]
    for flags, what in (
        (["--draft-model", str(other)], "--draft-model: its tokenizer is another: token "),
        (["--draft-model", str(tmp_path / "no")], "is not a folder"),
        (
            ["--draft-model", str(draft), "--memory-limit", "1MB"],
            "with it the weights are 1,510,912 bytes",
        ),
    ):
        assert main([*asked, *flags]) != 0
        out, err = capfd.readouterr()
        assert out == "" and what in err.splitlines()[-1]
    hybrid = write_mlx(tmp_path / "mamba", "mamba")
    rows = tmp_path / "rows.txt"
    rows.write_text("hi\n")
    batch = ["--model", str(hybrid), "--batch", str(rows), "--prompt-lookup", "--max-tokens", "3"]
    assert main(batch) == 1
    assert "prompt_lookup: answers decoded together can't go back" in capfd.readouterr().out
    assert main([*batch, "--batch-size", "1"]) == 0
