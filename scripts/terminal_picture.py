"""Records pictures of what a terminal shows, as SVG files: of a chat, and of commands.

    python scripts/terminal_picture.py chat OUT.svg MODEL_DIR LINE...
    python scripts/terminal_picture.py commands OUT.svg COMMAND...

All of it is real, on a pseudo-terminal. Needs the extra `test`. Each LINE is said as a
user would type it; each COMMAND is a whole `convert` or `infer` with its flags.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.terminal import Terminal

COLUMNS, ROWS = 96, 30
# `python -m` takes the packages' names.
_MODULES = {"convert": "convert", "infer": "inference"}

Row = list[tuple[str, str, bool]]
"""Characters, each with its colour and whether it is bold."""


def chat(model: str, *lines: str) -> list[Row]:
    """The screen after the last answer of a chat."""
    command = ["inference", "--chat", "--temperature", "0", "--model", model]
    with (
        tempfile.TemporaryDirectory() as home,
        Terminal(command, {"XDG_STATE_HOME": home}, ROWS, COLUMNS) as user,
    ):
        user.prompt()
        for line in lines:
            user.say(line)
        return user.styled()


def commands(*given: str) -> list[Row]:
    """Each command, and what it shows."""
    rows: list[Row] = []
    for line in given:
        name, *flags = shlex.split(line)
        rows.append([(char, "", True) for char in f"$ {line}"])
        with Terminal([_MODULES[name], *flags], rows=ROWS, columns=COLUMNS) as user:
            if code := user.end():
                raise SystemExit(f"{line}: exit code {code}\n{user.text}")
            shown = user.styled()
        while shown and not "".join(data for data, _, _ in shown[-1]).strip():
            shown.pop()
        rows += shown
    return rows


def picture(rows: list[Row], title: str) -> str:
    """The rows in a window, as SVG."""
    with open("/dev/null", "w") as nowhere:  # noqa: PTH123 -- a device
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        for row in rows:
            text = Text()
            for data, colour, bold in row:
                text.append(data, f"{'bold ' if bold else ''}{colour}".strip())
            console.print(text, no_wrap=True, crop=True)
        # No font from elsewhere: a picture in a README may load none.
        form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        return console.export_svg(title=title, code_format=form)


def main(kind: str, out: str, *given: str) -> None:
    """Write one picture."""
    rows, title = (
        (chat(*given), "infer --chat") if kind == "chat" else (commands(*given), "convert")
    )
    Path(out).write_text(picture(rows, title), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
