"""The file of prompts, line by line.

Owns its two forms: one JSON object a line, or one prompt a line. Knows nothing of what
the objects say.
"""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from checkpoint import disk
from checkpoint.json_file import parse_text
from configs.errors import RequestError, SourceError

_LONGEST = 64 * 2**20
_PIECE = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file of prompts that has been looked through once.

    Attributes:
        path: The file.
        form: Whether its lines are JSON objects or plain text.
        rows: How many lines are not blank.
        sha256: Of its bytes.
    """

    path: Path
    form: Literal["json", "text"]
    rows: int
    sha256: str

    def lines(self) -> Iterator[bytes]:
        """Its lines that are not blank, without their ends.

        Raises:
            DiskError: It can't be read.
            SourceError: It has other rows than it had.
        """
        rows = 0
        for line in _lines(self.path):
            if line.strip():
                rows += 1
                yield line
        if rows != self.rows:
            what = f"was changed while it was read: it had {self.rows:,} rows, and has {rows:,}"
            raise SourceError(self.path, what, "run it again with --force")

    def parse(self, line: bytes) -> dict[str, Any]:
        """One line as an object; a line of plain text becomes its prompt.

        Raises:
            SourceError: It is not valid JSON, or no object.
            RequestError: It is not UTF-8, or too long.
        """
        if len(line) > _LONGEST:
            raise RequestError("row", f"is longer than {_LONGEST:,} bytes", "shorten it")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(
                "row", f"is not valid Unicode (byte {error.start + 1})", "save it as UTF-8"
            ) from error
        if self.form == "text":
            return {"prompt": text}
        value = parse_text(text, Path("row"))
        if not isinstance(value, dict):
            raise SourceError("row", "is not a JSON object", 'write {"prompt": "..."}')
        return value


def open_source(path: Path) -> Source:
    """Look a file through: what form it has, how many rows, and its sha256.

    The form goes by the name (.jsonl, .json, .txt), else by the first line.

    Raises:
        SourceError: It holds no row, or is not a file.
        DiskError: It can't be read.
    """
    digest = hashlib.sha256()
    rows, first = 0, b""
    for line in _lines(path, digest):
        if line.strip():
            rows += 1
            first = first or line[:64].lstrip()
    if not rows:
        raise SourceError(path, "holds no prompt", 'write one a line, as {"prompt": "..."}')
    suffix = path.suffix.lower()
    is_json = suffix in (".jsonl", ".json", ".ndjson") or (
        suffix != ".txt" and first.startswith(b"{")
    )
    return Source(path, "json" if is_json else "text", rows, digest.hexdigest())


def _lines(path: Path, digest: Any = None) -> Iterator[bytes]:
    """The lines of a regular file; one that is far too long comes cut, to be refused."""
    with disk.reading(path) as file:
        size, at = disk.file_bytes(file, path), 0
        rest = bytearray()
        while at < size:
            piece = bytearray(min(_PIECE, size - at))
            disk.read_into(file, path, piece, at)
            at += len(piece)
            if digest is not None:
                digest.update(piece)
            if at == len(piece):  # a byte order mark is no part of the first prompt
                piece = piece.removeprefix(BOM_UTF8)
            *whole, last = piece.split(b"\n")
            for part in whole:
                rest += part
                yield bytes(rest).removesuffix(b"\r")
                rest.clear()
            if len(rest) <= _LONGEST:
                rest += last
        if rest:
            yield bytes(rest).removesuffix(b"\r")
