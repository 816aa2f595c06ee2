"""Markdown on a terminal while it is still being written.

Owns which of the text can change no more: finished blocks are printed once, and of the
rest only those lines are written anew that changed, in one write, so that nothing
flickers. Every text is made harmless first. Knows nothing of answers or events.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Markdown
from rich.syntax import Syntax

from inference.terminal import neutralize

_LEAST_SECONDS = 0.04  # between two drawings
_SHARE = 4  # of the time is the most that drawing takes, as 1 in so many
_CODE = "ansi_dark"  # the terminal's own colours


class MarkdownWriter:
    """Shows a growing text.

    Args:
        console: Where; a terminal that can move its cursor.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # that may still change its form
        self._lines: list[str] = []  # of it, on the screen
        self._blocks = 0  # printed for good
        self._width = console.width
        self._rest_until = 0.0

    def push(self, text: str) -> None:
        """More of the text."""
        self._text += neutralize(text)
        began = time.monotonic()
        if began >= self._rest_until:
            self._draw(finished_length(self._text))
            now = time.monotonic()
            self._rest_until = now + max(_LEAST_SECONDS, _SHARE * (now - began))

    def finish(self) -> None:
        """What was written stands firm; if more comes, it begins a block."""
        self._draw(len(self._text))

    def _draw(self, finished: int) -> None:
        """Bring the screen up to date; so much of the text is printed for good."""
        if self._width != self._console.width:
            # Where the lines are after the terminal wrapped them anew, nobody can tell.
            self._width, self._lines = self._console.width, []
        done = self._rendered(self._text[:finished])
        self._blocks += bool(done)
        self._text = self._text[finished:]
        tail = self._rendered(self._text)[2 - self._console.height :]
        lines = [*done, *tail]
        same = 0
        while same < min(len(lines), len(self._lines)) and lines[same] == self._lines[same]:
            same += 1
        up, new = len(self._lines) - same, lines[same:]
        self._lines = tail
        if up or new:
            back = f"\x1b[{up}A" if up else ""
            below = "\x1b[J" if up > len(new) else ""
            self._console.file.write(back + "".join(f"{line}\x1b[K\n" for line in new) + below)
            self._console.file.flush()

    def _rendered(self, text: str) -> list[str]:
        """Lines of text with the terminal's codes; an empty one first between blocks."""
        if not text.strip():
            return []
        with self._console.capture() as captured:
            # In the last column, what erases the rest of the line would erase a character.
            self._console.print(_Markdown(text), width=max(1, self._width - 1))
        lines = [line.rstrip(" ") for line in captured.get().split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            del lines[0]
        return ["", *lines] if self._blocks and lines else lines


def finished_length(text: str) -> int:
    """How many characters belong to blocks that no later text can change.

    These are all whole lines before the last block of them.
    """
    whole = text[: text.rfind("\n") + 1]
    starts = [
        token.map[0]
        for token in _parser().parse(whole)
        if token.level == 0 and token.nesting >= 0 and token.map is not None
    ]
    if len(starts) < 2:
        return 0
    return sum(len(line) + 1 for line in whole.split("\n")[: starts[-1]])


def _parser() -> MarkdownIt:
    # As rich's own, but HTML and definitions of links are text like any other, and not dropped.
    made = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    return made.disable("reference")


class _Code(CodeBlock):
    """A block of code that can be copied: nothing stands before its lines."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme=_CODE, background_color="default", word_wrap=True)


class _Markdown(Markdown):
    """Rich's Markdown; lines end where they were ended, and links show where they lead."""

    elements: ClassVar = {**Markdown.elements, "fence": _Code, "code_block": _Code}

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _parser().parse(text)
        for token in _inside(self.parsed):
            if token.type == "softbreak":
                token.type, token.tag = "hardbreak", "br"


def _inside(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _inside(token.children or [])
