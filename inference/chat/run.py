"""A chat from its first line to its last.

Owns the loop, and who gets Ctrl-C: at a terminal it ends an answer and never the chat, in a
script it ends the command.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoint import disk
from configs.command import note
from configs.errors import FerryError
from inference.chat.chat import Chat
from inference.chat.commands import COMMANDS, SETTABLE, handle
from inference.chat.conversation import Conversation
from inference.chat.turns import Turns
from inference.chat.view import Pipe, View
from inference.load import LoadedModel
from inference.session import Session
from inference.statistics import Run
from inference.terminal import Output


def run_chat(
    session: Session,
    loaded: LoadedModel,
    run: Run,
    *,
    as_json: bool,
    quiet: bool,
    file: Path | None,
    with_cache: bool,
) -> None:
    """Chat until the user leaves.

    Args:
        session: The model's files and settings.
        loaded: The model.
        run: What all answers share.
        as_json: One object a turn, in place of text.
        quiet: Say nothing but what was asked for, and errors.
        file: A saved chat to go on with, and to save every turn in.
        with_cache: Whether the KV cache is saved beside what is saved.

    Raises:
        FerryError: Something went wrong in a script; a person is told, and goes on.
    """
    view = _view(run, as_json=as_json, quiet=quiet)
    conversation = Conversation(session.settings.generate.system)
    chat = Chat(
        Turns(session, loaded),
        view,
        run.model,
        conversation,
        quiet=quiet,
        file=file,
        with_cache=with_cache,
    )
    if file is not None and disk.is_there(file):
        chat.open(file)
        if session.settings.origin("generate.system").startswith("--"):
            chat.conversation = chat.conversation.with_system(conversation.system)
    if view.alive:
        chat.tell(f"{run.describe()}; /help lists the commands, Ctrl-D leaves")
    with _interrupts(chat):
        while not chat.over and (line := view.read(chat.draft or "")) is not None:
            try:
                handle(chat, line)
            except FerryError as error:
                if not view.alive:
                    raise
                note(f"error: {error}")
        chat.leave()


def _view(run: Run, *, as_json: bool, quiet: bool) -> View:
    output = Output.stdout()
    if as_json or sys.stdin is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Pipe(output, run, as_json=as_json, quiet=quiet)
    from inference.chat.editor import Editor
    from inference.chat.places import history_file
    from inference.chat.screen import Screen

    commands = [(name, command.help) for name, command in COMMANDS.items()]
    return Screen(Editor(history_file(), commands, SETTABLE), output, quiet=quiet)


@contextmanager
def _interrupts(chat: Chat) -> Iterator[None]:
    """Let Ctrl-C end answers, where somebody is there to go on."""
    if not chat.view.alive:
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: chat.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
