"""A real terminal for tests: the command on a pseudo-terminal, its screen kept by pyte."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import pexpect
import pyte

_PROMPT = b"\x1b[?2004h"  # sent once whenever a line is about to be edited
_SECONDS = 60
_HEX = re.compile("[0-9a-f]{6}")


class Terminal:
    """Runs a command, and sees what a user would see.

    Args:
        command: A module to run with Python, and its arguments.
        environment: Variables beside those that there are.
        rows: Of the screen.
        columns: Of the screen.
    """

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str] | None = None,
        rows: int = 40,
        columns: int = 120,
    ) -> None:
        self.raw = b""
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", *command],
            env={**os.environ, "TERM": "xterm-256color", **(environment or {})},
            dimensions=(rows, columns),
            timeout=_SECONDS,
        )
        # As a terminal answers when it is asked where its cursor is.
        self._screen.write_process_input = self.child.send

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.child.close(force=True)

    @property
    def text(self) -> str:
        """All that was ever shown and not overwritten, the oldest first."""
        above = [
            "".join(line[column].data for column in range(self._screen.columns))
            for line in self._screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*above, *self._screen.display]).rstrip()

    def styled(self) -> list[list[tuple[str, str, bool]]]:
        """The screen's lines: characters with their colour's name, and whether they are bold."""
        names = {"default": "", "brown": "yellow"}
        lines = []
        for number in range(self._screen.cursor.y + 1):
            row = [self._screen.buffer[number][column] for column in range(self._screen.columns)]
            shown = [(char.data, names.get(char.fg, char.fg), char.bold) for char in row]
            lines.append([(d, f"#{c}" if _HEX.fullmatch(c) else c, b) for d, c, b in shown])
        return lines

    def until(self, seen: Callable[[], bool]) -> None:
        """Go on until something is so."""
        end = time.monotonic() + _SECONDS
        while not seen():
            if time.monotonic() > end or not self._read():
                raise AssertionError(f"not seen; the screen:\n{self.text}")

    def prompt(self) -> None:
        """Go on until the user may write, for the first time or after the last `say`."""
        self.until(lambda: self.raw.count(_PROMPT) > self._prompts)
        self._prompts = self.raw.count(_PROMPT)

    _prompts = 0

    def say(self, keys: str) -> None:
        """Write a line, and wait for what it does."""
        self.child.send(keys + "\r")
        self.prompt()

    def end(self) -> int:
        """Wait for the command's end; its exit code."""
        while self._read():
            pass
        if not self.child.flag_eof:
            raise AssertionError(f"it has not ended; the screen:\n{self.text}")
        self.child.wait()
        self.child.close()
        code = self.child.exitstatus
        return -self.child.signalstatus if code is None else code

    def _read(self) -> bool:
        try:
            data = self.child.read_nonblocking(65_536, _SECONDS)
        except (pexpect.EOF, pexpect.TIMEOUT):
            return False
        self.raw += data
        self._stream.feed(data)
        return True
