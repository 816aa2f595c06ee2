"""What a chat needs of whoever sits before it, and the form of it for scripts.

Owns the plain form: a turn a line on stdin, each answer on stdout as it comes and a line
break after it, or one JSON object a turn. Knows nothing of conversations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Protocol

from configs.errors import SourceError, UsageError
from inference.chat import clipboard
from inference.events import Delta, Event
from inference.render import Answer
from inference.request import TokenRequest
from inference.statistics import Run
from inference.terminal import Output
from inference.thoughts import for_person, warned

_LONGEST = 16 * 2**20


class View(Protocol):
    """Where lines come from and answers go."""

    @property
    def alive(self) -> bool:
        """Whether somebody is there who can go on after an error, and stop an answer."""

    def read(self, default: str = "") -> str | None:
        """The next thing that the user says; None once there is no more.

        Args:
            default: Text to begin with, for the user to change.
        """

    def answer(self, request: TokenRequest, events: Iterator[Event]) -> Answer:
        """Show an answer as it comes."""

    def copy(self, text: str) -> str:
        """Put a text into the clipboard; in a word, by what."""


def taken(answer: Answer, events: Iterable[Event]) -> Iterator[Event]:
    """The same events, once the answer has taken them."""
    for event in events:
        answer.take(event)
        yield event


class Pipe:
    """The form for scripts.

    Args:
        output: Where answers go.
        run: What all answers share.
        as_json: One object a turn in place of its text.
        quiet: Show thoughts only where they were asked for.
    """

    alive = False

    def __init__(self, output: Output, run: Run, *, as_json: bool, quiet: bool) -> None:
        self._output = output
        self._run = run
        self._as_json = as_json
        self._quiet = quiet
        self._line = 0

    def read(self, default: str = "") -> str | None:
        """The next line that is not blank.

        Raises:
            SourceError: It is not UTF-8, or too long.
            UsageError: stdin is closed.
        """
        if sys.stdin is None:
            raise UsageError("stdin", "is closed", "a chat reads what the user says from it")
        while data := sys.stdin.buffer.readline(_LONGEST + 1):
            self._line += 1
            where = f"stdin:{self._line}"
            if len(data) > _LONGEST:
                raise SourceError(where, f"is longer than {_LONGEST} bytes", "shorten it")
            try:
                text = data.decode("utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                what = f"is not valid Unicode (byte {error.start + 1})"
                raise SourceError(where, what, "save it as UTF-8") from error
            if self._line == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                return text
        return None

    def answer(self, request: TokenRequest, events: Iterator[Event]) -> Answer:
        """Write an answer as it comes, or as one object once it is whole."""
        answer = Answer(request, None)
        heard = taken(answer, events)
        if self._as_json:
            for _ in warned(heard, [request]):
                pass
            if answer.error is None:
                self._output.json({**answer.fields(self._run), **self._run.fields()})
            return answer
        try:
            for event in for_person(heard, [request], quiet=self._quiet):
                if isinstance(event, Delta):
                    self._output.text(event.text)
        finally:
            if answer.error is None:
                self._output.text("\n")
        return answer

    def copy(self, text: str) -> str:
        """Put a text into the clipboard.

        Raises:
            UsageError: No program here does that.
        """
        done = clipboard.by_program(text)
        if done is None:
            raise UsageError("/copy", "there is no clipboard here", "use /save")
        return done
