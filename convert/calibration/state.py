"""What a calibration needs to go on from a block: the hidden states before it, on the disk.

One file a block, written some rows at a time and closed with its checksums, so that one which
is torn is no state at all. It is also where a block's hidden states are read from. Two are
kept: the results of the block before may not all be written yet. Owns the files.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoint import disk
from configs.errors import DiskError, SourceError
from convert.calibration.hessian import Floats

_KEPT = 2
_MOST_HEAD_BYTES = 64 << 20
_LENGTH_BYTES = 8

Shape = tuple[int, int, int]
"""Rows, positions, hidden."""


@dataclass(frozen=True)
class State:
    """Before a block.

    Attributes:
        number: Of the block; the number of blocks for what is after the last.
        path: Of its file: what the source's blocks have made of the text, and then what ours
            have, each [rows, positions, hidden] float32, and a closing.
        shape: Of each.
        outcomes: How the layers before came out, by name.
    """

    number: int
    path: Path
    shape: Shape
    outcomes: dict[str, Any]

    def read(self, side: int, low: int, high: int) -> Floats:
        """Some rows of the source's (side 0) or of ours (1).

        Raises:
            DiskError: they can't be read.
        """
        with disk.reading(self.path) as file:
            return _rows(file, self.path, self.shape, side, low, high)


class Draft:
    """A state that is being written.

    Args:
        number: Of the block.
        path: Of the file, which is not there.
        shape: Of each side.
    """

    def __init__(self, number: int, path: Path, shape: Shape) -> None:
        self._number, self._path, self.shape = number, path, shape
        self._sums: list[tuple[int, int, int, int]] = []
        disk.close(disk.create(path), path)

    def write(self, side: int, low: int, values: Floats) -> None:
        """Some rows of a side, from `low` on.

        Raises:
            DiskError: they can't be written.
        """
        data = np.ascontiguousarray(values, np.float32).data.cast("B")
        self._write(data, _offset(self.shape, side, low))
        self._sums.append((side, low, low + len(values), zlib.crc32(data)))

    def finish(self, outcomes: dict[str, Any]) -> State:
        """Close it.

        Raises:
            DiskError: that can't be written.
        """
        found = {"shape": self.shape, "crc32": self._sums, "outcomes": outcomes}
        head = json.dumps(found).encode()
        closing = head + len(head).to_bytes(_LENGTH_BYTES, "little")
        self._write(closing, _offset(self.shape, 2, 0))
        return State(self._number, self._path, self.shape, dict(outcomes))

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        file = disk.open_write(self._path)
        try:
            disk.write_at(file, self._path, data, offset)
        finally:
            disk.close(file, self._path)


class States:
    """The states of a calibration.

    Args:
        folder: Where they lie; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, number: int, shape: Shape) -> Draft:
        """Begin to write one in place of what there is of it.

        Raises:
            DiskError: it can't be written.
        """
        if not disk.is_there(self.folder):
            disk.make_folder(self.folder)
        path = self._path(number)
        if disk.is_there(path):
            disk.remove(path)
        return Draft(number, path, shape)

    def tidy(self, number: int) -> None:
        """Remove those that are no longer needed once there is this one."""
        if number >= _KEPT and disk.is_there(old := self._path(number - _KEPT)):
            disk.remove(old)

    def load(self, number: int, shape: Shape) -> State | None:
        """The state before a block; None if there is none that can be used.

        Args:
            number: Of the block.
            shape: Of its hidden states.
        """
        path = self._path(number)
        try:
            if not disk.is_there(path):
                return None
            with disk.reading(path) as file:
                return _read(file, path, number, shape)
        except (DiskError, SourceError, ValueError, KeyError, TypeError):
            return None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.state"


def _offset(shape: Shape, side: int, row: int) -> int:
    return 4 * (side * shape[0] + row) * shape[1] * shape[2]


def _rows(file: int, path: Path, shape: Shape, side: int, low: int, high: int) -> Floats:
    values = np.empty((high - low, *shape[1:]), np.float32)
    disk.read_into(file, path, values.data.cast("B"), _offset(shape, side, low))
    return values


def _read(file: int, path: Path, number: int, shape: Shape) -> State | None:
    size, start = disk.file_bytes(file, path), _offset(shape, 2, 0)
    last = bytearray(_LENGTH_BYTES)
    disk.read_into(file, path, last, size - _LENGTH_BYTES)
    length = int.from_bytes(last, "little")
    if length > _MOST_HEAD_BYTES or size != start + length + _LENGTH_BYTES:
        return None
    head = bytearray(length)
    disk.read_into(file, path, head, start)
    found = json.loads(head)
    if tuple(found["shape"]) != shape:
        return None
    there = 0
    for side, low, high, crc in found["crc32"]:
        if not (side in (0, 1) and 0 <= low < high <= shape[0]):
            return None
        if zlib.crc32(_rows(file, path, shape, side, low, high).data.cast("B")) != crc:
            return None
        there += high - low
    if there != 2 * shape[0] or not math.prod(shape):
        return None
    return State(number, path, shape, dict(found["outcomes"]))
