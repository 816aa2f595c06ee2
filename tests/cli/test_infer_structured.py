"""`infer` with answers of a form: what comes always validates, in every mode."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from configs.resolve import Layers
from inference.cli import main
from inference.events import Delta
from inference.request import GenerationOptions, Message, Request, SamplingOptions
from inference.session import open_session
from tests.factories_talk import write_talker

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "kind": {"enum": ["é🙂", "b"]},
        "sizes": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 99},
            "maxItems": 2,
        },
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 1.5, "top_k": 4, "repetition_penalty": 1.3},
    {"temperature": 0.8, "min_p": 0.2, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"temperature": 1.0, "xtc_probability": 0.5, "logit_bias": [[70, 8.0]]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with more rows than tokens, and files of its forms."""
    made = write_talker(tmp_path_factory.mktemp("model"), marks=(), eos_token_id=[2, 0])
    (made / "schema.json").write_text(json.dumps(SCHEMA))
    return made


def run(folder: Path, capfd: pytest.CaptureFixture[str], *flags: str, code: int = 0) -> str:
    assert main(["--model", str(folder), "--quiet", *flags]) == code
    out, err = capfd.readouterr()
    return err if code else out


def rows(count: int) -> list[dict[str, Any]]:
    words = ["a", "few", "words", "more", "and", "more", "of", "them", "again"]
    return [
        {
            "prompt": " ".join(words[: 1 + n % 7]),
            "seed": n,
            "max_tokens": 120,
            **OPTIONS[n % len(OPTIONS)],
        }
        for n in range(count)
    ]


def test_fifty_answers_validate_and_are_the_same_alone(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = rows(50)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)))
    flags = ["--batch", str(tmp_path / "rows.jsonl"), "--json-schema", str(folder / "schema.json")]
    found = [json.loads(line) for line in run(folder, capfd, *flags).splitlines()]
    whole = 0
    for row in found:
        assert row["finish_reason"] in ("stop", "length"), row
        if row["finish_reason"] == "stop":
            jsonschema.validate(json.loads(row["text"]), SCHEMA)
            whole += 1
    assert whole >= 25  # the others write names for ever, as random models do
    session = open_session(folder, Layers().resolve())
    engine = session.engine(session.load("cpu", "float32", 0))
    for at, row in enumerate(asked[:20]):
        own = dict(row)
        prompt, tokens = own.pop("prompt"), own.pop("max_tokens")
        sampling = SamplingOptions(**{"top_p": 0.95, **own})
        options = GenerationOptions(sampling, tokens, json_schema=SCHEMA)  # type: ignore[arg-type]
        request = session.tokenize(Request("0", (Message("user", prompt),), options=options))
        text = "".join(e.text for e in engine.run([request]) if isinstance(e, Delta))
        assert text == found[at]["text"], at


def test_rows_have_forms_of_their_own(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    openai = {"custom_id": "o", "body": {"messages": [{"role": "user", "content": "hi"}]}}
    openai["body"] |= {
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "boolean"}}}
    }
    asked = [
        {"prompt": "hi", "regex": "[0-9]{3}-é"},
        {"prompt": "hi", "choice": ["yes", "no"]},
        {"prompt": "hi", "json_schema": {"enum": [{"a": 1}]}},
        {"prompt": "hi"},
        {"prompt": "hi", "regex": "("},
        {"prompt": "hi", "regex": "a", "stop": "b"},
        openai,
        {"prompt": "hi", "choice": ["maybe"], "n": 2},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)))
    flags = ["--batch", str(tmp_path / "rows.jsonl"), "--regex", "(no)?thing"]
    assert main(["--model", str(folder), "--quiet", "--temperature", "1", *flags]) == 1
    out, _ = capfd.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert re.fullmatch("[0-9]{3}-é", found[0]["text"])
    assert found[1]["text"] in ("yes", "no")
    assert json.loads(found[2]["text"]) == {"a": 1}
    assert found[3]["text"] in ("thing", "nothing")
    assert found[4]["error"]["message"].startswith("regex: unclosed group")
    assert found[5]["error"]["message"].startswith("stop: does not go with regex")
    message = found[6]["response"]["body"]["choices"][0]["message"]
    assert json.loads(message["content"]) in (True, False)
    assert [choice["text"] for choice in found[7]["choices"]] == ["maybe"] * 2


