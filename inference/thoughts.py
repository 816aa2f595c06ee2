"""What a model said beside its answer, for a person: thoughts on stderr, calls in the text.

Owns how thinking is shown or folded. Knows nothing of markers or of JSON.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from configs.command import warn
from configs.errors import RequestError
from inference.events import Aside, Delta, Event, Failed, Finished
from inference.request import TokenRequest
from inference.terminal import neutralize

_DIM, _PLAIN, _BEGIN = "\x1b[2m", "\x1b[0m", "\r\x1b[K"


class Thoughts:
    """Shows one thinking section after the other.

    Args:
        mode: As the key; a thought that comes where thinking is off is shown.
        stream: Takes text; None for nowhere.
    """

    def __init__(self, mode: str, stream: TextIO | None) -> None:
        self._mode = mode
        self._stream = stream
        self._terminal = stream is not None and stream.isatty()
        self._dim = self._terminal and not os.environ.get("NO_COLOR")
        self._began: float | None = None
        self._characters = 0
        self._ends_line = True

    def push(self, text: str) -> None:
        """More of a section."""
        if self._mode == "hide":
            return
        if self._began is None:
            self._began, self._characters = time.perf_counter(), 0
            self._write(_DIM if self._dim and self._mode != "fold" else "")
        self._characters += len(text)
        if self._mode != "fold":
            self._write(neutralize(text) if self._terminal else text)
            self._ends_line = text.endswith("\n")
        elif self._terminal:
            self._write(f"{_BEGIN}thinking: {self._characters:,} characters")

    def close(self) -> None:
        """The section is over, if there was one."""
        if self._began is None:
            return
        seconds, self._began = time.perf_counter() - self._began, None
        if self._mode != "fold":
            self._write(("" if self._ends_line else "\n") + (_PLAIN if self._dim else ""))
        else:
            line = f"thought for {seconds:.1f} s: {self._characters:,} characters\n"
            self._write(f"{_BEGIN if self._terminal else ''}{line}")

    def _write(self, text: str) -> None:
        if self._stream is not None and text:
            with contextlib.suppress(OSError):  # that nobody reads it is no reason to stop
                self._stream.write(text)
                self._stream.flush()


def for_person(
    events: Iterable[Event], requests: Sequence[TokenRequest], *, quiet: bool = False
) -> Iterator[Event]:
    """The events with thoughts put on stderr and calls among the text.

    With several answers the thoughts of each are shown once it is over.

    Args:
        events: Of these requests.
        requests: One for each answer.
        quiet: Show thoughts only where they were asked for.
    """
    asked = requests[0].options.thinking
    thoughts = Thoughts(asked or ("hide" if quiet else "show"), sys.stderr)
    waiting: dict[str, list[str]] = {request.id: [] for request in requests}
    try:
        for event in warned(events, requests):
            if isinstance(event, Aside) and event.kind == "thinking":
                if len(requests) > 1:
                    waiting[event.request].append(event.text)
                else:
                    thoughts.push(event.text)
                continue
            if isinstance(event, Finished | Failed) and (pieces := waiting.pop(event.request)):
                thoughts.push("".join(pieces))
            if isinstance(event, Aside | Delta | Finished | Failed):
                thoughts.close()
            yield Delta(event.request, event.text) if isinstance(event, Aside) else event
    finally:
        thoughts.close()


def warned(events: Iterable[Event], requests: Sequence[TokenRequest]) -> Iterator[Event]:
    """The same events, with a warning for every call that can't be read."""
    by_id = {request.id: request for request in requests}
    for event in events:
        if isinstance(event, Aside) and event.kind == "call":
            sections = by_id[event.request].sections
            if sections is not None and sections.calls is not None:
                try:
                    sections.calls.parse(event.text)
                except RequestError as error:
                    warn(f"{error}; it is kept as the model said it")
        yield event
