"""Stdout, as bytes: exact in a pipe or file, harmless on a terminal.

Owns the encoding and what of a model's text may reach a terminal. Knows nothing of
where the text comes from.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any, BinaryIO

from configs.errors import UsageError


def neutralize(text: str) -> str:
    """Text with every control character but newline and tab made visible.

    Without it, a model could move the cursor, set the title or paste into the shell.
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) == "Cc" and char not in "\n\t"
        else char
        for char in text
    )


class Output:
    """Where answers go.

    Args:
        stream: Takes UTF-8.
        terminal: Whether a person looks at it.
    """

    def __init__(self, stream: BinaryIO, terminal: bool) -> None:
        self._stream = stream
        self._terminal = terminal

    @classmethod
    def stdout(cls) -> Output:
        """The process's own.

        Raises:
            UsageError: It was closed before the start.
        """
        if sys.stdout is None:
            raise UsageError("stdout", "is closed", "leave it open, or send it to /dev/null")
        return cls(sys.stdout.buffer, sys.stdout.isatty())

    def text(self, text: str) -> None:
        """Write, at once."""
        shown = neutralize(text) if self._terminal else text
        try:
            self._stream.write(shown.encode("utf-8"))
            self._stream.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, "stdout") from error

    def json(self, value: Any) -> None:
        """Write one line of JSON."""
        # Beyond ASCII are control characters too, which JSON does not escape.
        line = json.dumps(value, ensure_ascii=self._terminal, allow_nan=False)
        self.text(line + "\n")
