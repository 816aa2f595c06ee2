"""`infer --batch`: every row gets its one record, in order, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inference.cli import main
from tests.factories_inference import write_mlx
from tests.factories_models import write_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_mlx(tmp_path / "model")
    write_tokenizer(folder)
    return folder


def write_rows(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(model: Path, rows: Path, *flags: str, code: int = 0) -> list[dict[str, Any]]:
    out = rows.with_name("out.jsonl")
    asked = ["--model", str(model), "--batch", str(rows), "--output", str(out)]
    assert main([*asked, "--temperature", "0", "--max-tokens", "12", *flags]) == code
    return [json.loads(line) for line in out.read_text().splitlines()]


def alone(model: Path, capfd: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    capfd.readouterr()
    asked = ["--model", str(model), "--temperature", "0", "--max-tokens", "12", "--json"]
    assert main([*asked, "--quiet", *flags]) == 0
    made: dict[str, Any] = json.loads(capfd.readouterr().out)
    return made


ROWS = [
    {"id": "a", "prompt": "hello"},
    {"prompt": "the quick brown fox jumps over", "max_tokens": 3},
    {"id": 7, "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]},
    {"prompt": "def main():", "raw": True, "temperature": 1.0, "seed": 5},
    {"prompt": "hello", "system": "be kind", "stop": "e"},
    {"prompt": "fox", "temperature": 0.9, "seed": 11, "n": 3},
]


def test_rows_are_what_single_runs_give(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = run(model, write_rows(tmp_path / "in.jsonl", ROWS))
    assert [record["index"] for record in found] == list(range(len(ROWS)))
    assert [record["id"] for record in found] == ["a", None, 7, None, None, None]
    single = [
        alone(model, capfd, "--prompt", "hello"),
        alone(model, capfd, "--prompt", "the quick brown fox jumps over", "--max-tokens", "3"),
        alone(model, capfd, "--prompt", "hi", "--system", "x"),
        alone(
            model, capfd, "--prompt", "def main():", "--raw", "--temperature", "1", "--seed", "5"
        ),
        alone(model, capfd, "--prompt", "hello", "--system", "be kind", "--stop", "e"),
        alone(model, capfd, "--prompt", "fox", "--temperature", "0.9", "--seed", "11", "-n", "3"),
    ]
    for record, expected in zip(found, single, strict=True):
        assert record["text"] == expected["text"]
        assert record["finish_reason"] == expected["finish_reason"]
        assert record["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]
        assert record["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"]
    assert [choice["text"] for choice in found[5]["choices"]] == [
        choice["text"] for choice in single[5]["choices"]
    ]


def test_plain_text_is_one_prompt_a_line(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "prompts.txt"
    source.write_bytes("hello\r\n\n  \n你好\n{not json\n".encode())
    found = run(model, source)
    texts = [
        alone(model, capfd, "--prompt", said)["text"] for said in ("hello", "你好", "{not json")
    ]
    assert [record["text"] for record in found] == texts


BAD = [
    ("{", "not valid JSON"),
    ("[1]", "not a JSON object"),
    ({"prompt": "x", "temprature": 1}, "temperature"),
    ({"prompt": "x", "temperature": -1}, "temperature"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "x", "messages": []}, "either prompt or messages"),
    ({"prompt": ""}, "empty"),
    ({"prompt": 5}, "not text"),
    ({"id": "first", "prompt": "x"}, "earlier row"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not text"),
    ({"prompt": "x", "stop_token": ["<nope>"]}, "stop_token"),
    ({"prompt": "x " * 4000}, "context"),
    ('{"prompt": "\\ud800"}', "surrogate"),
    ({"prompt": "x", "logit_bias": {"99999": 1}}, "logit_bias"),
]


def test_a_bad_row_is_an_error_in_its_place_and_the_others_are_answered(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = [{"id": "first", "prompt": "hello"}]
    for row, _ in BAD:
        rows += [row, {"prompt": "hello"}]
    found = run(model, write_rows(tmp_path / "in.jsonl", rows), code=1)
    assert [record["index"] for record in found] == list(range(len(rows)))
    assert len({record["text"] for record in found[0::2]}) == 1
    for record, (_, words) in zip(found[1::2], BAD, strict=True):
        assert words in record["error"]["message"] and record["error"]["type"]
        assert "text" not in record
    assert f"{len(BAD)} failed" in capfd.readouterr().err


def test_openai_lines_get_openai_lines(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = {"model": "any", "messages": [{"role": "user", "content": "hello"}]}
    rows = [
        {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {
            "custom_id": "two",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {**body, "max_completion_tokens": 2, "logprobs": True, "top_logprobs": 3},
        },
        {
            "custom_id": "three",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "any", "prompt": "fox", "n": 2, "seed": 3, "temperature": 1},
        },
        {"custom_id": "four", "body": {**body, "tools": [{"type": "function"}]}},
        {"custom_id": "one", "body": body},
    ]
    found = run(model, write_rows(tmp_path / "in.jsonl", rows), code=1)
    assert [line["custom_id"] for line in found] == ["one", "two", "three", "four", "one"]
    first = found[0]["response"]["body"]
    expected = alone(model, capfd, "--prompt", "hello")
    assert found[0]["response"]["status_code"] == 200 and found[0]["error"] is None
    assert first["object"] == "chat.completion"
    assert first["choices"][0]["message"] == {"role": "assistant", "content": expected["text"]}
    assert first["choices"][0]["finish_reason"] == expected["finish_reason"]
    usage = first["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    told = found[1]["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert len(told) == 2 and len(told[0]["top_logprobs"]) == 3
    third = found[2]["response"]["body"]
    assert third["object"] == "text_completion" and len(third["choices"]) == 2
    flags = ("--prompt", "fox", "--raw", "-n", "2", "--seed", "3", "--temperature", "1")
    choices = alone(model, capfd, *flags)["choices"]
    assert [c["text"] for c in third["choices"]] == [c["text"] for c in choices]
    assert found[3]["response"] is None and "tools" in found[3]["error"]["message"]
    assert "earlier row" in found[4]["error"]["message"]


def test_an_output_that_is_there_is_not_overwritten(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "hello"}])
    first = run(model, source)
    out = tmp_path / "out.jsonl"
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "model", "out.jsonl"]
    asked = ["--model", str(model), "--batch", str(source), "--output", str(out)]
    assert main(asked) == 2
    assert "--force" in capfd.readouterr().err
    assert run(model, source, "--force") == first


def begun(model: Path, source: Path, out: Path, rows: int) -> None:
    """A batch killed with SIGKILL once it has written some rows."""
    asked = ["--model", str(model), "--batch", str(source), "--output", str(out)]
    command = [sys.executable, "-m", "inference", *asked, "--temperature", "0", "--quiet"]
    with subprocess.Popen([*command, "--max-tokens", "12"], stderr=subprocess.PIPE) as process:
        while not out.exists() or out.read_bytes().count(b"\n") < rows:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)


def test_a_killed_batch_goes_on_without_losing_or_repeating_a_row(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": n, "prompt": f"hello {n}"} for n in range(400)]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    begun(model, source, out, 5)
    torn = out.read_bytes()
    whole = torn[: torn.rfind(b"\n") + 1]
    out.write_bytes(whole + b'{"index": 5, "te')
    capfd.readouterr()
    found = run(model, source)
    assert "going on after row" in capfd.readouterr().err
    assert [record["id"] for record in found] == list(range(400))
    assert out.read_bytes().startswith(whole)
    assert found == run(model, source, "--force")


@pytest.mark.parametrize("change", ["rows", "options", "model"])
def test_another_batch_does_not_go_on_from_it(
    change: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"hello {n}"} for n in range(400)]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    begun(model, source, out, 2)
    before = out.read_bytes()
    flags = ["--max-tokens", "12", "--temperature", "0"]
    if change == "rows":
        write_rows(source, rows[:-1])
    elif change == "options":
        flags[1] = "13"
    else:
        (model / "config.json").write_text((model / "config.json").read_text() + " ")
    asked = ["--model", str(model), "--batch", str(source), "--output", str(out)]
    assert main([*asked, *flags]) == 2
    assert "begun with other" in capfd.readouterr().err
    assert out.read_bytes() == before


def test_two_batches_do_not_write_one_output(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"hello {n}", "ignore_eos": True} for n in range(2000)]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    asked = ["--model", str(model), "--batch", str(source), "--output", str(out), "--quiet"]
    flags = ["--max-tokens", "12", "--temperature", "0"]
    with subprocess.Popen([sys.executable, "-m", "inference", *asked, *flags]) as process:
        while not out.exists() or not out.read_bytes():
            assert process.poll() is None
            time.sleep(0.005)
        assert main([*asked, *flags]) == 1
        assert main([*asked, *flags, "--force"]) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert capfd.readouterr().err.count("another process is writing it") == 2


def test_records_go_to_stdout_without_an_output(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    flags = ["--temperature", "0", "--max-tokens", "12"]
    assert main(["--model", str(model), "--batch", str(source), *flags]) == 0
    printed = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert printed == run(model, source)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", "x"], "--prompt"),
        (["--stream"], "--stream"),
        (["--score"], "--score"),
        (["--json"], "--json"),
    ],
)
def test_what_does_not_go_with_a_batch(
    flags: list[str], words: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    assert main(["--model", str(model), "--batch", str(source), *flags]) == 2
    assert words in capfd.readouterr().err


def test_a_file_without_prompts(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("\n \n")
    assert main(["--model", str(model), "--batch", str(tmp_path / "in.txt")]) == 1
    assert "holds no prompt" in capfd.readouterr().err
    assert main(["--model", str(model), "--batch", str(tmp_path / "absent")]) == 1
    assert main(["--model", str(model), "--batch", str(tmp_path)]) == 1
