"""The commands of a chat, by name.

Owns their names, their help and what each does to the chat. What a command is asked to
tell goes to stderr: stdout carries answers alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from configs.checks import InvalidValue, nearest, shown
from configs.command import note
from configs.errors import FerryError, UsageError
from configs.keys import KEYS
from inference.chat.chat import Chat, counted, memory
from inference.chat.saved import UNSETTABLE
from inference.request import check_text

SETTABLE = tuple(
    name
    for key in KEYS
    if key.startswith("generate.") and (name := key.partition(".")[2]) not in UNSETTABLE
)


class Command(NamedTuple):
    """What follows its name, what it does in words, and the doing of it."""

    takes: str
    help: str
    run: Callable[[Chat, str], None]


def handle(chat: Chat, line: str) -> None:
    """Do what a line asks for: a command begins with one slash, all else is said.

    Raises:
        FerryError: It can't be done.
    """
    if not line.strip():
        chat.draft = None
    elif line.startswith("//"):
        chat.ask(line[1:])
    elif line.startswith("/"):
        chat.draft = None
        _dispatch(chat, line.strip())
    else:
        chat.ask(line)


def _dispatch(chat: Chat, line: str) -> None:
    """Do what a line says that begins with a slash.

    Raises:
        FerryError: There is no such command, or it can't be done.
    """
    name, _, rest = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = nearest(name, [*COMMANDS])
        mend = f"{near}; a line that is to begin with / is written with //".removeprefix("; ")
        raise UsageError(shown(name), "unknown command", mend)
    if rest.strip() and not command.takes:
        raise UsageError(name, "takes nothing after it", "leave it out")
    command.run(chat, rest.strip())


def _tell(text: str) -> None:
    for line in text.splitlines():
        note(line.expandtabs(4))


def _help(chat: Chat, rest: str) -> None:
    heads = {name: f"{name} {command.takes}".rstrip() for name, command in COMMANDS.items()}
    widest = max(map(len, heads.values()))
    for name, command in COMMANDS.items():
        _tell(f"{heads[name]:{widest}}  {command.help}")
    if chat.view.alive:
        _tell("Enter sends; Alt-Enter begins a new line; Ctrl-C stops an answer; Ctrl-D leaves.")


def _system(chat: Chat, rest: str) -> None:
    if rest:
        system = None if rest == "-" else check_text("/system", rest)
        chat.conversation = chat.conversation.with_system(system)
        chat.save_if_asked()
    system = chat.conversation.system
    _tell("no system message" if system is None else system)


def _set(chat: Chat, rest: str) -> None:
    name, _, text = rest.partition(" ")
    name = name.removeprefix("generate.").replace("-", "_")
    if not rest:
        for each in SETTABLE:
            _tell(f"{each} = {_value(chat, each)}")
        return
    if name not in SETTABLE:
        known = "use /system" if name == "system" else nearest(name, [*SETTABLE])
        raise UsageError(f"/set {shown(name)}", "is nothing that a chat can set", known)
    if text.strip():
        chat.set(name, _read(name, text.strip()))
    _tell(f"{name} = {_value(chat, name)}")


def _read(name: str, text: str) -> object:
    from configs.loader import read_sets

    key = f"generate.{name}"
    check = KEYS[key].check
    if check.kind == "one":
        try:
            return check.from_text(text)
        except InvalidValue as error:
            raise UsageError(f"/set {name}", error.what, error.mend) from error
    try:  # lists and switches are written as in a file
        return read_sets([f"{key}={text}"])[key].value
    except FerryError as error:
        raise UsageError(f"/set {name}", error.what, error.mend) from error


def _value(chat: Chat, name: str) -> str:
    from configs.show import toml_value

    value = chat.setting(name)
    if value is None or isinstance(value, str):
        return value or "not set"
    return toml_value(value)


def _show(chat: Chat, rest: str) -> None:
    if not chat.conversation.whole:
        _tell("nothing was said yet")
    for message in chat.conversation.whole:
        _tell(f"--- {message.role}")
        _tell(message.content)
        for call in message.tool_calls:
            _tell(json.dumps(call["function"], ensure_ascii=False))


def _save(chat: Chat, rest: str) -> None:
    name, _, last = rest.rpartition(" ")
    with_cache = last == "cache" and (bool(name.strip()) or chat.file is not None)
    path = _path("/save", name.strip() if with_cache else rest, chat.file)
    cached = chat.save(path, with_cache=with_cache or chat.with_cache)
    beside = ", and its cache beside it" if cached else ""
    _tell(f"saved {counted(chat.conversation)} in {path}{beside}")


def _load(chat: Chat, rest: str) -> None:
    chat.open(_path("/load", rest, chat.file))
    chat.save_if_asked()


def _path(command: str, rest: str, default: Path | None) -> Path:
    if not rest:
        if default is None:
            raise UsageError(command, "needs a file", f"{command} FILE")
        return default
    try:
        return Path(check_text(command, rest)).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{command} {shown(rest)}", "there is no such user") from error


def _retry(chat: Chat, rest: str) -> None:
    chat.retry()


def _undo(chat: Chat, rest: str) -> None:
    chat.conversation = chat.conversation.undo()
    chat.save_if_asked()
    _tell(f"left: {counted(chat.conversation)}")


def _edit(chat: Chat, rest: str) -> None:
    chat.conversation.retry()  # refuses where nothing was said
    if rest:
        chat.turn(chat.conversation.edit(rest))
    elif chat.view.alive:
        chat.draft = chat.conversation.question
    else:
        raise UsageError("/edit", "needs the new text", "/edit TEXT")


def _result(chat: Chat, rest: str) -> None:
    if not rest:
        raise UsageError("/result", "needs what the tool has given", "/result TEXT")
    given = chat.conversation.result(check_text("/result", rest))
    if given.calls:
        chat.conversation = given
        chat.save_if_asked()
        _tell(f"results to come: {len(given.calls)}, {_called(given.calls[0])} next")
    else:
        chat.turn(given)


def _called(call: Mapping[str, Any]) -> str:
    return str(call["function"]["name"])


def _copy(chat: Chat, rest: str) -> None:
    answer = chat.conversation.answer
    if answer is None:
        raise UsageError("/copy", "there is no answer yet", "ask something first")
    _tell(f"copied {len(answer)} characters by {chat.view.copy(answer)}")


def _stats(chat: Chat, rest: str) -> None:
    totals = chat.turns.totals
    context = chat.turns.context
    _tell(f"turns: {chat.conversation.turns}")
    _tell(f"answers: {totals.answers}, of {totals.said} tokens")
    _tell(f"prompt tokens: {totals.read} read, {totals.cached} kept from turns before")
    limit = "" if context is None else f" of {context}"
    _tell(f"context: {chat.turns.kept.tokens}{limit} tokens in the cache")
    _tell(memory())


def _clear(chat: Chat, rest: str) -> None:
    chat.conversation = chat.conversation.clear()
    chat.save_if_asked()


def _exit(chat: Chat, rest: str) -> None:
    chat.over = True


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "/help": Command("", "this list", _help),
        "/system": Command("[TEXT|-]", "show the system message, change it, or have none", _system),
        "/set": Command("[KEY [VALUE]]", "show what can be set, or set it", _set),
        "/show": Command("", "the conversation as text", _show),
        "/save": Command(
            "FILE [cache]", "save the conversation as JSON, with its KV cache if asked", _save
        ),
        "/load": Command("FILE", "go on with a saved conversation", _load),
        "/retry": Command("", "answer the last turn anew", _retry),
        "/undo": Command("", "take the last turn back", _undo),
        "/edit": Command("[TEXT]", "say the last turn differently", _edit),
        "/result": Command("TEXT", "what the tool gave that the last answer calls", _result),
        "/copy": Command("", "the last answer into the clipboard", _copy),
        "/stats": Command("", "tokens and memory so far", _stats),
        "/clear": Command("", "begin anew; the system message stays", _clear),
        "/exit": Command("", "leave", _exit),
    }
)
