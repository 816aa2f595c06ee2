"""The renderers: one stream of events as text, streamed text, JSON and JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from configs.errors import FerryError, GenerationError, RequestError
from inference.events import Delta, Event, Failed, Finished, Started, Timings, Token, Usage
from inference.render import Asked, choose
from inference.request import GenerationOptions, SamplingOptions, TokenRequest
from inference.statistics import Run, describe, describe_several
from inference.terminal import Output, neutralize

RUN = Run("folder", "cpu", "float32", 0.5, 2_000_000)
DONE = Finished("a", "stop", Usage(3, 0, 5), Timings(0.2, 15.0, 40.0))
ANSWER = (Started("a", 3), Delta("a", "héllo "), Delta("a", "wörld 🙂"), DONE)
FLAGS = [(stream, as_json) for stream in (False, True) for as_json in (False, True)]


def asked(n: int = 1, logprobs: int | None = None) -> Asked:
    options = GenerationOptions(SamplingOptions(seed=7), logprobs=logprobs, n=n)
    requests = TokenRequest("a", (1, 2, 3), options).answers()
    return Asked(RUN, requests, lambda token: {"id": token, "text": f"<{token}>"}, n > 1)


def shown(
    events: Sequence[Event],
    *,
    stream: bool = False,
    as_json: bool = False,
    terminal: bool = False,
    about: Asked | None = None,
) -> str:
    stdout = io.BytesIO()
    choose(stream=stream, as_json=as_json)(iter(events), Output(stdout, terminal), about or asked())
    return stdout.getvalue().decode()


def test_streamed_and_plain_text_are_the_same_bytes() -> None:
    assert shown(ANSWER) == shown(ANSWER, stream=True) == "héllo wörld 🙂\n"


def test_json_has_the_fields_of_the_design() -> None:
    made = json.loads(shown(ANSWER, as_json=True))
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
    assert made["seed"] == 7 and not {"error", "choices", "logprobs"} & set(made)


def test_json_lines_are_the_events() -> None:
    lines = [json.loads(line) for line in shown(ANSWER, stream=True, as_json=True).splitlines()]
    assert [line["type"] for line in lines] == ["started", "delta", "delta", "finished"]
    assert "".join(line.get("text", "") for line in lines) == "héllo wörld 🙂"
    assert lines[-1]["finish_reason"] == "stop" and lines[-1]["usage"]["completion_tokens"] == 5
    assert not any({"choice", "logprobs"} & set(line) for line in lines)


MEASURED = (
    Started("a", 3),
    Token("a", 10, -0.5, ((11, -0.25), (10, -0.5))),
    Token("a", 12, -1.0),
    Delta("a", "é"),
    Token("a", 13, -1.5),
    Delta("a", "!"),
    Token("a", 2, -2.0),
    DONE,
)
FIRST = {
    "id": 10,
    "text": "<10>",
    "logprob": -0.5,
    "top": [
        {"id": 11, "text": "<11>", "logprob": -0.25},
        {"id": 10, "text": "<10>", "logprob": -0.5},
    ],
}


def test_logprobs_are_of_every_token_in_json() -> None:
    made = json.loads(shown(MEASURED, as_json=True, about=asked(logprobs=2)))
    assert made["logprobs"][0] == FIRST
    assert [token["id"] for token in made["logprobs"]] == [10, 12, 13, 2]
    assert json.loads(shown(ANSWER, as_json=True, about=asked(logprobs=0)))["logprobs"] == []


def test_logprobs_come_with_the_text_that_they_gave_in_json_lines() -> None:
    text = shown(MEASURED, stream=True, as_json=True, about=asked(logprobs=2))
    deltas = [line for line in map(json.loads, text.splitlines()) if line["type"] == "delta"]
    told = [(line["text"], [token["id"] for token in line["logprobs"]]) for line in deltas]
    assert told == [("é", [10, 12]), ("!", [13]), ("", [2])]
    assert deltas[0]["logprobs"][0] == FIRST


def several(*orders: int, ends: dict[int, Event] | None = None) -> list[Event]:
    """Events of three answers, which give their pieces in this order."""
    names = ["a", "a.1", "a.2"]
    events: list[Event] = [Started(name, 3) for name in names]
    events += [Delta(names[each], f"{each}") for each in orders]
    for each in (2, 0, 1):
        finished = Finished(names[each], "stop", Usage(3, 0, each), DONE.timings)
        events.append((ends or {}).get(each, finished))
    return events


def test_several_answers_as_text_are_in_order_whatever_is_first() -> None:
    text = shown(several(1, 0, 2, 1, 0), about=asked(3))
    assert text == "00\n--- 2/3\n11\n--- 3/3\n2\n"


def test_several_answers_in_json_are_choices() -> None:
    made = json.loads(shown(several(1, 0, 2, 1, 0), as_json=True, about=asked(3)))
    assert [choice["index"] for choice in made["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in made["choices"]] == ["00", "11", "2"]
    assert [choice["usage"]["completion_tokens"] for choice in made["choices"]] == [0, 1, 2]
    assert len({choice["seed"] for choice in made["choices"]}) == 3
    assert (made["text"], made["seed"]) == ("00", 7)
    assert "model" in made and "model" not in made["choices"][0]


def test_several_answers_in_json_lines_name_their_choice() -> None:
    text = shown(several(1, 0, 2, 1, 0), stream=True, as_json=True, about=asked(3))
    lines = [json.loads(line) for line in text.splitlines()]
    for choice, expected in enumerate(["00", "11", "2"]):
        own = [line for line in lines if line["choice"] == choice]
        assert "".join(line.get("text", "") for line in own) == expected
        assert (own[0]["type"], own[-1]["type"]) == ("started", "finished")


@pytest.mark.parametrize(("stream", "as_json"), [(False, False), (False, True), (True, True)])
def test_one_answer_that_fails_leaves_the_others(stream: bool, as_json: bool) -> None:
    stdout = io.BytesIO()
    events = several(0, 1, 2, ends={1: Failed("a.1", RequestError("--prompt", "is bad"))})
    with pytest.raises(FerryError, match="is bad"):
        choose(stream=stream, as_json=as_json)(iter(events), Output(stdout, False), asked(3))
    lines = stdout.getvalue().decode().splitlines()
    if not as_json:
        assert lines == ["0", "--- 2/3", "1", "--- 3/3", "2"]
    elif stream:
        assert [json.loads(line)["type"] for line in lines].count("finished") == 2
    else:
        choices = json.loads(lines[0])["choices"]
        assert [choice.get("text") for choice in choices] == ["0", None, "2"]
        assert choices[1]["error"] == {"message": "--prompt: is bad", "type": "RequestError"}


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


@pytest.mark.parametrize(
    ("stream", "count", "text"),
    [(False, 1, "héllo \n"), (True, 1, "héllo \n"), (False, 3, "00\n--- 2/3\n1\n")],
)
def test_an_interrupt_keeps_the_text_so_far(stream: bool, count: int, text: str) -> None:
    def interrupted() -> Iterator[Event]:
        yield from ANSWER[:2] if count == 1 else several(0, 1, 0)[:6]
        raise KeyboardInterrupt

    stdout = io.BytesIO()
    render = choose(stream=stream, as_json=False)
    with pytest.raises(KeyboardInterrupt):
        render(interrupted(), Output(stdout, False), asked(count))
    assert stdout.getvalue().decode() == text


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


@pytest.mark.parametrize(("seed", "told"), [(7, "seed 7"), (None, "")])
def test_statistics_of_several_answers(seed: Any, told: str) -> None:
    line = describe_several([DONE, DONE], RUN, seed)
    for part in ("cpu, float32", "prompt 3 tokens", "2 answers of 10 tokens", told):
        assert part in line
    assert told or "seed" not in line
