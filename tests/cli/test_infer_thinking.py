"""`infer` with models that think and that call tools, taught what to say."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.cli import main
from inference.request import Message
from tests.factories_talk import write_talker

SAID = "<think>\nI think, 好!\n</think>\n\nHello wörld"
TOOLS = [{"type": "function", "function": {"name": "add"}}]
GOOD = 'I call.\n<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'
BAD = 'So:<tool_call>{"name": add}</tool_call>'
Runs = Callable[..., Any]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lessons = [("hi", {}, SAID), ("hi", {"thinking": "off"}, "At once")]
    return write_talker(tmp_path_factory.mktemp("thinker"), lessons, num_hidden_layers=1)


@pytest.fixture(scope="module", params=["good", "bad"])
def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that calls a tool, well or badly; `good` is in its name if it does well."""
    folder = tmp_path_factory.mktemp(f"caller-{request.param}")
    lesson = ("go", {"tools": TOOLS}, GOOD if request.param == "good" else BAD)
    write_talker(folder, [lesson], num_hidden_layers=1)
    (folder / "tools.json").write_text(json.dumps(TOOLS))
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Runs:
    def run(folder: Path, *flags: str, code: int = 0) -> tuple[str, str]:
        assert main(["--model", str(folder), "--temperature", "0", *flags]) == code
        out, err = capfd.readouterr()
        kept = [line for line in err.splitlines(keepends=True) if not line.startswith("cpu, ")]
        return out, "".join(kept)

    return run


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Says what the user of a chat writes into a pipe."""

    def say(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    return say


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_thoughts_go_to_stderr_and_the_answer_to_stdout(
    thinker: Path, run: Runs, stream: list[str]
) -> None:
    ask = ["--prompt", "hi", *stream]
    assert run(thinker, *ask) == ("Hello wörld\n", "I think, 好!\n")
    assert run(thinker, *ask, "--thinking", "show", "--quiet") == (
        "Hello wörld\n",
        "I think, 好!\n",
    )
    assert run(thinker, *ask, "--thinking", "hide") == ("Hello wörld\n", "")
    assert run(thinker, *ask, "--quiet") == ("Hello wörld\n", "")
    out, err = run(thinker, *ask, "--thinking", "fold")
    assert out == "Hello wörld\n"
    assert err.startswith("thought for ") and err.endswith(" s: 12 characters\n")


def test_json_tells_thoughts_beside_the_text(thinker: Path, run: Runs) -> None:
    found = json.loads(run(thinker, "--prompt", "hi", "--json")[0])
    assert (found["text"], found["thinking"]) == ("Hello wörld", "I think, 好!")
    found = json.loads(run(thinker, "--prompt", "hi", "--json", "--thinking", "fold")[0])
    assert found["thinking"] == "I think, 好!"
    found = json.loads(run(thinker, "--prompt", "hi", "--json", "--thinking", "hide")[0])
    assert found["text"] == "Hello wörld" and "thinking" not in found
    lines = run(thinker, "--prompt", "hi", "--json", "--stream")[0].splitlines()
    deltas = [line for line in map(json.loads, lines) if line["type"] == "delta"]
    assert "".join(line["text"] for line in deltas) == "Hello wörld"
    assert "".join(line.get("thinking", "") for line in deltas) == "I think, 好!\n"


def test_several_answers_each_have_their_thoughts(thinker: Path, run: Runs) -> None:
    assert run(thinker, "--prompt", "hi", "-n", "2") == (
        "Hello wörld\n--- 2/2\nHello wörld\n",
        "I think, 好!\n" * 2,
    )
    found = json.loads(run(thinker, "--prompt", "hi", "-n", "2", "--json")[0])
    assert [choice["thinking"] for choice in found["choices"]] == ["I think, 好!"] * 2


def test_rows_of_a_batch_think_as_they_are_told(thinker: Path, run: Runs, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": "hi"},
        {"prompt": "hi", "thinking": "hide"},
        {"prompt": "hi", "thinking_budget": 0, "max_tokens": 2},
        {"prompt": "hi", "raw": True, "thinking": "hide"},
        {"prompt": "hi", "raw": True, "max_tokens": 2},
        {"custom_id": "o", "body": {"messages": [{"role": "user", "content": "hi"}]}},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)))
    out, _ = run(thinker, "--batch", str(tmp_path / "rows.jsonl"), code=1)
    found = [json.loads(line) for line in out.splitlines()]
    assert (found[0]["text"], found[0]["thinking"]) == ("Hello wörld", "I think, 好!")
    assert found[1]["text"] == "Hello wörld" and "thinking" not in found[1]
    assert (found[2]["text"], found[2]["thinking"]) == ("", "")
    assert found[3]["error"]["message"].startswith("thinking: is the chat template's")
    assert found[4]["finish_reason"] == "length" and "thinking" not in found[4]
    message = found[5]["response"]["body"]["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": "Hello wörld",
        "reasoning_content": "I think, 好!",
    }


@pytest.mark.parametrize("budget", ["1", "4"])
def test_a_budget_ends_the_thought(thinker: Path, run: Runs, budget: str) -> None:
    flags = ["--prompt", "hi", "--thinking-budget", budget, "--json", "--logprobs", "0"]
    found = json.loads(run(thinker, *flags)[0])
    texts = [token["text"] for token in found["logprobs"]]
    assert texts.index("</think>") == int(budget) + 1
    assert found["thinking"].startswith("".join(texts[1 : int(budget) + 1]).strip())
    assert "</think>" not in found["text"]
    # A budget that is not used up changes nothing.
    whole = json.loads(run(thinker, *flags[:3], "200", *flags[4:])[0])
    assert (whole["text"], whole["thinking"]) == ("Hello wörld", "I think, 好!")


def test_thinking_may_be_turned_off_by_the_template(thinker: Path, run: Runs) -> None:
    on = json.loads(run(thinker, "--prompt", "hi", "--json")[0])
    off = json.loads(run(thinker, "--prompt", "hi", "--json", "--thinking", "off")[0])
    more = off["usage"]["prompt_tokens"] - on["usage"]["prompt_tokens"]
    assert more > 0  # the section that the template writes, and closes
    assert (off["text"], off["thinking"]) == ("At once", "")


def test_a_form_holds_what_is_said_after_the_thought(thinker: Path, run: Runs) -> None:
    flags = ["--prompt", "hi", "--json", "--choice", "yes", "--choice", "nö"]
    found = json.loads(run(thinker, *flags)[0])
    assert found["text"] in ("yes", "nö") and found["thinking"] == "I think, 好!"
    found = json.loads(run(thinker, *flags, "--thinking-budget", "2")[0])
    assert found["text"] in ("yes", "nö") and len(found["thinking"]) < 12
    found = json.loads(run(thinker, *flags, "--thinking", "off")[0])
    assert found["text"] in ("yes", "nö") and found["thinking"] == ""
    found = json.loads(run(thinker, *flags, "--max-tokens", "6")[0])
    assert (found["text"], found["finish_reason"]) == ("", "length")


def test_what_a_model_can_t_do_is_refused_with_the_reason(
    run: Runs, tmp_path: Path, thinker: Path
) -> None:
    plain = write_talker(tmp_path / "plain", marks=(), template="{{ messages[0].content }}")
    told = run(plain, "--prompt", "hi", "--thinking", "off", code=2)[1]
    assert told.startswith("error: thinking: off: this model's chat template has no switch")
    told = run(plain, "--prompt", "hi", "--thinking-budget", "3", code=2)[1]
    assert told.startswith("error: thinking_budget: this model has no thinking sections")
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    told = run(plain, "--prompt", "hi", "--tools", str(tmp_path / "tools.json"), code=2)[1]
    assert told.startswith("error: tools: this model's chat template takes none")
    for flags in (["--thinking", "hide"], ["--tools", str(tmp_path / "tools.json")]):
        told = run(thinker, "--prompt", "hi", "--raw", *flags, code=2)[1]
        assert told.startswith(f"error: {flags[0]}: does not go with --raw")
    (tmp_path / "tools.json").write_text('[{"name": "add"}]')
    told = run(thinker, "--prompt", "hi", "--tools", str(tmp_path / "tools.json"), code=2)[1]
    assert told.startswith("error: tools: tool 1 is not of OpenAI's form")


def test_a_chat_is_told_what_a_tool_gave(
    tmp_path: Path, run: Runs, said: Callable[[str], None]
) -> None:
    call = {"name": "add", "arguments": {"a": 3}}
    twice = f"<tool_call>\n{json.dumps(call)}\n</tool_call>" * 2
    calls = tuple({"type": "function", "function": call} for _ in range(2))
    results = [Message("tool", each, name="add") for each in ("7", "8")]
    history = [Message("user", "go"), Message("assistant", "", tool_calls=calls), *results]
    lessons = [("go", {"tools": TOOLS}, twice), (history, {"tools": TOOLS}, "It is 15")]
    folder = write_talker(tmp_path / "model", lessons, num_hidden_layers=1)
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    file = tmp_path / "chat.json"
    flags = ["--chat", "--tools", str(tmp_path / "tools.json"), "--session", str(file), "--quiet"]
    said("go\n/result 7\n")
    _, err = run(folder, *flags)
    assert err == "results to come: 1, add next\n"
    said("and?\n")
    assert "/result gives that of the next call" in run(folder, *flags, code=2)[1]
    said("/result 8\n/retry\n")
    assert run(folder, *flags)[0] == "It is 15\nIt is 15\n"
    messages = json.loads(file.read_text())["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [(each["name"], each["content"]) for each in messages[2:4]] == [
        ("add", "7"),
        ("add", "8"),
    ]
    assert messages[2]["tool_call_id"] == messages[1]["tool_calls"][0]["id"]
    said("/result 9\n")
    assert "the last answer calls no tool" in run(folder, *flags, code=2)[1]
    said("/undo\n")
    run(folder, *flags)
    assert json.loads(file.read_text())["messages"] == []


def test_calls_of_tools_are_parsed_or_told(caller: Path, run: Runs) -> None:
    flags = ["--prompt", "go", "--tools", str(caller / "tools.json")]
    good = "good" in str(caller)
    text, err = run(caller, *flags)
    if good:
        assert (text, err) == (f"{GOOD}\n", "")
    else:
        assert text == f"{BAD}\n"
        assert err.startswith("warning: tool call: can't be read") and len(err.splitlines()) == 1
    assert run(caller, *flags, "--stream") == (text, err)
    out, err = run(caller, *flags, "--json")
    found = json.loads(out)
    lines = run(caller, *flags, "--json", "--stream")[0].splitlines()
    last = json.loads(lines[-1])
    if good:
        call = {"name": "add", "arguments": '{"a": 3}'}
        calls = [{"id": "call_0", "type": "function", "function": call}]
        assert found["text"] == "I call.\n" and found["tool_calls"] == calls
        assert "tool_call_error" not in found and err == ""
        assert last["tool_calls"] == calls
    else:
        assert found["text"] == "So:" and found["tool_calls"] == []
        assert found["tool_call_error"]["text"] == BAD.removeprefix("So:")
        assert "warning: tool call: can't be read" in err
        assert last["tool_call_error"] == found["tool_call_error"]


def test_calls_in_a_batch(caller: Path, run: Runs, tmp_path: Path) -> None:
    good = "good" in str(caller)
    body = {"messages": [{"role": "user", "content": "go"}], "tools": TOOLS}
    asked = [
        {"prompt": "go", "tools": TOOLS},
        {"custom_id": "o", "body": {**body, "temperature": 0}},
        {"prompt": "go", "tools": []},
        {"prompt": "go", "tools": TOOLS, "regex": "a"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)))
    out, err = run(caller, "--batch", str(tmp_path / "rows.jsonl"), "--max-tokens", "60", code=1)
    found = [json.loads(line) for line in out.splitlines()]
    choice = found[1]["response"]["body"]["choices"][0]
    if good:
        assert found[0]["tool_calls"] == choice["message"]["tool_calls"]
        assert found[0]["tool_calls"][0]["function"]["name"] == "add"
        assert choice["finish_reason"] == "tool_calls"
    else:
        assert found[0]["tool_call_error"] == choice["message"]["tool_call_error"]
        assert choice["finish_reason"] == "stop"
        assert "warning: row 0: tool call: can't be read" in err
    assert "tool_calls" not in found[2]
    assert found[3]["error"]["message"].startswith("tools: does not go with regex")


def test_results_of_tools_and_old_thoughts_reach_the_template(run: Runs, tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 3}}}
    said = (
        Message("user", "add"),
        Message("assistant", "", thinking="well <think>", tool_calls=(call,)),
        Message("tool", "6 <|im_end|>", tool_call_id="c1", name="add"),
    )
    folder = write_talker(tmp_path / "m", [(said, {}, "It is 6.")], num_hidden_layers=1)
    written = {**call, "function": {"name": "add", "arguments": '{"a": 3}'}}
    messages = [
        {"role": "user", "content": "add"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "well <think>",
            "tool_calls": [written],
        },
        {"role": "tool", "content": "6 <|im_end|>", "tool_call_id": "c1", "name": "add"},
    ]
    bad = [{**messages[0], "tool_calls": [written]}]
    unparsed = [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
        }
    ]
    rows = [{"messages": messages}, {"messages": bad}, {"messages": unparsed}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out, _ = run(folder, "--batch", str(tmp_path / "rows.jsonl"), code=1)
    found = [json.loads(line) for line in out.splitlines()]
    assert found[0]["text"] == "It is 6."
    assert "has tool_calls, which only a message of assistant has" in found[1]["error"]["message"]
    assert "arguments are not JSON" in found[2]["error"]["message"]


def test_a_thought_is_dimmed_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from inference.thoughts import Thoughts

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    for mode, shown in (
        ("show", "\x1b[2mone\\x1btwo\n\x1b[0m"),
        ("hide", ""),
    ):
        screen = Terminal()
        thoughts = Thoughts(mode, screen)
        for text in ("one", "\x1btwo"):
            thoughts.push(text)
        thoughts.close()
        assert screen.getvalue() == shown
    screen = Terminal()
    thoughts = Thoughts("fold", screen)
    thoughts.push("abc")
    thoughts.close()
    assert screen.getvalue().startswith("\r\x1b[Kthinking: 3 characters\r\x1b[Kthought for")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Terminal()
    thoughts = Thoughts("show", screen)
    thoughts.push("abc\n")
    thoughts.close()
    assert screen.getvalue() == "abc\n"
