"""What the options of generation do, as a user of `infer` sees it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.cli import main
from tests.factories_inference import edit_json, write_mlx

END = 2  # the id that ends an answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mlx(tmp_path_factory.mktemp("model"))


@pytest.fixture
def ask(folder: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """The JSON of an answer to plain text, greedy if nothing else is said."""

    def run(*flags: str | Path, model: Path = folder, code: int = 0) -> dict[str, Any]:
        asked = ["--model", model, "--prompt", "The quick", "--raw", "--quiet", "--json"]
        if "--seed" not in flags:
            asked += ["--temperature", "0"]
        if "--max-tokens" not in flags:
            asked += ["--max-tokens", "24"]
        capfd.readouterr()
        assert main([str(flag) for flag in (*asked, *flags)]) == code
        out, err = capfd.readouterr()
        made: dict[str, Any] = json.loads(out) if out else {"error": err}
        return made

    return run


def ids(made: dict[str, Any]) -> list[int]:
    return [token["id"] for token in made["logprobs"]]


def test_logprobs_are_those_of_a_score(
    ask: Any, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Drawn with every option on, measured without any of them."""
    made = ask("--seed", "5", "--logprobs", "3", "--logit-bias", "70=3", "--top-k", "40",
               "--repetition-penalty", "1.2", "--frequency-penalty", "0.4")  # fmt: skip
    tokens = made["logprobs"]
    assert len(tokens) == made["usage"]["completion_tokens"]
    answer = b"".join(bytes(token["bytes"]) for token in tokens if token["id"] != END)
    assert answer.decode("utf-8", "replace") == made["text"]
    bare = ask("--logprobs", "0", "--max-tokens", "1")["logprobs"]
    assert bare[0]["top"] == []

    from inference.tokenizer import load_tokenizer

    prompt = load_tokenizer(folder, {}).encode_text("The quick")
    (tmp_path / "ids.json").write_text(json.dumps([*prompt, *ids(made)]))
    score = ["--model", str(folder), "--score", "--ids-file", str(tmp_path / "ids.json")]
    assert main([*score, "--json", "--quiet"]) == 0
    scored = json.loads(capfd.readouterr().out)["tokens"][len(prompt) :]
    for ours, theirs in zip(tokens, scored, strict=True):
        assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=1e-3)
        top = ours["top"]
        assert len(top) == 3
        assert [each["logprob"] for each in top] == sorted(
            (each["logprob"] for each in top), reverse=True
        )
        if theirs["rank"] <= 3:
            assert top[theirs["rank"] - 1]["id"] == ours["id"]


