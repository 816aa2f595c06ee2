"""A conversation as a line of a batch writes it, and OpenAI's words for an answer's form.

Owns the fields of a message: what was said, thought and called, by whom. Knows nothing of
templates.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from configs.checks import shown
from configs.errors import RequestError
from inference.request import Message

_KNOWN = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
# Parts of an assistant's message of nanochat's: what was worked out, and what came out.
_CALCULATED = ("python", "python_output")
# What others, and our own records, call the thoughts of an answer.
_THOUGHTS = ("thinking", "reasoning_content", "reasoning")
# OpenAI's later name of a role that templates know by its first.
_ROLES = {"developer": "system"}


def read_messages(value: object) -> tuple[Message, ...]:
    """The messages of a conversation.

    Raises:
        RequestError: One has a field that is unknown or has a wrong value.
    """
    if not isinstance(value, list) or not value:
        raise RequestError("messages", "is not a list of messages", "write at least one")
    return tuple(_message(f"message {number}", each) for number, each in enumerate(value, 1))


def response_form(value: object) -> dict[str, Any]:
    """The option that OpenAI's `response_format` comes to.

    Raises:
        RequestError: It is none of theirs.
    """
    if value is None or value == {"type": "text"}:
        return {}
    if value == {"type": "json_object"}:
        return {"json_schema": {"type": "object"}}
    if isinstance(value, dict) and value.get("type") == "json_schema":
        named = value.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if isinstance(schema, dict):
            return {"json_schema": schema}
    raise RequestError("response_format", f"{shown(value)} can't be honoured", "leave it out")


def _message(where: str, value: object) -> Message:
    if not isinstance(value, dict):
        raise RequestError(where, "is not an object")
    if unknown := value.keys() - _KNOWN - {*_THOUGHTS}:
        raise RequestError(where, f"{min(unknown)} can't be honoured", "leave it out")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or not role:
        raise RequestError(where, "has no role", "system, user, assistant or tool")
    calls = _calls(where, value)
    thought = next((value[name] for name in _THOUGHTS if value.get(name) is not None), None)
    for name, given, whose in (
        ("tool_calls", calls, "assistant"),
        ("thinking", thought, "assistant"),
        ("tool_call_id", value.get("tool_call_id"), "tool"),
    ):
        if given and role != whose:
            raise RequestError(where, f"has {name}, which only a message of {whose} has")
    parts: tuple[Mapping[str, str], ...] = ()
    if isinstance(content, list):
        types = {"text", *_CALCULATED} if role == "assistant" else {"text"}
        cut = [_part(where, part, types) for part in content]
        parts = tuple(cut) if any(part["type"] != "text" for part in cut) else ()
        content = "".join(part["text"] for part in cut)
    if content is None and calls:
        content = ""
    return Message(
        _ROLES.get(role, role),
        _text(where, content),
        thinking=None if thought is None else _text(where, thought),
        tool_calls=calls,
        tool_call_id=_optional(where, value, "tool_call_id"),
        name=_optional(where, value, "name"),
        parts=parts,
    )


def _calls(where: str, value: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The calls of a message, with their arguments parsed, as templates want them."""
    given = value.get("tool_calls") or []
    if not isinstance(given, list):
        raise RequestError(where, "tool_calls is not a list")
    calls = []
    for call in given:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError(where, "has a tool call without a function's name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError) as error:
                what = f"has a tool call whose arguments are not JSON ({error})"
                raise RequestError(where, what) from error
        if not isinstance(arguments, dict):
            raise RequestError(where, "has a tool call whose arguments are no object")
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return tuple(calls)


def _part(where: str, part: object, types: Collection[str]) -> dict[str, str]:
    match part:
        case {"type": str(kind), "text": str(text)} if kind in types:
            return {"type": kind, "text": text}
    raise RequestError(where, "has a part that is not text", "send text alone")


def _optional(where: str, value: Mapping[str, Any], name: str) -> str | None:
    return None if value.get(name) is None else _text(where, value[name])


def _text(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(where, f"{shown(value)} is not text")
    return value
