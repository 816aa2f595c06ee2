"""A chat's form for a person at a terminal.

Owns that lines are edited and answers shown as Markdown, and what a terminal that can't
move its cursor gets in its place. Knows nothing of conversations.
"""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

from inference.chat import clipboard
from inference.chat.editor import Editor
from inference.chat.markdown import MarkdownWriter
from inference.chat.view import taken
from inference.events import Aside, Delta, Event
from inference.render import Answer
from inference.request import TokenRequest
from inference.terminal import Output
from inference.thoughts import for_person


class Writer(Protocol):
    """Shows a text that grows."""

    def push(self, text: str) -> None:
        """More of it."""

    def finish(self) -> None:
        """What was written stands firm; if more comes, it begins a line."""


class Screen:
    """The form for a terminal.

    Args:
        editor: Reads what the user writes.
        output: Where answers go that are shown as they are.
        quiet: Show thoughts only where they were asked for.
    """

    alive = True

    def __init__(self, editor: Editor, output: Output, *, quiet: bool) -> None:
        self._editor = editor
        self._quiet = quiet
        self._output = output

    def read(self, default: str = "") -> str | None:
        """What the user writes; empty if it was dropped, None if the user leaves."""
        return self._editor.read(default)

    def answer(self, request: TokenRequest, events: Iterator[Event]) -> Answer:
        """Show an answer as it comes."""
        answer = Answer(request, None)
        writer = self._writer()
        heard = _finished_before_asides(writer, taken(answer, events))
        with _no_echo():
            try:
                for event in for_person(heard, [request], quiet=self._quiet):
                    if isinstance(event, Delta):
                        writer.push(event.text)
            finally:
                writer.finish()
        return answer

    def copy(self, text: str) -> str:
        """Put a text into the clipboard, by a program or else by the terminal.

        Raises:
            UsageError: Neither can.
        """
        if (done := clipboard.by_program(text)) is not None:
            return done
        sys.stdout.write(clipboard.for_terminal(text))
        sys.stdout.flush()
        return "the terminal"

    def _writer(self) -> Writer:
        console = Console(highlight=False)
        return Plain(self._output) if console.is_dumb_terminal else MarkdownWriter(console)


class Plain:
    """Shows a text as it is."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._ends_line = True

    def push(self, text: str) -> None:
        """More of it."""
        self._output.text(text)
        self._ends_line = text.endswith("\n")

    def finish(self) -> None:
        """End its last line."""
        if not self._ends_line:
            self._output.text("\n")
        self._ends_line = True


def _finished_before_asides(writer: Writer, events: Iterable[Event]) -> Iterator[Event]:
    """The same events; what is written of the answer stands firm before a thought is shown."""
    for event in events:
        if isinstance(event, Aside):
            writer.finish()
        yield event


@contextmanager
def _no_echo() -> Iterator[None]:
    """Keep what is typed meanwhile out of the answer; it is there for the next line."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    quiet = [*before]
    quiet[3] = before[3] & ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
