"""The file of answers: one line a row, in the order of the rows, safe to interrupt.

While a batch is not finished, a small file beside the output says what it is of, so that
the same command goes on after the last whole line and no other does. Knows nothing of
what the lines say, but that they are JSON.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from checkpoint import disk
from configs.errors import DestinationError, SourceError, UsageError
from inference.terminal import Output

_SYNC_SECONDS = 1.0
_PIECE = 1 << 20
_LARGEST_NOTE = 1 << 20


class Rows(Protocol):
    """Takes the answers of rows as they come, and gives them out in order."""

    def put(self, index: int, record: Mapping[str, Any]) -> None:
        """Take one row's answer."""


@dataclass
class Printed:
    """Rows on stdout; nothing to go on from."""

    output: Output
    _next: int = 0
    _early: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def put(self, index: int, record: Mapping[str, Any]) -> None:
        self._early[index] = record
        while self._next in self._early:
            self.output.json(self._early.pop(self._next))
            self._next += 1


@dataclass
class Written:
    """Rows in a file, synced about once a second.

    Attributes:
        path: The file.
        done: Rows that are in it.
        failed: How many of them are errors.
    """

    path: Path
    done: int
    failed: int
    _file: int
    _size: int
    _early: dict[int, bytes] = field(default_factory=dict)
    _synced: float = field(default_factory=time.monotonic)

    def put(self, index: int, record: Mapping[str, Any]) -> None:
        self._early[index] = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        while (line := self._early.pop(self.done, None)) is not None:
            disk.write_at(self._file, self.path, line + b"\n", self._size)
            self._size += len(line) + 1
            self.done += 1
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            disk.fsync(self._file, self.path)
            self._synced = time.monotonic()

    def close(self, *, finished: bool) -> None:
        """Sync and close; a finished batch forgets that it was one.

        Raises:
            DiskError: The last rows may not be on the disk.
        """
        try:
            disk.fsync(self._file, self.path)
        finally:
            disk.close(self._file, self.path)
        if finished:
            disk.remove(_beside(self.path))
            disk.fsync_folder(self.path.parent)


def open_output(path: Path, about: Mapping[str, Any], *, force: bool) -> Written:
    """Begin an output, or go on with the one that the same command has left.

    Args:
        path: The file.
        about: What the batch is of; another `about` is another batch.
        force: Replace whatever is there.

    Raises:
        UsageError: The file is there and not this batch's to go on with.
        DestinationError: Another process is writing it.
        SourceError: What is there was changed by somebody else.
        DiskError: It can't be written.
    """
    path = Path(os.path.realpath(path))  # a link is written through, and stays
    note = _beside(path)
    if force or not disk.is_there(path):
        return _begin(path, note, about)
    if not disk.is_there(note):
        raise UsageError("--output", f"{path} exists already", "replace it with --force")
    known = disk.read_whole(note, _LARGEST_NOTE)
    if known != _encoded(about):
        raise UsageError(
            "--output",
            f"{path} was begun with other prompts, another model or other options",
            "give those again, or start over with --force",
        )
    return _go_on(path)


def _begin(path: Path, note: Path, about: Mapping[str, Any]) -> Written:
    if disk.is_there(path):
        _locked(path, disk.open_write(path), close=True)
        disk.remove(path)
    if disk.is_there(note):
        disk.remove(note)
    disk.write_whole(note, _encoded(about))
    file = _locked(path, disk.create(path))
    disk.fsync_folder(path.parent)
    return Written(path, 0, 0, file, 0)


def _go_on(path: Path) -> Written:
    """After the last whole line; what follows it was being written when the batch ended."""
    file = _locked(path, disk.open_write(path))
    size, at, rest = disk.file_bytes(file, path), 0, bytearray()
    done = failed = whole = 0
    while at < size:
        piece = bytearray(min(_PIECE, size - at))
        disk.read_into(file, path, piece, at)
        at += len(piece)
        rest += piece
        *lines, last = rest.split(b"\n")
        for line in lines:
            failed += _is_failed(bytes(line), path, done)
            done += 1
            whole += len(line) + 1
        rest = bytearray(last)
    disk.truncate(file, path, whole)
    return Written(path, done, failed, file, whole)


def _is_failed(line: bytes, path: Path, index: int) -> bool:
    try:
        record = json.loads(line)
        if record.get("index", index) != index:
            raise ValueError
    except (ValueError, AttributeError) as error:
        raise SourceError(
            path, f"line {index + 1} is not row {index} of this batch", "start over with --force"
        ) from error
    return record.get("error") is not None


def _locked(path: Path, file: int, *, close: bool = False) -> int:
    if not disk.lock(file, path):
        disk.close(file, path)
        raise DestinationError(path, "another process is writing it", "wait for it")
    if close:
        disk.close(file, path)
    return file


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.ferry-batch")


def _encoded(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, sort_keys=True, default=str).encode() + b"\n"
