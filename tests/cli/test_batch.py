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

import mlx.core as mx
import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from inference.cli import main
from tests.factories_inference import save, write_mlx
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
        {
            "custom_id": "six",
            "body": {
                **body,
                "messages": [
                    {"role": "developer", "content": "Be"},
                    {"role": "user", "content": "hello"},
                ],
                "parallel_tool_calls": True,
            },
        },
        {"custom_id": "seven", "body": {**body, "parallel_tool_calls": False}},
    ]
    found = run(model, write_rows(tmp_path / "in.jsonl", rows), code=1)
    names = ["one", "two", "three", "four", "one", "six", "seven"]
    assert [line["custom_id"] for line in found] == names
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
    sixth = found[5]["response"]["body"]["choices"][0]["message"]["content"]
    assert sixth == alone(model, capfd, "--prompt", "hello", "--system", "Be")["text"]
    assert "parallel_tool_calls" in found[6]["error"]["message"]


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
    again = run(model, source, "--force")
    for record in (*found, *again):  # how much is shared depends on what runs side by side
        del record["usage"]["cached_tokens"]
    assert found == again


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


def test_bad_logits_end_one_row_and_keep_its_text(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Case 58: the embedding of one token is NaN, and one row's answer comes upon it."""
    prompts = ["hello", "fox", "the quick brown", "def main():"]
    flags = [("--prompt", prompt, "--ignore-eos", "--logprobs", "1") for prompt in prompts]
    free = [alone(model, capfd, *each) for each in flags]
    said = [[token["id"] for token in each["logprobs"]] for each in free]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    seen = {id_ for prompt in prompts for id_ in tokenizer.encode(prompt).ids}
    place, poison = next(
        (place, id_)
        for place, id_ in enumerate(said[0])
        if place and id_ not in seen and all(id_ not in other for other in said[1:])
    )
    tensors: Any = mx.load(str(model / "model.safetensors"))
    rows = tensors["model.embed_tokens.weight"]
    rows[poison] = float("nan")
    mx.eval(tensors)
    save(model, tensors, json.loads((model / "config.json").read_text()))
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": prompt} for prompt in prompts])
    found = run(model, source, "--ignore-eos", "--logprobs", "1", code=1)
    assert [record["finish_reason"] for record in found] == ["error", "length", "length", "length"]
    assert [record["text"] for record in found[1:]] == [each["text"] for each in free[1:]]
    kept = said[0][: said[0].index(poison) + 1]
    assert [token["id"] for token in found[0]["logprobs"]] == kept
    assert found[0]["usage"]["completion_tokens"] == len(kept) >= 1 + min(1, place)
    assert free[0]["text"].startswith(found[0]["text"].rstrip("\ufffd")) and found[0]["text"]
    assert f"at token {len(kept) + 1}" in found[0]["error"]["message"]
    assert "1 failed" in capfd.readouterr().err


def test_a_row_that_the_tokenizer_gives_up_on(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Cases 26 and 27: a regex without end panics inside the library."""
    path = model / "tokenizer.json"
    backend = Tokenizer.from_file(str(path))
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex("(a+)+$"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.save(str(path))
    rows = [{"prompt": "bb"}, {"prompt": "a" * 60 + "b"}, {"prompt": "bb"}]
    found = run(model, write_rows(tmp_path / "in.jsonl", rows), code=1)
    assert "gave up on this text" in found[1]["error"]["message"]
    assert found[0]["text"] == found[2]["text"] == alone(model, capfd, "--prompt", "bb")["text"]


def test_a_row_that_the_template_refuses(model: Path, tmp_path: Path) -> None:
    """Cases 31 and 33: its own message, or a loop that is stopped; the others are answered."""
    (model / "chat_template.jinja").write_text(
        "{% if messages[0].content == 'no' %}{{ raise_exception('I do not say that.') }}{% endif %}"
        "{% if messages[0].content == 'much' %}{{ 'a' * 300000000 }}{% endif %}"
        "{{ messages[0].content }}"
    )
    rows = [{"prompt": "hello"}, {"prompt": "no"}, {"prompt": "much"}, {"prompt": "hello"}]
    found = run(model, write_rows(tmp_path / "in.jsonl", rows), code=1)
    assert "I do not say that." in found[1]["error"]["message"]
    assert found[2]["error"]["type"] == "TemplateError"
    assert found[0]["text"] == found[3]["text"]


def test_nul_and_surrogates_in_rows(model: Path, tmp_path: Path) -> None:
    """Cases 54 and 55: NUL is a character, half a surrogate pair is none."""
    rows = [
        '{"prompt": "a\\u0000b", "raw": true}',
        '{"prompt": "a\\ud800"}',
        '{"prompt": "\\u3000"}',
    ]
    found = run(model, write_rows(tmp_path / "in.jsonl", rows), code=1)
    assert found[0]["usage"]["prompt_tokens"] == 3
    assert "surrogate" in found[1]["error"]["message"]
    assert "is empty" in found[2]["error"]["message"]


def test_rows_are_admitted_as_memory_allows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Room for three answers and for the prompt that is read; one row could never fit."""
    model = write_mlx(tmp_path / "model", max_position_embeddings=8192)
    slot = 3 * 2 * 2 * 32 * 4 * 256  # layers, keys and values, heads, their size, float32, tokens
    weights = sum(array.nbytes for array in mx.load(str(model / "model.safetensors")).values())  # type: ignore[union-attr]
    rows: list[dict[str, Any]] = [{"prompt": f"hello {number}"} for number in range(8)]
    free = run(model, write_rows(tmp_path / "in.jsonl", rows), "--ignore-eos")
    assert "up to 8 at once" in capfd.readouterr().err
    rows.insert(4, {"prompt": "hello", "max_tokens": 5000})
    source = write_rows(tmp_path / "in.jsonl", rows)
    limit = weights + int(4.5 * slot / 0.9)
    before = mx.set_memory_limit(1 << 40)
    try:
        found = run(model, source, "--ignore-eos", "--force", "--memory-limit", str(limit), code=1)
    finally:
        mx.set_memory_limit(before)
    assert "up to 3 at once" in capfd.readouterr().err
    assert "takes" in found[4]["error"]["message"] and "max_tokens" in found[4]["error"]["message"]
    assert [r["text"] for r in found if "text" in r] == [r["text"] for r in free]


def test_a_row_without_end_is_refused_and_not_held(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 56: a line of more bytes than any prompt has."""
    monkeypatch.setattr("inference.batch.source._LONGEST", 1 << 20)
    rows = [{"prompt": "hello"}, {"prompt": "x" * (5 << 20)}, {"prompt": "hello"}]
    found = run(model, write_rows(tmp_path / "in.jsonl", rows), code=1)
    assert "longer than 1,048,576 bytes" in found[1]["error"]["message"]
    assert found[0]["text"] == found[2]["text"]
