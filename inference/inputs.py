"""What files and stdin give: the text of a prompt, the token ids of a text.

Owns how they are read, and what is no text or no ids. Knows nothing of models.

A file that can't be read, or that is not of its form (UTF-8, a JSON array of ids), is bad
input: exit 1. What can be read and can't be honoured (blank, too large; later beyond the
context or the vocabulary) is a wrong request: exit 2, however it was given; so is text of
the command line itself that is not Unicode.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from configs.errors import RequestError, SourceError, UsageError

_LARGEST = 256 * 2**20


def read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The prompt's text, exactly as it is given, but for a byte order mark before it.

    Args:
        prompt: The text itself; "-" for stdin.
        prompt_file: The path of a file, in place of it; "-" for stdin.

    Raises:
        UsageError: There is none.
        RequestError: It is blank, too large, or text of the command line that is not Unicode.
        SourceError: A file or stdin that is not UTF-8.
    """
    if prompt_file == "-":
        prompt, prompt_file = "-", None
    if prompt_file is not None:
        where = prompt_file
        with Path(where).open("rb") as file:
            text = _decoded(file.read(_LARGEST + 1), where)
    elif prompt == "-":
        where = "stdin"
        if sys.stdin is None:
            raise UsageError("--prompt -", "stdin is closed", "give --prompt TEXT")
        text = _decoded(sys.stdin.buffer.read(_LARGEST + 1), where)
    elif prompt is None:
        raise UsageError("--prompt", "no prompt given", "give --prompt TEXT, or - for stdin")
    else:
        from inference.request import check_text

        where, text = "--prompt", check_text("--prompt", prompt)
    if not text.strip():
        raise RequestError(where, "is blank", "say something")
    return text


def read_ids(path: Path) -> list[int]:
    """Token ids, from a JSON array.

    Raises:
        SourceError: It is not one.
        DiskError: It can't be read.
    """
    from checkpoint.disk import read_whole
    from checkpoint.json_file import parse

    found: Any = parse(read_whole(path, _LARGEST), path)
    if not isinstance(found, list) or not found:
        raise SourceError(path, "is not a JSON array of token ids", "write [1, 2, 3]")
    for item in found:
        if isinstance(item, bool) or not isinstance(item, int):
            raise SourceError(path, f"holds {item!r}, which is not a token id", "write [1, 2, 3]")
    return found


def _decoded(data: bytes, where: str) -> str:
    if len(data) > _LARGEST:
        raise RequestError(where, f"is larger than {_LARGEST} bytes", "shorten it")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise SourceError(
            where, f"is not valid Unicode (byte {error.start + 1})", "save it as UTF-8"
        ) from error
