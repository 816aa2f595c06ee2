"""What a calibration needs to go on from a block: the hidden states before it, on the disk.

One file a block, its checksum in front, so that one which is torn is no state at all. Two are
kept: the results of the block before may not all be written yet. Owns the files.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoint import disk
from configs.errors import DiskError, SourceError
from convert.calibration.hessian import Floats

_KEPT = 2
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class State:
    """Before a block.

    Attributes:
        number: Of the block; the number of blocks for what is after the last.
        hidden: What the source's blocks have made of the text, and ours: [2, rows, positions,
            hidden].
        outcomes: How the layers before came out, by name.
    """

    number: int
    hidden: Floats
    outcomes: dict[str, Any]


class States:
    """The states of a calibration.

    Args:
        folder: Where they lie; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State) -> None:
        """Write one, and remove those that are no longer needed.

        Raises:
            DiskError: it can't be written.
        """
        if not disk.is_there(self._folder):
            disk.make_folder(self._folder)
        data = np.ascontiguousarray(state.hidden)
        view = data.data.cast("B")
        head = json.dumps(
            {
                "shape": data.shape,
                "crc32": zlib.crc32(view),
                "outcomes": state.outcomes,
            }
        ).encode()
        path = self._path(state.number)
        if disk.is_there(path):
            disk.remove(path)
        file = disk.create(path)
        try:
            disk.write_at(file, path, len(head).to_bytes(8, "little") + head, 0)
            disk.write_at(file, path, view, 8 + len(head))
        finally:
            disk.close(file, path)
        if state.number >= _KEPT and disk.is_there(old := self._path(state.number - _KEPT)):
            disk.remove(old)

    def load(self, number: int, shape: tuple[int, ...]) -> State | None:
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
        return self._folder / f"{number:05d}.state"


def _read(file: int, path: Path, number: int, shape: tuple[int, ...]) -> State | None:
    size = disk.file_bytes(file, path)
    first = bytearray(8)
    disk.read_into(file, path, first, 0)
    length = int.from_bytes(first, "little")
    data = np.empty(shape, np.float32)
    if length > min(size, 64 * _HEAD_BYTES) or size != 8 + length + data.nbytes:
        return None
    head = bytearray(length)
    disk.read_into(file, path, head, 8)
    found = json.loads(head)
    view = data.data.cast("B")
    disk.read_into(file, path, view, 8 + length)
    if tuple(found["shape"]) != shape or found["crc32"] != zlib.crc32(view):
        return None
    return State(number, data, dict(found["outcomes"]))
