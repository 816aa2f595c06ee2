"""Records a picture of a chat: a real one, on a pseudo-terminal, as an SVG file.

    python scripts/chat_picture.py OUT.svg MODEL_DIR LINE...

Needs the extra `test`. Each LINE is said as a user would type it; the picture is of the
screen after the last answer.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.terminal import Terminal

COLUMNS, ROWS = 96, 30


def main(out: str, model: str, *lines: str) -> None:
    """Hold the chat, and write the picture."""
    flags = ["--chat", "--temperature", "0", "--model", model]
    with (
        tempfile.TemporaryDirectory() as home,
        Terminal(["inference", *flags], {"XDG_STATE_HOME": home}, ROWS, COLUMNS) as user,
    ):
        user.prompt()
        for line in lines:
            user.say(line)
        shown = user.styled()
    with open("/dev/null", "w") as nowhere:  # noqa: PTH123 -- a device
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        for row in shown:
            text = Text()
            for data, colour, bold in row:
                text.append(data, f"{'bold ' if bold else ''}{colour}".strip())
            console.print(text, no_wrap=True, crop=True)
        # No font from elsewhere: a picture in a README may load none.
        form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        Path(out).write_text(console.export_svg(title="infer --chat", code_format=form), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
