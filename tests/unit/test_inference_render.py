from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from configs.errors import FerryError, GenerationError, RequestError
from inference.events import Delta, Event, Failed, Finished, Started, Timings, Usage
from inference.render import choose
from inference.statistics import Run, describe
from inference.terminal import Output, neutralize

RUN = Run("folder", "cpu", "float32", 0.5, 2_000_000)
DONE = Finished("a", "stop", Usage(3, 0, 5), Timings(0.2, 15.0, 40.0))
ANSWER = (Started("a", 3), Delta("a", "héllo "), Delta("a", "wörld 🙂"), DONE)
FLAGS = [(stream, as_json) for stream in (False, True) for as_json in (False, True)]


def shown(events: tuple[Event, ...], *, stream: bool, as_json: bool, terminal: bool = False) -> str:
    stdout = io.BytesIO()
    choose(stream=stream, as_json=as_json)(iter(events), Output(stdout, terminal), RUN)
    return stdout.getvalue().decode()


def test_streamed_and_plain_text_are_the_same_bytes() -> None:
    plain = shown(ANSWER, stream=False, as_json=False)
    assert plain == shown(ANSWER, stream=True, as_json=False) == "héllo wörld 🙂\n"


def test_json_has_the_fields_of_the_design() -> None:
    made = json.loads(shown(ANSWER, stream=False, as_json=True))
    assert made["text"] == "héllo wörld 🙂" and made["finish_reason"] == "stop"
    assert made["usage"] == {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 5}
    assert set(made["timings"]) == {
        "load_seconds",
        "first_token_seconds",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "peak_memory_bytes",
    }
    assert (made["device"], made["dtype"], made["model"]) == ("cpu", "float32", "folder")
    assert "error" not in made


def test_json_lines_are_the_events() -> None:
    lines = [json.loads(line) for line in shown(ANSWER, stream=True, as_json=True).splitlines()]
    assert [line["type"] for line in lines] == ["started", "delta", "delta", "finished"]
    assert "".join(line.get("text", "") for line in lines) == "héllo wörld 🙂"
    assert lines[-1]["finish_reason"] == "stop" and lines[-1]["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(("stream", "as_json"), FLAGS)
def test_an_answer_that_broke_off_keeps_its_text(stream: bool, as_json: bool) -> None:
    error = GenerationError("model", "produced NaN at token 6")
    broken = Finished("a", "error", DONE.usage, DONE.timings, error)
    text = shown((*ANSWER[:-1], broken), stream=stream, as_json=as_json)
    if as_json:
        assert json.loads(text.splitlines()[-1])["error"]["type"] == "GenerationError"
        assert json.loads(text.splitlines()[-1])["finish_reason"] == "error"
    else:
        assert text == "héllo wörld 🙂\n"


@pytest.mark.parametrize(("stream", "as_json"), FLAGS)
def test_a_failed_request_is_raised(stream: bool, as_json: bool) -> None:
    failed = (Started("a", 3), Failed("a", RequestError("--prompt", "is bad")))
    with pytest.raises(FerryError, match="is bad"):
        shown(failed, stream=stream, as_json=as_json)


@pytest.mark.parametrize("stream", [False, True])
def test_an_interrupt_keeps_the_text_so_far(stream: bool) -> None:
    def interrupted() -> Iterator[Event]:
        yield from ANSWER[:2]
        raise KeyboardInterrupt

    stdout = io.BytesIO()
    render = choose(stream=stream, as_json=False)
    with pytest.raises(KeyboardInterrupt):
        render(interrupted(), Output(stdout, False), RUN)
    assert stdout.getvalue().decode() == "héllo \n"


ESCAPES = "\x1b]0;title\x07\x1b[2J a\tb\nc\r\x9b31m\x7f é🙂👩‍👧"


@pytest.mark.parametrize(("stream", "as_json"), FLAGS)
def test_escape_sequences_do_not_reach_a_terminal(stream: bool, as_json: bool) -> None:
    events = (Started("a", 3), *(Delta("a", char) for char in ESCAPES), DONE)
    text = shown(events, stream=stream, as_json=as_json, terminal=True)
    assert not set(text) & set("\x1b\x07\r\x9b\x7f")
    piped = shown(events, stream=stream, as_json=False, terminal=False)
    assert piped == ESCAPES + "\n"


def test_what_is_harmless_is_shown_as_it_is() -> None:
    assert neutralize("a\tb\n é🙂👩‍👧 你好") == "a\tb\n é🙂👩‍👧 你好"
    assert neutralize("\x1b[31m") == "\\x1b[31m"


def test_statistics_say_what_it_ran_on() -> None:
    line = describe(DONE, RUN, 7)
    for part in ("cpu, float32", "2 MB in 0.50 s", "prompt 3 tokens", "40.0/s", "seed 7"):
        assert part in line
    assert "first token" not in describe(
        Finished("a", "error", DONE.usage, Timings(None, None, None)), RUN, None
    )
