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
from inference.batch.messages import read_messages, response_form
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
# The forms that an answer can have, and none of them.
_FORMS: Mapping[str, Any] = {"json_schema": None, "regex": None, "choice": ()}
# What only a chat's answer can have.
_OF_CHAT = frozenset({"thinking", "thinking_budget", "tools"})
# Said in a request without a meaning for the answer's text.
_IGNORED = frozenset({"model", "user", "metadata", "store", "service_tier", "seed_source"})
# Allowed only with the value that asks for what is done anyway.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "stream": (False, None),
    "stream_options": (None,),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True),
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
            # A form of the line's own takes the place of the command's.
            if self.options.keys() & _FORMS.keys():
                default = replace(default, **_FORMS)
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
        messages = read_messages(value["messages"])
        return Line("own", found, messages, "", False, _checked(options))
    text = _text("prompt", value["prompt"])
    if system is not None:
        if raw:
            raise RequestError("system", "does not go with raw", "leave one of them out")
        messages = (Message("system", system), Message("user", text))
        return Line("own", found, messages, "", False, _checked(options))
    if raw:
        _refuse_of_chat(options)
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
    known = OPTIONS | _RENAMED.keys() | _IGNORED | _FIXED.keys()
    known |= {asked, "top_logprobs", "response_format"}
    _refuse_unknown(body, known)
    for name, given in body.items():
        if name in _FIXED and given not in _FIXED[name]:
            raise RequestError(name, f"{shown(given)} can't be honoured", "leave it out")
        if given is not None and (option := _RENAMED.get(name, name)) in OPTIONS:
            options[option] = given
    options |= response_form(body.get("response_format"))
    if body.get("tool_choice") == "none":
        options.pop("tools", None)
    if form == "chat":
        _chat_logprobs(options, body)
        messages = read_messages(body.get("messages"))
        return Line(form, found, messages, "", False, _checked(options))
    _refuse_of_chat(options)
    return Line(form, found, (), _text("prompt", body.get("prompt")), True, _checked(options))


def _refuse_of_chat(options: Mapping[str, Any]) -> None:
    for name in sorted(_OF_CHAT & options.keys()):
        what = "is the chat template's, which goes with no plain text"
        raise RequestError(name, what, "leave it out, or give messages")


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
        if value is None or (name == "tools" and value == []):
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]
        try:
            made[name] = KEYS[f"{_TABLE}{name}"].check(value)
        except InvalidValue as error:
            raise RequestError(name, error.what, error.mend) from error
    return made


def _text(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(where, f"{shown(value)} is not text")
    return value


def _refuse_unknown(value: Mapping[str, Any], known: frozenset[str] | set[str]) -> None:
    for name in value:
        if name not in known:
            raise RequestError(name, "unknown field", nearest(name, sorted(known)))