def test_a_form_cut_short_says_so(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompt", "hi", "--regex", "a{90}", "--max-tokens", "20", "--json"]
    found = json.loads(run(folder, capfd, *flags))
    assert (found["text"], found["finish_reason"]) == ("a" * 20, "length")
    exact = json.loads(run(folder, capfd, *flags[:3], "a{20}", *flags[4:]))
    assert (exact["text"], exact["finish_reason"]) == ("a" * 20, "stop")


def test_log_probabilities_and_several_answers_of_a_form(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--prompt", "hi", "--seed", "4", "--temperature", "1.2", "-n", "3", "--json"]
    found = json.loads(run(folder, capfd, *flags, "--regex", "[a-f]{4,9}", "--logprobs", "1"))
    texts = [choice["text"] for choice in found["choices"]]
    assert all(re.fullmatch("[a-f]{4,9}", text) for text in texts) and len(set(texts)) > 1
    for choice in found["choices"]:
        assert len(choice["logprobs"]) == choice["usage"]["completion_tokens"]
        assert all(token["logprob"] < 0 for token in choice["logprobs"])


def test_a_schema_may_come_from_stdin_and_from_toml(
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"const": [1]}')))
    found = run(folder, capfd, "--prompt", "hi", "--json-schema", "-")
    assert json.loads(found) == [1]
    (tmp_path / "mine.toml").write_text('[generate]\njson_schema = { const = "é" }\n')
    assert json.loads(
        run(folder, capfd, "--prompt", "hi", "--config", f"{tmp_path}/mine.toml")
    ) == ("é")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--json-schema", "bad.json"], "--json-schema: bad.json is not allowed; it takes a JSON"),
        (["--json-schema", "list.json"], "--json-schema: list.json is not allowed"),
        (["--json-schema", "foo.json"], "json_schema: Invalid type: foo"),
        (["--regex", "a(?=b)"], "regex: look-around"),
        (["--regex", ""], "--regex"),
        (["--regex", "a", "--choice", "b"], "choice: does not go with regex"),
        (["--choice", "a", "--score"], "--choice: does not go with --score"),
        (["--set", "generate.regex='['"], "regex: unclosed character class"),
    ],
)
def test_a_bad_form_is_refused_before_the_model_is_looked_for(
    flags: list[str],
    told: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{")
    Path("list.json").write_text("[]")
    Path("foo.json").write_text('{"type": "foo"}')
    assert main(["--model", "nowhere", "--prompt", "hi", *flags]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"error: {told}") and len(err.splitlines()) == 1


def test_a_schema_that_is_not_there_is_bad_input(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "nowhere", "--prompt", "hi", "--json-schema", "/no/such"]) == 1
    assert capfd.readouterr().err.startswith("error: /no/such: No such file")


def test_a_form_that_is_too_large_ends_its_row_alone(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = [{"prompt": "hi", "regex": "a{1000000}"}, {"prompt": "hi", "choice": ["yes"]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)))
    assert main(["--model", str(folder), "--batch", str(tmp_path / "rows.jsonl"), "--quiet"]) == 1
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert "can't go on in the form" in found[0]["error"]["message"]
    assert found[1]["text"] == "yes"


def test_what_contradicts_a_form_is_refused(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for flags in (["--stop", "x"], ["--min-tokens", "2"], ["--ignore-eos"], ["--stop-token", "5"]):
        told = run(folder, capfd, "--prompt", "hi", "--choice", "a", *flags, code=2)
        assert told.startswith(f"error: {flags[0][2:].replace('-', '_')}: does not go with choice")
