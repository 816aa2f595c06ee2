"""A conversation in a file: readable JSON, whole or not there.

Owns the file's form and the check of one that somebody else may have written:

    {"format": "mlx-ferry chat", "version": 1, "model": "...",
     "generate": {"temperature": 0.2},
     "messages": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}, ...]}

A message of the assistant may have "thinking" and "tool_calls" too, and one of a tool
"tool_call_id" and "name".

Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.json_file import json_type, quoted, read_json_object
from configs.checks import InvalidValue
from configs.errors import DestinationError, RequestError, SourceError
from configs.keys import KEYS
from inference.batch.messages import read_messages
from inference.chat.conversation import Conversation
from inference.replacing import replace_file
from inference.request import Message

_FORMAT = "mlx-ferry chat"
_VERSION = 1
_FIELDS = {"format", "version", "model", "generate", "messages"}
_LIMIT = 256 * 2**20
UNSETTABLE = frozenset({"n", "logprobs", "system"})


@dataclass(frozen=True)
class Saved:
    """A conversation, what it was set to, and the name of the model that it was with."""

    conversation: Conversation
    changed: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    def save(self, path: Path) -> None:
        """Write it, in place of a chat that the file may hold.

        Raises:
            DestinationError: The file holds something else.
            DiskError: It can't be written.
        """
        if disk.is_there(path) and not _is_saved(path):
            raise DestinationError(path, "is there, and is no saved chat", "give another name")
        text = json.dumps(self._fields(), ensure_ascii=False, indent=2)
        replace_file(path, lambda new: disk.write_whole(new, f"{text}\n".encode()))

    def _fields(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "model": self.model,
            "generate": dict(self.changed),
            "messages": [_fields(message) for message in self.conversation.whole],
        }

    @classmethod
    def load(cls, path: Path) -> Saved:
        """Read one.

        Raises:
            SourceError: It is not one.
            DiskError: It can't be read.
        """
        found = read_json_object(path, limit=_LIMIT)
        if found.get("format") != _FORMAT:
            raise SourceError(path, "is no saved chat", "give a file that /save wrote")
        if found.get("version") != _VERSION or isinstance(found["version"], bool):
            raise SourceError(path, "is of a version that this program can't read", "update it")
        if unknown := sorted(found.keys() - _FIELDS):
            raise SourceError(path, f"has an unknown field {quoted(unknown[0])}")
        model = found.get("model", "")
        if not isinstance(model, str):
            raise SourceError(path, f"model is {json_type(model)}, and not a string")
        changed = _changed(found.get("generate", {}), path)
        return cls(_conversation(found.get("messages"), path), changed, model)


def _is_saved(path: Path) -> bool:
    try:
        return read_json_object(path, limit=_LIMIT).get("format") == _FORMAT
    except SourceError:
        return False


def _changed(found: object, path: Path) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise SourceError(path, f"generate is {json_type(found)}, and not an object")
    changed = {}
    for name, value in found.items():
        key = KEYS.get(f"generate.{name}")
        if key is None or name in UNSETTABLE:
            raise SourceError(path, f"generate has {quoted(name)}, which a chat can't set")
        try:
            changed[name] = key.check(value)
        except InvalidValue as error:
            raise SourceError(path, f"generate.{name}: {error.what}", error.mend) from error
    return changed


def _fields(message: Message) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking is not None:
        made["thinking"] = message.thinking
    if message.tool_calls:
        made["tool_calls"] = list(message.tool_calls)
    for name in ("tool_call_id", "name"):
        if (value := getattr(message, name)) is not None:
            made[name] = value
    return made


def _conversation(found: object, path: Path) -> Conversation:
    if found == []:
        return Conversation()
    try:
        messages = read_messages(found)
        if messages[0].role == "system":
            return Conversation(messages[0].content, messages[1:])
        return Conversation(None, messages)
    except RequestError as error:
        raise SourceError(path, f"{error.where} {error.what}", error.mend) from error
