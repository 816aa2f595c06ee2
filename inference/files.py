"""The files that a command line names: read or written, never both.

Owns what is refused of their names before any work is done. Knows nothing of what is in them.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from checkpoint import disk
from configs.errors import DestinationError, UsageError

_NAMED = (
    "model",
    "prompt_file",
    "batch",
    "output",
    "session",
    "text_file",
    "ids_file",
    "html",
)
# What is written, and what is read beside it.
_APART = (("output", "batch"), ("html", "text_file"), ("html", "ids_file"))
_NOT_STDIN = {
    "batch": "it is read twice, first to count its rows; give a file",
    "ids_file": "give a file",
}


def check_names(args: Namespace) -> None:
    """Refuse names that can't be meant.

    Raises:
        UsageError: An empty one, stdin where it can't be read, or a file to be written that is
            also read.
    """
    for name in _NAMED:
        if getattr(args, name) == "":
            raise UsageError(_flag(name), "is an empty name", "give a path")
    for name, mend in _NOT_STDIN.items():
        if getattr(args, name) == "-":
            raise UsageError(_flag(name), "can't be read from stdin", mend)
    for written, read in _APART:
        given, other = getattr(args, written), getattr(args, read)
        if given is not None and other is not None and _same(given, other):
            raise UsageError(
                _flag(written), f"{given} is the file that {_flag(read)} reads", "give another name"
            )


def check_place(path: Path) -> None:
    """Refuse a file that can't be written once the work is done.

    Raises:
        DestinationError: It is a folder, or there is no folder to put it in.
        DiskError: That can't be told.
    """
    if disk.is_folder(path):
        raise DestinationError(path, "is a folder", "give the name of a file")
    if not disk.is_folder(path.parent):
        raise DestinationError(path, f"there is no folder {path.parent}", "make it first")


def _same(path: str, other: str) -> bool:
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):  # one of them is not there
        return False


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