def test_json_lines_carry_the_same_logprobs(
    ask: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--seed", "5", "--logprobs", "1", "--stop", "e"]
    whole = ask(*flags)
    asked = ["--model", str(folder), "--prompt", "The quick", "--raw", "--quiet", "--json"]
    assert main([*asked, "--max-tokens", "24", "--stream", *flags]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    deltas = [line for line in lines if line["type"] == "delta"]
    told = [token for line in deltas for token in line.get("logprobs", [])]
    assert told == whole["logprobs"]
    assert "".join(line["text"] for line in deltas) == whole["text"]


def test_the_first_of_several_answers_is_the_one_alone(ask: Any) -> None:
    alone = ask("--seed", "6")
    several = ask("--seed", "6", "-n", "3")
    choices = several["choices"]
    assert several["text"] == choices[0]["text"] == alone["text"]
    assert "choices" not in alone and len(ask("--seed", "6", "-n", "1")["choices"]) == 1
    assert len({choice["text"] for choice in choices}) == 3
    for choice in choices:  # each can be had again by its seed
        assert ask("--seed", str(choice["seed"]))["text"] == choice["text"]


def test_several_answers_as_text(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", str(folder), "--prompt", "hi", "--seed", "3", "--max-tokens", "5"]
    assert main([*asked, "-n", "3", "--json", "--quiet"]) == 0
    texts = [choice["text"] for choice in json.loads(capfd.readouterr().out)["choices"]]
    assert main([*asked, "-n", "3"]) == 0
    out, err = capfd.readouterr()
    assert out == f"{texts[0]}\n--- 2/3\n{texts[1]}\n--- 3/3\n{texts[2]}\n"
    assert "3 answers of" in err and "seed 3" in err


def test_logit_bias_and_stop_tokens(ask: Any) -> None:
    assert ids(ask("--logit-bias", "70=100", "--logprobs", "0", "--max-tokens", "3")) == [70] * 3
    first = ids(ask("--logprobs", "0", "--max-tokens", "1"))[0]
    banned = ids(ask("--logit-bias", f"{first}=-100", "--logprobs", "0"))
    assert first not in banned
    stopped = ask("--logit-bias", "70=100", "--stop-token", "70", "--logprobs", "0")
    assert (stopped["text"], stopped["finish_reason"], ids(stopped)) == ("", "stop", [70])
    by_text = ask("--logit-bias", f"{END}=100", "--ignore-eos", "--stop-token", "<|im_end|>")
    assert by_text["finish_reason"] == "stop" and by_text["usage"]["completion_tokens"] == 1


def test_ignore_eos_goes_on(ask: Any) -> None:
    ended = ask("--logit-bias", f"{END}=100")
    assert ended["finish_reason"] == "stop" and ended["usage"]["completion_tokens"] == 1
    going = ask("--logit-bias", f"{END}=100", "--ignore-eos", "--max-tokens", "4")
    assert going["finish_reason"] == "length" and going["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("stop", ["eos", "token", "text"])
def test_nothing_ends_an_answer_before_min_tokens(ask: Any, stop: str) -> None:
    if stop == "eos":
        flags = ["--logit-bias", f"{END}=100"]
    elif stop == "token":
        flags = ["--logit-bias", "70=100", "--stop-token", "70"]
    else:
        text = ask("--max-tokens", "1")["text"]
        flags = ["--stop", text]
    assert ask(*flags)["usage"]["completion_tokens"] == 1
    made = ask(*flags, "--min-tokens", "5", "--logprobs", "0")
    assert made["usage"]["completion_tokens"] > 5
    if stop != "text":
        end = END if stop == "eos" else 70
        assert made["finish_reason"] == "stop" and ids(made).index(end) == 5
    assert ask("--min-tokens", "25", code=2)["error"].startswith("error: min_tokens: 25 is more")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--stop-token", "<nowhere>"], 'stop_token: "<nowhere>" is no token of this model'),
        (["--stop-token", "320"], "stop_token: 320 is no token of this model, which has 320"),
        (["--logit-bias", "999999=1"], "logit_bias: 999999 is no token"),
    ],
)
def test_tokens_that_there_are_not(ask: Any, flags: list[str], named: str) -> None:
    error = ask(*flags, code=2)["error"]
    assert error.startswith(f"error: {named}") and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--xtc-probability", "1", "--xtc-threshold", "0.001"],
        ["--presence-penalty", "5"],
        ["--frequency-penalty", "5"],
        ["--repetition-penalty", "3", "--repetition-context", "0"],
        ["--top-k", "2"],
        ["--min-p", "0.9"],
    ],
)
def test_sampling_options_change_the_answer(ask: Any, flags: list[str]) -> None:
    assert ask("--seed", "2", *flags)["text"] != ask("--seed", "2")["text"]


def test_the_seed_of_an_answer_is_told(ask: Any) -> None:
    drawn = ask("--temperature", "1", "--seed", "77")
    assert drawn["seed"] == 77 and ask()["seed"] is None


def test_the_models_recommendations(ask: Any, tmp_path: Path) -> None:
    model = write_mlx(tmp_path / "model")
    recommended = {"min_new_tokens": 6, "do_sample": False, "eos_token_id": [END, 70]}
    (model / "generation_config.json").write_text(json.dumps(recommended))
    bias = ["--logit-bias", "70=100", "--logprobs", "0"]
    assert len(ids(ask(*bias, model=model))) == 7
    assert len(ids(ask(*bias, "--min-tokens", "0", model=model))) == 1
    edit_json(model / "generation_config.json", stop_strings=["e"], min_new_tokens=None)
    assert "e" not in ask(model=model)["text"]


def test_recommendations_that_cant_be_honoured_are_named_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_mlx(tmp_path / "model")
    recommended = {"num_beams": 4, "typical_p": 0.9, "bad_words_ids": [[1]], "num_beam_groups": 1}
    (model / "generation_config.json").write_text(json.dumps(recommended))
    asked = ["--model", str(model), "--prompt", "hi", "--max-tokens", "2"]
    assert main(asked) == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "num_beams, typical_p, bad_words_ids" in warnings[0]
    assert main([*asked, "--quiet"]) == 0
    assert capfd.readouterr().err == ""


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("flags", [["--help"], ["--version"], ["--show-config"], ["--prompt", "a"]])
@pytest.mark.parametrize("buffered", [True, False])
def test_a_stdout_that_is_full_is_no_success(
    flags: list[str], buffered: bool, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with FULL.open("w", encoding="utf-8") as full:
        full.reconfigure(write_through=not buffered)
        monkeypatch.setattr(sys, "stdout", full)
        code = main(["--model", str(folder), "--max-tokens", "2", "--quiet", *flags])
        monkeypatch.undo()
    assert code == 1
    err = capfd.readouterr().err
    assert err.startswith("error: stdout: No space left on device; ") and err.count("\n") == 1
