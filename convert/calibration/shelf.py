"""Numbers put aside while a block is worked on: in memory while they are few, else on the disk.

Each array lies under a key and can be written and read some rows at a time. Files are read
into NumPy's own memory before anything is computed from them, and each read and write opens
its file anew: an open file for every array would be too many for some systems. Owns where
things lie; nothing of it outlives the process that wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoint import disk
from convert.calibration.hessian import Floats

IN_MEMORY = 128 << 20
_SUFFIX = ".shelf"

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class _Filed:
    path: Path
    shape: tuple[int, ...]


class Shelf:
    """What is put aside.

    Args:
        folder: Where files go; made when the first is written. Those of earlier processes are
            removed.
        in_memory: The most bytes that are held without a file.
    """

    def __init__(self, folder: Path, in_memory: int = IN_MEMORY) -> None:
        self._folder, self._left = folder, in_memory
        self._held: dict[Key, Floats | _Filed] = {}
        self._made = 0
        if disk.is_there(folder):
            for name in disk.list_folder(folder):
                if name.endswith(_SUFFIX):
                    disk.remove(folder / name)

    def reserve(self, key: Key, shape: tuple[int, ...]) -> None:
        """Make room for an array; it is zero until it is written.

        Raises:
            DiskError: there is none on the disk.
        """
        self.drop(lambda other: other == key)
        size = 4 * math.prod(shape)
        if size <= self._left:
            self._left -= size
            self._held[key] = np.zeros(shape, np.float32)
            return
        if not disk.is_there(self._folder):
            disk.make_folder(self._folder)
        path = self._folder / f"{self._made:06d}{_SUFFIX}"
        self._made += 1
        file = disk.create(path)
        self._held[key] = _Filed(path, shape)
        try:
            disk.truncate(file, path, size)
        finally:
            disk.close(file, path)

    def write(self, key: Key, values: Floats, first_row: int = 0) -> None:
        """Write some rows, [rows, ...], of what has been reserved."""
        there = self._held[key]
        if not isinstance(there, _Filed):
            there[first_row : first_row + len(values)] = values
            return
        data = np.ascontiguousarray(values, np.float32)
        if not data.size:
            return
        file = disk.open_write(there.path)
        try:
            disk.write_at(file, there.path, data.data.cast("B"), first_row * _row_bytes(there))
        finally:
            disk.close(file, there.path)

    def put(self, key: Key, values: Floats) -> None:
        """Reserve and write an array."""
        self.reserve(key, values.shape)
        self.write(key, values)

    def has(self, key: Key) -> bool:
        """Whether something lies there."""
        return key in self._held

    def read(self, key: Key, low: int = 0, high: int | None = None) -> Floats:
        """Some rows, or all; not to be written to."""
        there = self._held[key]
        if not isinstance(there, _Filed):
            return there[low:high]
        stop = there.shape[0] if high is None else high
        values = np.empty((stop - low, *there.shape[1:]), np.float32)
        if values.size:
            with disk.reading(there.path) as file:
                at = low * _row_bytes(there)
                disk.read_into(file, there.path, values.data.cast("B"), at)
        return values

    def drop(self, which: Callable[[Key], bool] = lambda key: True) -> None:
        """Forget the arrays under some keys, or all."""
        for key in [key for key in self._held if which(key)]:
            there = self._held.pop(key)
            if isinstance(there, _Filed):
                disk.remove(there.path)
            else:
                self._left += there.nbytes


def _row_bytes(there: _Filed) -> int:
    return 4 * math.prod(there.shape[1:])
