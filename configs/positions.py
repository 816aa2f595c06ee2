"""Where the keys of a TOML text stand: the line of each, which the TOML parser does not tell.

This reads just enough of TOML's grammar to follow keys, brackets and strings. It judges nothing but
depth: whether the text is valid, and what it means, is the parser's to say, and to say first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import tomli

from configs.checks import KeyPath

DEEPEST = 64

_TOKEN = re.compile(
    r"""
      (?P<skip> [\ \t\r]+ | \#[^\n]* )
    | (?P<end> \n )
    | (?P<block> \"{3} (?: [^"\\] | \\[\s\S] | "{1,2}(?!") )* "{3,5}
               | '{3} (?: [^'] | '{1,2}(?!') )* '{3,5} )
    | (?P<key> " (?: [^"\\\n] | \\. )* " | '[^'\n]* ' | [^\s\[\]{}=,.\#"']+ )
    | (?P<mark> . )
    """,
    re.VERBOSE,
)


class TooDeepError(Exception):
    """Arrays, tables or keys are nested more than `DEEPEST` levels deep."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


@dataclass
class _Open:
    """An array or inline table whose end has not come yet."""

    path: KeyPath
    index: int | None  # of the element that comes next; None for an inline table


class KeyLines:
    """The lines of a TOML text's keys.

    Args:
        text: The whole text, which parses, or would if it were less deep.

    Raises:
        TooDeepError: It nests too deep to be read safely.
    """

    def __init__(self, text: str) -> None:
        self._lines: dict[KeyPath, int] = {}
        self._elements: dict[KeyPath, int] = {}  # how many [[tables]] of this path there are so far
        self._header: KeyPath = ()
        self._brackets = 0  # that open the header being read: 1 of a table, 2 of an array's element
        self._open: list[_Open] = []
        self._parts: list[str] = []  # of the key being read
        self._value_of: KeyPath | None = None  # the key whose value is being read
        line, counted = 1, 0
        for token in _TOKEN.finditer(text):
            line += text.count("\n", counted, token.start())
            counted = token.start()
            self._take(token.lastgroup or "", token.group(), line)

    def __getitem__(self, path: KeyPath) -> int:
        """The line of a key; of the nearest key around it when it has none of its own."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def paths(self) -> set[KeyPath]:
        """All keys, and elements that are tables."""
        return set(self._lines)

    def _take(self, kind: str, token: str, line: int) -> None:
        if kind == "end" and not self._open:
            self._parts, self._value_of, self._brackets = [], None, 0
        elif kind == "mark" and (self._value_of is not None or token == "}"):
            self._take_in_value(token, line)
        elif kind == "key" and self._value_of is None:
            self._parts.append(_key_text(token))
        elif token == "=":
            around = self._open[-1].path if self._open else self._header
            self._value_of, self._parts = self._record(around, self._parts, line), []
        elif token == "[":
            self._brackets += 1
        elif token == "]" and self._parts:
            self._take_header(line)
        depth = len(self._value_of or self._header) + len(self._parts)
        if depth > DEEPEST or len(self._open) > DEEPEST:
            raise TooDeepError(line)

    def _take_header(self, line: int) -> None:
        *around, last = self._parts
        path: KeyPath = ()
        for part in around:
            path = self._record(path, [part], line)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        path = self._record(path, [last], line)
        if self._brackets == 2:
            count = self._elements[path] = self._elements.get(path, 0) + 1
            path = self._record(path, [count - 1], line)
        self._header, self._parts = path, []

    def _take_in_value(self, token: str, line: int) -> None:
        value_of = self._value_of or ()
        if token == "[":
            self._open.append(_Open(value_of, 0))
            self._value_of = (*value_of, 0)
        elif token == "{":
            self._lines.setdefault(value_of, line)
            self._open.append(_Open(value_of, None))
            self._value_of = None
        elif token in "]}":
            self._value_of = self._open.pop().path
        elif token == ",":
            around = self._open[-1]
            if around.index is None:
                self._value_of = None
            else:
                around.index += 1
                self._value_of = (*around.path, around.index)

    def _record(self, around: KeyPath, parts: Sequence[str | int], line: int) -> KeyPath:
        for part in parts:
            around = (*around, part)
            self._lines.setdefault(around, line)
        return around


def _key_text(token: str) -> str:
    if not token.startswith(("'", '"')):
        return token
    if "\\" not in token or token.startswith("'"):
        return token[1:-1]
    return next(iter(tomli.loads(f"{token} = 0")))
