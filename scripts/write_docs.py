"""Writes what the documents show of the commands: both help texts, and the options by mode.

    python scripts/write_docs.py

A test holds the documents to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from convert.cli import parser as convert_parser
from inference.flags import parser as infer_parser
from inference.options import markdown

_ROOT = Path(__file__).parents[1]
_TABLE = re.compile(r"^\| (option|选项) \|.*?\n(?=\n)", re.DOTALL | re.MULTILINE)


def documents() -> dict[Path, str]:
    """Every document that shows something of the commands, as it should be."""
    found = {_ROOT / "docs" / "commands.md": _commands()}
    for name in ("README.md", "README.zh-CN.md"):
        path = _ROOT / name
        text = path.read_text("utf-8")
        found[path] = _TABLE.sub(lambda table: f"{markdown(table[1])}\n", text)
    return found


def _commands() -> str:
    os.environ["COLUMNS"] = "100"
    parts = ["# Commands", "What `convert --help` and `infer --help` print."]
    for parser in (convert_parser(), infer_parser()):
        parts += [f"## {parser.prog}", f"```\n{parser.format_help().strip()}\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, "utf-8")
