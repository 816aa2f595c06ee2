"""Markdown as it is written: once whole, the screen shows what it would have shown at once."""

from __future__ import annotations

import io
import random

import pyte
import pytest
from rich.console import Console

from inference.chat.markdown import MarkdownWriter, finished_length

TEXT = """# A head

Some *words* of a paragraph
on two lines, with `code` and a [link](https://example.org/where).

- one
- two

  still two
#5 is no head

1. first
2. second

| a | b |
|---|---|
| 1 | 2 |

```python
def main():
    return 1 * 2

print("<b>")
```

<div>not dropped</div>

[nor]: https://example.org/this

你好，世界。 The end
===
"""


class Screen:
    """A terminal that keeps all of what it shows."""

    def __init__(self, rows: int = 24, columns: int = 60) -> None:
        self.file = io.StringIO()
        self.console = Console(
            file=self.file, force_terminal=True, width=columns, height=rows, highlight=False
        )
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)

    def shown(self) -> list[str]:
        stream = pyte.Stream(self._screen)
        stream.feed(self.file.getvalue().replace("\n", "\r\n"))
        above = [
            "".join(line[column].data for column in range(self._screen.columns))
            for line in self._screen.history.top
        ]
        return [line.rstrip() for line in "\n".join([*above, *self._screen.display]).split("\n")]


def written(text: str, seed: int | None, rows: int = 24) -> Screen:
    """The screen after a text in pieces of random sizes, each drawn; at once without a seed."""
    screen, rng = Screen(rows), random.Random(seed)
    writer = MarkdownWriter(screen.console)
    while seed is not None and text:
        size = rng.choice([1, 2, 3, 5, 17])
        writer._rest_until = 0.0  # draw even if this came soon after the last one
        writer.push(text[:size])
        text = text[size:]
    writer._rest_until = float("inf")
    writer.push(text)
    writer.finish()
    return screen


@pytest.mark.parametrize("rows", [24, 6])
@pytest.mark.parametrize("seed", range(6))
def test_pieces_show_what_the_whole_shows(seed: int, rows: int) -> None:
    whole = [line for line in written(TEXT, None).shown() if line]
    assert [line for line in written(TEXT, seed, rows).shown() if line] == whole
    text = "\n".join(whole)
    assert "[nor]: https://example.org/this" in text
    assert "<div>not dropped</div>" in text and "(https://example.org/where)" in text
    assert "def main():" in whole and "    return 1 * 2" in whole  # as it was written
    assert "on two lines" in whole[2] and "paragraph" in whole[1]  # breaks stay


def test_a_block_longer_than_the_screen_is_there_once() -> None:
    code = "```\n" + "".join(f"line {number}\n" for number in range(50)) + "```\n"
    shown = [line for line in written(code, 0, rows=8).shown() if line]
    assert shown == [f"line {number}" for number in range(50)]


def test_what_is_finished_is_written_once() -> None:
    screen = written("first paragraph\n\n" + "word " * 200, 3)
    drawn = screen.file.getvalue()
    assert drawn.count("first paragraph") == 1
    assert drawn.count("word") < 200 * 30  # lines of the rest that did not change stay


def test_finished_length_takes_whole_lines_alone() -> None:
    assert finished_length("para\n#") == 0  # it may become "#5", and part of the paragraph
    assert finished_length("para\n\n# head") == 0
    assert finished_length("para\n\n# head\n") == len("para\n\n")
    assert finished_length("- a\n\n  b\n") == 0
    assert finished_length("```\na\n\nb\n") == 0


@pytest.mark.parametrize("hostile", ["\x1b]0;owned\x07", "\x9b2J", "\x1b[2J", "a\x08b", "\r"])
def test_no_escape_sequence_of_a_model_reaches_the_terminal(hostile: str) -> None:
    for text in (f"x {hostile} y", f"```\n{hostile}\n```\n", f"# {hostile}\n\nmore\n"):
        drawn = written(text, 1).file.getvalue()
        assert hostile not in drawn and "\x07" not in drawn and "\x9b" not in drawn
        assert "\\x" in drawn or "\\r" in drawn
        assert "]0;owned" not in drawn.replace("\\x1b]0;owned", "")


def test_a_terminal_that_changed_its_width_loses_nothing() -> None:
    screen = Screen()
    writer = MarkdownWriter(screen.console)
    writer.push("above\n\nhere are\nsome words")
    screen.console.width = 40
    writer.push(" and more")
    writer.finish()
    shown = "\n".join(screen.shown())
    assert shown.count("above") == 1 and "some words and more" in shown
