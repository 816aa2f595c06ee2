"""`infer --chat`, as people at terminals and scripts in pipes meet it."""

from __future__ import annotations

import io
import json
import re
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tokenizers import Tokenizer as Backend

from inference.cli import main
from tests.factories_inference import edit_json, save, write_mlx
from tests.terminal import Terminal

LENGTH = 4096
STATUS = re.compile(r"(\d+) tokens at .*; read (\d+) of (\d+); context (\d+) of 4096; memory")
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mlx(tmp_path_factory.mktemp("model"), max_position_embeddings=LENGTH)


@pytest.fixture
def piped(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs a chat whose user is a script; exit code, stdout and stderr."""

    def run(said: str | bytes, *flags: str | Path, model: Path = folder) -> tuple[int, str, str]:
        data = said.encode() if isinstance(said, str) else said
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        asked = ["--model", model, "--chat", "--temperature", "0", "--max-tokens", "8", *flags]
        capfd.readouterr()
        code = main([str(flag) for flag in asked])
        return code, *capfd.readouterr()

    return run


def terminal(folder: Path, home: Path, *flags: str | Path) -> Terminal:
    asked = ["inference", "--model", folder, "--chat", "--temperature", "0", *flags]
    return Terminal([str(flag) for flag in asked], {"XDG_STATE_HOME": str(home)})


def messages(path: Path) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in json.loads(path.read_text())["messages"]]


def said(path: Path) -> list[str]:
    return [content for role, content in messages(path) if role == "user"]


# On a terminal.


def test_ten_turns_with_undo_retry_edit_save_and_load(folder: Path, tmp_path: Path) -> None:
    first, last = tmp_path / "first.json", tmp_path / "last.json"
    with terminal(folder, tmp_path, "--max-tokens", "8", "--system", "be brief") as user:
        user.prompt()
        user.say("one")
        user.say("two\x1b\rlines")  # Alt-Enter
        user.say("three")
        user.say("/undo")
        user.say("four")
        user.say("/retry")
        user.say(f"/save {first}")
        user.say("/edit")
        user.say(" and more")  # what was said stands there, to be changed
        user.say("five")
        user.say(f"/load {first}")
        user.say("six")
        user.say("/set max_tokens 4")
        user.say("seven")
        user.say("/edit eight")
        user.say(f"/save {last} cache")
        user.say("/stats")
        user.child.send("\x04")
        assert user.end() == 0
        shown = user.text
    assert said(first) == ["one", "two\nlines", "four"]
    assert said(last) == ["one", "two\nlines", "four", "six", "eight"]
    assert messages(last)[:7] == messages(first)[:7]
    assert messages(first)[0] == ("system", "be brief")
    assert json.loads(last.read_text())["generate"] == {"max_tokens": 4}
    assert Path(f"{last}.kv.safetensors").is_file() and not Path(f"{first}.kv.safetensors").exists()
    assert "> four and more" in shown and "max_tokens = 4" in shown and "answers: 10" in shown

    turns = [tuple(map(int, found)) for found in STATUS.findall(shown)]
    assert len(turns) == 10
    read = [new for _, new, _, _ in turns]
    prompts = [whole for _, _, whole, _ in turns]
    assert read[0] == prompts[0]
    assert all(new < whole for _, new, whole, _ in turns[1:])
    assert read[4] == 1  # the retry: all but the last token of its prompt was there
    assert sum(read) < sum(prompts) / 2


def test_ctrl_c_ends_the_answer_and_not_the_chat(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    flags = ("--session", file, "--max-tokens", "3000", "--ignore-eos")
    with terminal(folder, tmp_path, *flags) as user:
        user.prompt()
        lines = user.text.count("\n")
        user.child.send("go\r")
        user.until(lambda: user.text.count("\n") > lines + 1)
        user.child.send("typed meanwhile")
        user.child.send("\x03")
        user.prompt()
        assert "stopped; " in user.text
        [_, answer] = [content for _, content in messages(file)]
        assert answer
        assert "typed" not in user.text
        user.child.send("dropped\x03")
        user.prompt()
        user.say("/set max_tokens 5")
        user.say("on")
        assert [content for _, content in messages(file)][:2] == ["go", answer]
        assert len(messages(file)) == 4
        user.say("/nonsense")
        assert 'error: "/nonsense": unknown command' in user.text
        user.child.send("/exit\r")
        assert user.end() == 0


def test_a_history_of_its_own_and_a_session_that_opens_again(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    flags = ("--session", file, "--save-cache", "--max-tokens", "6")
    with terminal(folder, tmp_path, *flags) as user:
        user.prompt()
        user.say("remember")
        user.child.send("/exit\r")
        assert user.end() == 0
    history = tmp_path / "mlx-ferry/chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+remember" in history.read_text()
    with terminal(folder, tmp_path, *flags) as user:
        user.prompt()
        shown = user.text.replace("\n", "")  # a long path wraps
        assert re.search(r"1 turn from .*, with \d+ tokens in the cache", shown)
        user.say("\x1b[A\x1b[A")  # twice up, past /exit
        [(_, read, whole, _)] = STATUS.findall(user.text)
        assert int(read) < int(whole)
        user.child.send("/co")
        user.until(lambda: "the last answer into the clipboard" in user.text)
        user.child.send("\t")  # completes
        user.until(lambda: "> /copy" in user.text)
        user.child.send("\x03")
        user.prompt()
        user.child.kill(signal.SIGTERM)
        assert user.end() == 143
    assert said(file) == ["remember", "remember"]


def test_escape_sequences_stop_before_the_terminal(tmp_path: Path) -> None:
    model = write_mlx(tmp_path / "model")
    backend = Backend.from_file(str(model / "tokenizer.json"))
    tensors: Any = mx.load(str(model / "model.safetensors"))
    head = mx.zeros(tensors["lm_head.weight"].shape)
    head[backend.encode("\x1b").ids[0]] = mx.ones(head.shape[1])
    head[backend.encode("\x07").ids[0]] = -mx.ones(head.shape[1])
    tensors["lm_head.weight"] = head
    mx.eval(tensors)
    save(model, tensors, json.loads((model / "config.json").read_text()))
    with terminal(model, tmp_path, "--max-tokens", "20") as user:
        user.prompt()
        user.say("hi")
        user.say("/show")
        user.child.send("\x04")
        assert user.end() == 0
        assert b"\x07" not in user.raw and b"\x1b\x1b" not in user.raw
        shown = user.text.replace("\n", "")  # a long line wraps
        assert len(re.findall(r"\\x(1b|07)", shown)) == 40


def test_a_terminal_that_can_t_move_its_cursor(folder: Path, tmp_path: Path) -> None:
    asked = ["inference", "--model", str(folder), "--chat", "--max-tokens", "5"]
    with Terminal(asked, {"XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"}) as user:
        user.until(lambda: "/help" in user.text)
        user.child.send("hi\r")
        user.until(lambda: "context" in user.text)
        user.child.send("\x04")
        assert user.end() == 0
        assert b"\x1b[1A" not in user.raw


# In a pipe.


def test_a_turn_a_line(piped: Any) -> None:
    code, out, err = piped("hello\n\n  \nagain\n")
    assert code == 0 and "\x1b" not in out
    assert err.count("; read ") == 2
    code, alone, _ = piped("hello\n", "--quiet")
    assert code == 0 and out.startswith(alone) and len(out) > len(alone)
    code, quiet, err = piped("hello\nagain", "--quiet")
    assert (code, quiet, err) == (0, out, "")


def test_an_object_a_turn(piped: Any) -> None:
    code, out, err = piped("hello\nagain\n/retry\n/stats\n", "--json", "--quiet")
    lines: Lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(lines) == 3
    usage = [line["usage"] for line in lines]
    assert usage[0]["cached_tokens"] == 0
    assert usage[1]["cached_tokens"] >= usage[0]["prompt_tokens"]
    assert usage[2]["cached_tokens"] == usage[2]["prompt_tokens"] - 1
    assert lines[1]["text"] == lines[2]["text"]  # at temperature 0
    assert {"finish_reason", "timings", "device", "dtype", "model"} <= lines[0].keys()
    assert "answers: 3" in err and "turns: 2" in err
    _, text, _ = piped("hello\nagain\n/retry\n", "--quiet")
    assert text == "".join(f"{line['text']}\n" for line in lines)


def test_every_command(piped: Any, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    script = f"""/help
/system be brief
//etc is a folder
/set
/set temperature
/set stop ["a", "b"]
/set top-p 0.5
/show
/save {file}
/undo
/edit new words
/clear
/show
/load {file}
/system -
/system
/exit
never said
"""
    code, out, err = piped(script.replace("/edit new words\n", "x\n/edit new words\n"), "--quiet")
    assert code == 0, err
    assert out.count("\n") >= 3
    assert "/retry" in err and "answer the last turn anew" in err
    assert "temperature = 0.0" in err and "top_p = 0.5" in err and 'stop = ["a", "b"]' in err
    assert "--- system\nbe brief\n--- user\n/etc is a folder\n--- assistant\n" in err
    assert "nothing was said" not in err  # the system message stays when all else is cleared
    assert err.rstrip().endswith("no system message")
    found = json.loads(file.read_text())
    assert found["generate"] == {"stop": ["a", "b"], "top_p": 0.5}
    assert said(file) == ["/etc is a folder"]
    assert found["format"] == "mlx-ferry chat"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/hlep", 'error: "/hlep": unknown command; did you mean /help?'),
        ("/undo", "error: chat: nothing was said yet"),
        ("/retry", "error: chat: nothing was said yet"),
        ("/edit x", "error: chat: nothing was said yet"),
        ("/copy", "error: /copy: there is no answer yet"),
        ("/clear all", "error: /clear: takes nothing after it"),
        ("/save", "error: /save: needs a file"),
        ("/load /nowhere/at/all", "error: /nowhere/at/all"),
        ("/save /nowhere/at/all", "error: "),
        ("/save a\0b", "error: "),
        ("/load ~nobody-of-this-name/x", "error: "),
        ("/set temprature 1", 'error: /set "temprature": is nothing that a chat can set; did you'),
        ("/set system x", 'error: /set "system": is nothing that a chat can set; use /system'),
        ("/set n 2", 'error: /set "n": is nothing that a chat can set'),
        ("/set temperature hot", "error: /set temperature: "),
        ("/set temperature -1", "error: /set temperature: "),
        ("/set stop [", "error: /set stop: "),
        ("/set min_tokens 900", "error: min_tokens: 900 is more than max_tokens, which is 8"),
    ],
)
def test_what_can_t_be_done_ends_a_script(line: str, told: str, piped: Any) -> None:
    code, out, err = piped(f"{line}\nhello\n", "--quiet")
    assert code in (1, 2) and out == ""
    assert err.startswith(told) and err.count("\n") == 1


def test_text_that_is_none(piped: Any) -> None:
    code, out, err = piped(b"hello\n\xff\n", "--quiet")
    assert code == 1 and out.count("\n") >= 1
    assert err == "error: stdin:2: is not valid Unicode (byte 1); save it as UTF-8\n"


def test_a_chat_beyond_the_context(piped: Any) -> None:
    code, _, err = piped("hello\nagain\n", "--quiet", "--set", "memory.context=50")
    assert code == 2
    assert "prompt tokens and max_tokens 8 are beyond the context of 50" in err
    assert "/undo" in err and "/clear" in err and "--context" in err


def test_a_session_with_its_cache_opens_without_being_read(piped: Any, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    cache = Path(f"{file}.kv.safetensors")
    flags = ("--session", file, "--json", "--quiet")
    assert piped("hello\nagain\n", *flags, "--save-cache")[0] == 0
    assert cache.is_file() and len(messages(file)) == 4
    kept = file.read_bytes(), cache.read_bytes()

    def turn(*more: str) -> dict[str, Any]:
        file.write_bytes(kept[0])
        code, out, err = piped("more\n", *flags, *more)
        assert code == 0, err
        made: dict[str, Any] = json.loads(out)
        return made

    with_cache = turn()
    assert len(messages(file)) == 6
    cache.unlink()
    without = turn()
    assert without["usage"]["cached_tokens"] == 0
    assert with_cache["usage"]["cached_tokens"] > with_cache["usage"]["prompt_tokens"] / 2
    assert with_cache["text"] == without["text"]

    # One of another kind is left aside, with a note.
    cache.write_bytes(kept[1])
    file.write_bytes(kept[0])
    code, out, err = piped("more\n", *flags[:-1], "--set", "memory.kv_bits=8")
    assert code == 0 and json.loads(out)["usage"]["cached_tokens"] == 0
    assert "the cache is left aside" in err and "is of another kv_bits" in err
    # So is one whose file was cut.
    cache.write_bytes(kept[1][:-5])
    assert turn()["usage"]["cached_tokens"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, cache.name]


def test_nothing_but_a_chat_is_written_over(piped: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    code, _, err = piped(f"hello\n/save {file}\n", "--quiet")
    assert code == 1 and "is there, and is no saved chat; give another name" in err
    assert piped("hello\n", "--session", file)[0] == 1
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"version": True},
        {"more": 1},
        {"model": 5},
        {"generate": []},
        {"generate": {"n": 2}},
        {"generate": {"nonsense": 2}},
        {"generate": {"temperature": "hot"}},
        {"generate": {"min_tokens": 900}},
        {"messages": None},
        {"messages": {}},
        {"messages": ["x"]},
        {"messages": [{"role": "user", "content": "x", "more": 1}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}] * 2},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
    ],
)
def test_a_file_that_is_no_chat_is_refused(
    change: dict[str, Any], piped: Any, tmp_path: Path
) -> None:
    file = tmp_path / "chat.json"
    whole = {"format": "mlx-ferry chat", "version": 1, "model": "m", "generate": {}, "messages": []}
    file.write_text(json.dumps(whole))
    assert piped("/show\n", "--session", file)[0] == 0
    file.write_text(json.dumps(whole | change))
    before = file.read_bytes()
    code, out, err = piped("hello\n", "--session", file, "--quiet")
    assert code in (1, 2) and out == "" and err.count("\n") == 1 and err.startswith("error: ")
    assert file.read_bytes() == before


def test_modes_that_exclude_each_other(piped: Any, tmp_path: Path) -> None:
    for other in (["--batch", "rows"], ["--score"]):
        code, _, err = piped("", *other)
        assert code == 2 and err.startswith(f"error: --chat: does not go with {other[0]}")


def test_a_model_without_a_template_can_t_chat(piped: Any, tmp_path: Path) -> None:
    model = write_mlx(tmp_path / "model")
    edit_json(model / "tokenizer_config.json", chat_template=None)
    code, _, err = piped("hello\n", model=model)
    assert code == 1 or code == 2
    assert "has no chat template; set tokenizer.chat_template" in err


def test_thoughts_are_kept_apart(piped: Any, tmp_path: Path) -> None:
    """Within the prompt the section is opened; a budget closes it."""
    model = write_mlx(tmp_path / "model", max_position_embeddings=LENGTH)
    given = json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    template = given.replace("assistant\n{% endif", "assistant\n<think>\n{# </think> #}{% endif")
    assert template != given
    edit_json(model / "tokenizer_config.json", chat_template=template)
    file = tmp_path / "chat.json"
    flags = ("--thinking-budget", "4", "--max-tokens", "24", "--session", file, "--ignore-eos")
    code, out, err = piped("hello\nagain\n", *flags, "--json", "--quiet", model=model)
    assert code == 0, err
    lines: Lines = [json.loads(line) for line in out.splitlines()]
    assert all(line["thinking"] and line["text"] for line in lines)
    told = json.loads(file.read_text())["messages"]
    assert [m["content"] for m in told] == ["hello", lines[0]["text"], "again", lines[1]["text"]]
    assert [m.get("thinking") for m in told[1::2]] == [line["thinking"] for line in lines]
    # The thought is not in the history, so that all up to it is what was kept.
    assert 0 < lines[1]["usage"]["cached_tokens"] < lines[0]["usage"]["prompt_tokens"]
    file.unlink()
    code, out, err = piped("hello\nagain\n", *flags, "--thinking", "show", model=model)
    assert out == "".join(f"{line['text']}\n" for line in lines)
    assert all(line["thinking"] in err for line in lines)
    code, again, err = piped("more\n", *flags, "--json", "--quiet", model=model)
    assert code == 0 and json.loads(again)["usage"]["prompt_tokens"] > 60  # the file is read
