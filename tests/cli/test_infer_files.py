"""What `infer` reads and writes: odd names, encodings, closed streams; nothing lost by mistake."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from checkpoint import disk
from configs.errors import DiskError, SourceError
from inference.batch.source import open_source
from inference.cli import main
from tests.factories_inference import edit_json, write_mlx

BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mlx(tmp_path_factory.mktemp("model"), max_position_embeddings=1024)


def records(out: str) -> list[str]:
    return [json.loads(line).get("text", "no text") for line in out.splitlines()]


def flags(model: Path, *more: str | Path) -> list[str]:
    asked = ["--model", model, "--temperature", "0", "--max-tokens", "6", "--quiet", *more]
    return [str(flag) for flag in asked]


@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_streams_that_were_closed_before_the_start(closed: str, model: Path) -> None:
    """As by a service: MLX takes a weight file that gets the number 0 for one it can't open."""
    command = f'exec "$0" -m inference "$@" {closed}'
    ran = subprocess.run(
        ["sh", "-c", command, sys.executable, *flags(model, "--prompt", "hello")],
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, b"") and ran.stdout.strip()


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_prompts_are_not_replaced_by_their_answers(
    link: object, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hello"}\n')
    output = rows
    if callable(link):
        output = tmp_path / "same.jsonl"
        link(rows, output)
    code = main(flags(model, "--batch", rows, "--output", output, "--force"))
    assert code == 2
    assert capfd.readouterr().err.startswith("error: --output: ")
    assert rows.read_text() == '{"prompt": "hello"}\n'


def test_a_scored_text_is_not_replaced_by_its_page(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("hello")
    asked = ["--model", str(model), "--score", "--text-file", str(text), "--html", str(text)]
    assert main(asked) == 2
    assert capfd.readouterr().err.startswith("error: --html: ")
    assert text.read_text() == "hello"


def test_answers_go_through_a_link(model: Path, tmp_path: Path) -> None:
    rows, link, file = tmp_path / "rows.txt", tmp_path / "link", tmp_path / "elsewhere"
    rows.write_text("hello\n")
    link.symlink_to(file)
    assert main(flags(model, "--batch", rows, "--output", link)) == 0
    before = file.read_text()
    assert main(flags(model, "--batch", rows, "--output", link)) == 2
    assert main(flags(model, "--batch", rows, "--output", link, "--force")) == 0
    assert link.is_symlink() and file.read_text() == before


@pytest.mark.parametrize("name", ["rows.jsonl", "rows", "rows.txt"])
def test_a_byte_order_mark_is_no_prompt(
    name: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = b"hello\nfox\n" if name.endswith("txt") else b'{"prompt": "hello"}\n{"prompt": "fox"}\n'
    found = []
    for mark in (b"", BOM):
        rows = tmp_path / name
        rows.write_bytes(mark + lines)
        assert main(flags(model, "--batch", rows)) == 0
        found.append(records(capfd.readouterr().out))
    assert found[0] == found[1]


@pytest.mark.parametrize("how", ["file", "stdin", "stdin as a file", "chat"])
def test_a_byte_order_mark_is_not_said(
    how: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked = {
        "file": ["--prompt-file", str(tmp_path / "prompt")],
        "stdin": ["--prompt", "-"],
        "stdin as a file": ["--prompt-file", "-"],
        "chat": ["--chat"],
    }[how]
    found = []
    for mark in (b"", BOM):
        (tmp_path / "prompt").write_bytes(mark + b"hello")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(mark + b"hello")))
        assert main(flags(model, "--json", *asked)) == 0
        found.append(json.loads(capfd.readouterr().out))
    assert found[0]["usage"] == found[1]["usage"] and found[0]["text"] == found[1]["text"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--prompt-file", ""], "error: --prompt-file: is an empty name; "),
        (["--batch", ""], "error: --batch: is an empty name; "),
        (["--batch", "x", "--output", ""], "error: --output: is an empty name; "),
        (["--batch", "-"], "error: --batch: can't be read from stdin; "),
        (["--score", "--ids-file", "-"], "error: --ids-file: can't be read from stdin; "),
        (["--prompt", "x", "--model", ""], "error: --model: is an empty name; "),
    ],
)
def test_names_that_can_t_be_meant(
    asked: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "nowhere", *asked]) == 2
    assert capfd.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    "asked",
    [
        ["--score", "--prompt", "x", "--html"],
        ["--chat", "--session"],
        ["--batch", "rows.txt", "--force", "--output"],
    ],
)
def test_what_can_t_be_written_is_refused_before_the_model_is_looked_for(
    asked: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for place, message in (
        (tmp_path, f"error: {tmp_path}: is a folder; "),
        (tmp_path / "no" / "x", f"error: {tmp_path / 'no' / 'x'}: there is no folder "),
    ):
        assert main(["--model", "nowhere", *asked, str(place)]) == 1
        assert capfd.readouterr().err.startswith(message)


def test_prompts_that_change_under_way_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("a\nb\n")
    source = open_source(path)
    path.write_text("a\n")
    with pytest.raises(SourceError, match="it had 2 rows, and has 1"):
        list(source.lines())


@pytest.mark.parametrize("asked", [["--prompt", "hello"], ["--chat"]])
def test_a_memory_limit_holds_for_a_single_answer(
    asked: list[str],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    weights = mx.load(str(model / "model.safetensors"))
    assert isinstance(weights, dict)
    size = sum(array.nbytes for array in weights.values())
    slot = 3 * 2 * 2 * 32 * 4 * 256  # layers, keys and values, heads, their size, float32, tokens
    before = mx.set_memory_limit(1 << 40)
    try:
        for slots, code in ((0.5, 1), (3, 0)):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
            limit = size + int(slots * slot / 0.9)
            assert main(flags(model, "--memory-limit", f"{limit}", *asked)) == code
    finally:
        mx.set_memory_limit(before)
    assert "error: memory: the KV cache of " in capfd.readouterr().err


@pytest.mark.parametrize("asked", [["-n", "2"], ["--logprobs", "1"], ["--window", "9"]])
def test_no_flag_is_advised_that_does_not_help(
    asked: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "nowhere", "--chat", *asked]) == 2
    assert capfd.readouterr().err.endswith(" does not go with --chat; leave it out\n")


def test_a_chat_shows_settings_as_they_are_written(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = b'/set stop ["a", "b"]\n/set ignore_eos true\n/set tools\n/set thinking hide\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said)))
    assert main(flags(model, "--chat")) == 0
    assert capfd.readouterr().err.splitlines() == [
        'stop = ["a", "b"]',
        "ignore_eos = true",
        "tools = not set",
        "thinking = hide",
    ]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--max-tokens", "4"], "the answer was cut after 4 tokens: --max-tokens allows more\n"),
        (["-n", "2", "--max-tokens", "4"], "2 of 2 answers were cut after 4 tokens: --max-"),
        (["--context", "30"], "tokens: the context has no room for more\n"),
        (["--choice", "a"], ""),
    ],
)
def test_an_answer_that_was_cut_says_so(
    asked: list[str], told: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    forever = [] if "--choice" in asked else ["--ignore-eos"]
    assert main(["--model", str(model), "--prompt", "hello", "--seed", "1", *forever, *asked]) == 0
    err = capfd.readouterr().err
    assert told in err and (" cut after " in err) == bool(told)


def test_a_variable_that_is_set_to_nothing_is_not_set(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("MLX_FERRY_DEVICE", "MLX_FERRY_DTYPE"):
        monkeypatch.setenv(name, "")
    assert main(flags(model, "--prompt", "hello")) == 0
    monkeypatch.setenv("MLX_FERRY_DEVICE", "gpu")
    if not mx.is_available(mx.gpu):
        capfd.readouterr()
        assert main(flags(model, "--prompt", "hello")) == 2
        assert capfd.readouterr().err.startswith("error: MLX_FERRY_DEVICE: MLX has no GPU here; ")


def test_what_is_wrong_with_a_row_is_said_of_its_fields(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": " "}\n{"prompt": "hello", "max_tokens": 5000}\n')
    assert main(flags(model, "--batch", rows)) == 1
    errors = [json.loads(line)["error"]["message"] for line in capfd.readouterr().out.splitlines()]
    assert errors[0] == "prompt: is empty; say something"
    assert errors[1].startswith("prompt: ") and "lower max_tokens to " in errors[1]


def without_template(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    edit_json(folder / "tokenizer_config.json", chat_template=None)
    return folder


def test_a_model_without_chat_template(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = without_template(model, tmp_path / "plain")
    rows = tmp_path / "rows.txt"
    rows.write_text("hello\n")
    told = "the model has no chat template: it goes on with the text itself, as with --raw\n"
    asked = ["--model", str(plain), "--max-tokens", "4"]
    for mode in (["--prompt", "hello"], ["--batch", str(rows)]):
        for more in ([], ["--raw"]):
            assert main([*asked, *mode, *more]) == 0
            assert (told in capfd.readouterr().err) == (not more)
        for more in (["--thinking", "off"], ["--thinking-budget", "3"]):
            assert main([*asked, *mode, *more]) == (1 if "--batch" in mode else 2)
            both = capfd.readouterr()
            what = more[0].removeprefix("--").replace("-", "_")
            assert f"{what}: this model has no chat template" in both.out + both.err


def test_a_score_is_not_lost_with_its_page(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise DiskError(path, "the disk is full", "free some space and run it again")

    monkeypatch.setattr(disk, "write_whole", full)
    page = tmp_path / "page.html"
    asked = ["--model", str(model), "--score", "--prompt", "hello fox", "--html", str(page)]
    assert main([*asked, "--json", "--quiet"]) == 1
    both = capfd.readouterr()
    assert json.loads(both.out)["total_bits"] > 0 and "the disk is full" in both.err


def test_a_page_needs_a_tokenizer_before_the_weights_are_read(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, ids = tmp_path / "bare", tmp_path / "ids.json"
    shutil.copytree(model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    ids.write_text("[5, 6]")
    asked = ["--model", str(folder), "--score", "--ids-file", str(ids)]
    assert main([*asked, "--html", str(tmp_path / "page.html")]) == 2
    both = capfd.readouterr()
    assert both.out == "" and both.err.startswith("error: --html: the folder has no tokenizer")


def test_chats_and_pages_go_through_a_link(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, asked in enumerate((["--chat", "--session"], ["--score", "--html"])):
        link, file = tmp_path / f"link{number}", tmp_path / f"file{number}"
        link.symlink_to(file)
        if "--score" in asked:
            ran = ["--model", str(model), "--prompt", "hello", "--quiet", *asked, str(link)]
        else:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
            file.write_text('{"format": "mlx-ferry chat", "version": 1, "messages": []}')
            ran = flags(model, *asked, link)
        assert main(ran) == 0
        assert link.is_symlink() and len(file.read_text()) > 100
