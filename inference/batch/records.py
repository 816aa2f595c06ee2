"""The answers to one row, and the line that tells them.

Owns the two forms of lines out: our own, and OpenAI's for OpenAI's lines. Knows nothing
of files or engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import FerryError
from inference.batch.fields import Form
from inference.events import Event
from inference.render import Answer
from inference.request import TokenRequest
from inference.statistics import Run, error_fields


@dataclass
class Row:
    """A row under way.

    Attributes:
        index: Its place in the input, from 0.
        id: What it calls itself.
        form: Whose line it is.
        answers: One for each that it asks for.
        several: Whether it said how many it wants.
    """

    index: int
    id: str | int | None
    form: Form
    answers: list[Answer]
    several: bool

    @property
    def over(self) -> bool:
        """Whether every answer has ended."""
        return all(answer.over for answer in self.answers)

    @property
    def error(self) -> FerryError | None:
        """The first error of its answers."""
        for answer in self.answers:
            if answer.error is not None:
                return answer.error
            if answer.finished is not None and answer.finished.error is not None:
                return answer.finished.error
        return None

    @property
    def unread_calls(self) -> list[str]:
        """What is wrong with the calls of tools that can't be read."""
        return [error["message"] for answer in self.answers for error in answer.calls.errors]

    def take(self, event: Event) -> None:
        """Take an event of one of its answers."""
        for answer in self.answers:
            if answer.request.id == event.request:
                answer.take(event)

    def record(self, run: Run) -> dict[str, Any]:
        """The line of a row that is over."""
        if any(answer.error is not None for answer in self.answers):
            error = self.error
            if error is not None:
                return failed(self.index, self.id, self.form, error)
        if self.form != "own":
            return _openai(self, run)
        choices = [_fields(answer, run) for answer in self.answers]
        made = {"index": self.index, "id": self.id, **choices[0]}
        if self.several:
            made["choices"] = [{"index": at, **choice} for at, choice in enumerate(choices)]
        return made


def make_row(
    index: int,
    id: str | int | None,
    form: Form,
    requests: tuple[TokenRequest, ...],
    token_fields: Callable[[int], dict[str, Any]] | None,
    *,
    several: bool,
) -> Row:
    """A row whose requests are about to be run."""
    answers = [Answer(request, token_fields) for request in requests]
    return Row(index, id, form, answers, several)


def failed(index: int, id: str | int | None, form: Form, error: FerryError) -> dict[str, Any]:
    """The line of a row that could not be answered."""
    if form == "own":
        return {"index": index, "id": id, "error": error_fields(error)}
    fields = error_fields(error)
    told = {"code": fields["type"], "message": fields["message"]}
    return {"id": f"batch_req_{index}", "custom_id": id, "response": None, "error": told}


def _fields(answer: Answer, run: Run) -> dict[str, Any]:
    made = answer.fields(run)
    made.pop("timings", None)
    return made


def _openai(row: Row, run: Run) -> dict[str, Any]:
    chat = row.form == "chat"
    usages = [answer.finished.usage for answer in row.answers if answer.finished is not None]
    produced = sum(usage.completion_tokens for usage in usages)
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{row.index}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": run.model,
        "choices": [_choice(at, answer, chat) for at, answer in enumerate(row.answers)],
        "usage": {
            "prompt_tokens": usages[0].prompt_tokens,
            "completion_tokens": produced,
            "total_tokens": usages[0].prompt_tokens + produced,
            "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens},
        },
    }
    error = None
    if (found := row.error) is not None:
        error = {"code": type(found).__name__, "message": str(found)}
    name = f"batch_req_{row.index}"
    response = {"status_code": 200, "request_id": name, "body": body}
    return {"id": name, "custom_id": row.id, "response": response, "error": error}


def _choice(at: int, answer: Answer, chat: bool) -> dict[str, Any]:
    finished = answer.finished
    text = "".join(answer.pieces)
    logprobs = None
    if answer.request.options.logprobs is not None:
        logprobs = _chat_logprobs(answer.tokens) if chat else _logprobs(answer.tokens)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if answer.thoughts and answer.request.options.thinking != "hide":
        message["reasoning_content"] = answer.thinking
    message |= answer.calls.fields() if answer.calls.read or answer.calls.errors else {}
    said = {"message": message} if chat else {"text": text}
    reason: str | None = None if finished is None else finished.reason
    if answer.calls.read and reason == "stop":
        reason = "tool_calls"
    return {"index": at, **said, "logprobs": logprobs, "finish_reason": reason}


def _chat_logprobs(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "content": [
            {**_openai_token(token), "top_logprobs": [_openai_token(each) for each in token["top"]]}
            for token in tokens
        ]
    }


def _openai_token(token: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": token["text"], "logprob": token["logprob"], "bytes": token["bytes"]}


def _logprobs(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tokens": [token["text"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {each["text"]: each["logprob"] for each in token["top"]} for token in tokens
        ],
    }
