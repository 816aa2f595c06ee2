"""What one line of a batch may say: our own rows, and OpenAI's batch lines.

Owns the names of the fields and what they come to. A row takes every option of `[generate]`
under its key's name; an OpenAI body takes OpenAI's names for them. Knows nothing of files,
tokens or answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from configs.checks import InvalidValue, nearest, shown
from configs.errors import RequestError
from configs.keys import KEYS
from configs.schema import GenerateTable
from inference.request import Message

Form = Literal["own", "chat", "completion"]

_TABLE = "generate."
OPTIONS = frozenset(
    key.removeprefix(_TABLE) for key in KEYS if key.startswith(_TABLE) and key != f"{_TABLE}system"
)
_OWN = frozenset({"id", "prompt", "messages", "raw", "system"})
_URLS: Mapping[str, Form] = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}
# OpenAI's names of options, where they differ from ours.
_RENAMED = {"max_completion_tokens": "max_tokens"}
# Said in a request without a meaning for the answer's text.
_IGNORED = frozenset({"model", "user", "metadata", "store", "service_tier", "seed_source"})
# Allowed only with the value that asks for what is done anyway.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "stream": (False, None),
    "stream_options": (None,),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "echo": (False, None),
    "best_of": (1, None),
    "suffix": (None, ""),
}


@dataclass(frozen=True)
class Line:
    """What a line asks.

    Attributes:
        form: Whose line it is; answers go back in the same form.
        id: What the line calls itself, if it does.
        messages: A conversation; empty for a prompt.
        text: The prompt.
        raw: Go on with the prompt itself, without template.
        options: The options of its own, by their key's name.
    """

    form: Form
    id: str | int | None
    messages: tuple[Message, ...]
    text: str
    raw: bool
    options: Mapping[str, Any]

    def table(self, default: GenerateTable) -> GenerateTable:
        """The options in force: the line's own over the command's.

        Raises:
            RequestError: Values that don't go together.
        """
        try:
            return replace(default, **self.options)
        except InvalidValue as error:
            raise RequestError(".".join(map(str, error.path)), error.what, error.mend) from error


def read_line(value: Mapping[str, Any]) -> Line:
    """A parsed line as what it asks.

    Raises:
        RequestError: A field that is unknown, or has a value that it can't take.
    """
    return _openai(value) if "body" in value or "custom_id" in value else _own(value)


def line_id(value: object) -> str | int | None:
    """What a parsed line calls itself, even where the rest of it is wrong."""
    if not isinstance(value, dict):
        return None
    found = value.get("custom_id", value.get("id"))
    return found if isinstance(found, str | int) and not isinstance(found, bool) else None


def _own(value: Mapping[str, Any]) -> Line:
    _refuse_unknown(value, OPTIONS | _OWN)
    found = line_id(value)
    if value.get("id") is not None and found is None:
        raise RequestError("id", f"{shown(value['id'])} is neither text nor a number")
    if ("prompt" in value) == ("messages" in value):
        raise RequestError("row", "needs either prompt or messages", "give one of them")
    raw, system = value.get("raw", False), value.get("system")
    if not isinstance(raw, bool):
        raise RequestError("raw", f"{shown(raw)} is neither true nor false")
    if system is not None and not isinstance(system, str):
        raise RequestError("system", f"{shown(system)} is not text")
    options = {name: value[name] for name in OPTIONS & value.keys()}
    if "messages" in value:
        for field in ("raw", "system"):
            if value.get(field):
                raise RequestError(field, "does not go with messages", "leave it out")
        messages = _messages(value["messages"])
        return Line("own", found, messages, "", False, _checked(options))
    text = _text("prompt", value["prompt"])
    if system is not None:
        if raw:
            raise RequestError("system", "does not go with raw", "leave one of them out")
        messages = (Message("system", system), Message("user", text))
        return Line("own", found, messages, "", False, _checked(options))
    return Line("own", found, (), text, raw, _checked(options))


def _openai(value: Mapping[str, Any]) -> Line:
    _refuse_unknown(value, frozenset({"custom_id", "method", "url", "body"}))
    found = line_id(value)
    if found is None:
        raise RequestError("custom_id", "is missing or not text", "name the line")
    if value.get("method", "POST") != "POST":
        raise RequestError("method", f"{shown(value['method'])} is not POST")
    url, body = value.get("url", "/v1/chat/completions"), value.get("body")
    if url not in _URLS:
        raise RequestError("url", f"{shown(url)} is none of {', '.join(_URLS)}")
    if not isinstance(body, dict):
        raise RequestError("body", "is missing or not an object")
    form, options = _URLS[url], {}
    asked = "messages" if form == "chat" else "prompt"
    known = OPTIONS | _RENAMED.keys() | _IGNORED | _FIXED.keys() | {asked, "top_logprobs"}
    _refuse_unknown(body, known)
    for name, given in body.items():
        if name in _FIXED and given not in _FIXED[name]:
            raise RequestError(name, f"{shown(given)} can't be honoured", "leave it out")
        if given is not None and (option := _RENAMED.get(name, name)) in OPTIONS:
            options[option] = given
    if form == "chat":
        _chat_logprobs(options, body)
        messages = _messages(body.get("messages"))
        return Line(form, found, messages, "", False, _checked(options))
    return Line(form, found, (), _text("prompt", body.get("prompt")), True, _checked(options))


def _chat_logprobs(options: dict[str, Any], body: Mapping[str, Any]) -> None:
    """Chat says `logprobs: true` and how many others in `top_logprobs`; we say the number."""
    wanted, others = options.pop("logprobs", None), body.get("top_logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise RequestError("logprobs", f"{shown(wanted)} is neither true nor false")
    if others is not None and not wanted:
        raise RequestError("top_logprobs", "means nothing without logprobs", "set it to true")
    if wanted:
        options["logprobs"] = others or 0


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as their keys keep them."""
    made = {}
    for name, value in options.items():
        if value is None:
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]
        try:
            made[name] = KEYS[f"{_TABLE}{name}"].check(value)
        except InvalidValue as error:
            raise RequestError(name, error.what, error.mend) from error
    return made


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RequestError("messages", "is not a list of messages", "write at least one")
    return tuple(_message(number, each) for number, each in enumerate(value, 1))


def _message(number: int, value: object) -> Message:
    where = f"message {number}"
    if not isinstance(value, dict):
        raise RequestError(where, "is not an object")
    if unknown := value.keys() - {"role", "content", "name"}:
        raise RequestError(where, f"{min(unknown)} can't be honoured", "leave it out")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or not role:
        raise RequestError(where, "has no role", "system, user or assistant")
    if isinstance(content, list):
        content = "".join(_part(where, part) for part in content)
    return Message(role, _text(where, content))


def _part(where: str, part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise RequestError(where, "has a part that is not text", "send text alone")


def _text(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(where, f"{shown(value)} is not text")
    return value


def _refuse_unknown(value: Mapping[str, Any], known: frozenset[str] | set[str]) -> None:
    for name in value:
        if name not in known:
            raise RequestError(name, "unknown field", nearest(name, sorted(known)))
