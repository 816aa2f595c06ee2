"""The journal of a conversion: which blocks lie in the staged shards, and their CRC-32s.

A text file. The first line says what is being made; every other line is one finished
block: its number, and the CRC-32 of each of its pieces as they were handed over.

    {"journal": "1", "the source": "5f0c...", "the options": "91aa...", ...}
    0 8d2c70fa 1b0e44c2 77d1039b
    1 02f6a1d4 9ac3be10 c0ffee42

A line is a claim and no proof, because nothing is synced before it is written: whoever
goes on from here reads the blocks back first and forgets those that differ. So a line
that is torn, lost or garbled costs a block, never the result. Knows nothing of shards.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from checkpoint import disk
from convert.blocks import Block, Blocks, Piece

_FORMAT = {"journal": "1"}
_LINE = re.compile(rb"(\d{1,12})((?: [0-9a-f]{8})+)\n")
_CHUNK = 1 << 20


class Journal:
    """Which blocks are finished: in memory, and on the disk for the next run.

    Nothing is until `begin` or `resume` is called, once.
    """

    def __init__(self, path: Path, blocks: Blocks) -> None:
        self._path = path
        self._blocks = blocks
        self._finished = bytearray(blocks.count)
        self._checksums = array("I", bytes(4 * blocks.pieces))
        self._file: int | None = None
        self._end = 0

    def begin(self, made_of: Mapping[str, str]) -> None:
        """Start a new file.

        Args:
            made_of: What the blocks' bytes depend on: names and digests.

        Raises:
            DiskError: it can't be written, or is there already.
        """
        self._file = disk.create(self._path)
        self._append(json.dumps(_FORMAT | dict(made_of)))

    def resume(self) -> None:
        """Take over what the file claims, and go on writing behind it.

        Raises:
            DiskError: it can't be read or written.
        """
        self._file = disk.open_write(self._path)
        for line in _lines(self._file, self._path):
            self._end += len(line)
            if claim := _LINE.fullmatch(line):
                self._take(int(claim[1]), [int(each, 16) for each in claim[2].split()])
        disk.truncate(self._file, self._path, self._end)

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file is not None:
            file, self._file = self._file, None
            disk.close(file, self._path)

    def add(self, block: Block, checksums: Sequence[int]) -> None:
        """Record a block whose pieces, with these CRC-32s, have been written.

        Raises:
            DiskError: the line can't be written.
        """
        self._append(" ".join([f"{block.number}", *(f"{each:08x}" for each in checksums)]))
        self._take(block.number, checksums)

    def forget(self, block: Block) -> None:
        """Take a block for unfinished, in this run."""
        self._finished[block.number] = False

    def has(self, block: Block) -> bool:
        """Whether the block is finished."""
        return bool(self._finished[block.number])

    def checksum(self, piece: Piece) -> int:
        """The CRC-32 of a piece of a finished block."""
        return self._checksums[piece.number]

    @property
    def finished_bytes(self) -> int:
        """Bytes of the finished blocks."""
        plan = self._blocks.plan
        each = (block for parameter in plan.parameters for block in self._blocks.of(parameter))
        return sum(block.nbytes for block in each if self.has(block))

    def _take(self, number: int, checksums: Sequence[int]) -> None:
        pieces = self._blocks.pieces_of(number)
        if len(pieces) == len(checksums):
            self._checksums[pieces.start : pieces.stop] = array("I", checksums)
            self._finished[number] = True

    def _append(self, text: str) -> None:
        if self._file is None:
            raise ValueError("the journal was neither begun nor resumed")
        line = f"{text}\n".encode()
        disk.write_at(self._file, self._path, line, self._end)
        self._end += len(line)


def read_made_of(path: Path) -> dict[str, str] | None:
    """What the blocks of a journal depend on; None if there is no journal that one can use.

    Raises:
        DiskError: it can't be read.
    """
    if not disk.is_there(path):
        return None
    with disk.reading(path) as file:
        lines = _lines(file, path)
        try:
            found = json.loads(next(lines, b""))
        except ValueError:
            return None
        if not isinstance(found, dict) or not any(_LINE.fullmatch(line) for line in lines):
            return None
    made_of = {name: value for name, value in found.items() if name not in _FORMAT}
    return made_of if found == _FORMAT | made_of else None


def _lines(file: int, path: Path) -> Iterator[bytes]:
    """The whole lines of a file, each with its newline; what is behind the last was torn."""
    size, at, rest = disk.file_bytes(file, path), 0, b""
    while at < size:
        chunk = bytearray(min(_CHUNK, size - at))
        disk.read_into(file, path, chunk, at)
        at += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
