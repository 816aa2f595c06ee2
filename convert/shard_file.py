"""The staged shards: pieces written at their planned places, in whatever order they come.

A shard is opened when it is first needed and synced once it is complete; few are open
at a time. Owns the staged shard files only; what is in them already, the journal knows.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import mlx.core as mx

from checkpoint import disk
from configs.errors import DiskError
from convert.blocks import Piece
from convert.plan import Shard

_OPEN_FILES = 16
_CHUNK = 4 << 20
_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


class ShardFiles:
    """The shards of a staged folder, new or half made; a context manager that closes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        while self._open:  # none, unless something went wrong already
            with suppress(DiskError):
                self._close(next(iter(self._open)), synced=False)

    def write(self, shard: Shard, piece: Piece, rows: mx.array) -> int:
        """Write a piece.

        Args:
            shard: The shard it belongs to.
            piece: Which.
            rows: What `as_stored` made of it.

        Returns:
            The CRC-32 of its bytes.

        Raises:
            DiskError: the disk is full, or the write failed; the tensor is named.
        """
        # MLX's stubs leave out that arrays are buffers.
        data = memoryview(rows).cast("B")  # type: ignore[arg-type]
        if len(data) != piece.nbytes:
            raise ValueError(f"{piece.tensor}: {len(data)} bytes where {piece.nbytes} are planned")
        file, path = self._file(shard)
        try:
            disk.write_at(file, path, data, piece.offset)
        except DiskError as error:
            where = f"{path} ({piece.tensor})"
            raise DiskError(where, error.what, error.mend) from error.__cause__
        return zlib.crc32(data)

    def has(self, shard: Shard) -> bool:
        """Whether the shard's file is there, complete or not."""
        return disk.is_there(self._folder / shard.file)

    def checksum(self, shard: Shard, piece: Piece) -> int:
        """The CRC-32 of a piece as it reads back.

        Raises:
            DiskError: it can't be read.
        """
        file, path = self._file(shard)
        if len(self._buffer) < min(piece.nbytes, _CHUNK):
            self._buffer = bytearray(min(piece.nbytes, _CHUNK))
        checksum = 0
        for part in read_piece(file, path, piece, self._buffer):
            checksum = zlib.crc32(part, checksum)
        return checksum

    def finish(self, shard: Shard) -> None:
        """Wait until a shard to which nothing will be added is on the disk, and close it.

        Raises:
            DiskError: it is not, and the file is gone.
        """
        self._file(shard)
        self._close(shard.file, synced=True)

    def _close(self, name: str, *, synced: bool) -> None:
        """Close a shard.

        After a sync or a close that failed nobody can tell what is on the disk, as the
        system may go on showing what it lost; so the file is removed.
        """
        file, path = self._open.pop(name), self._folder / name
        try:
            try:
                if synced:
                    disk.fsync(file, path)
            finally:
                disk.close(file, path)
        except DiskError:
            with suppress(DiskError):
                disk.remove(path)
            raise

    def _file(self, shard: Shard) -> tuple[int, Path]:
        """A shard's descriptor and path; opened, and made if it must be."""
        path = self._folder / shard.file
        if shard.file in self._open:
            self._open.move_to_end(shard.file)
            return self._open[shard.file], path
        while len(self._open) >= _OPEN_FILES:
            self._close(next(iter(self._open)), synced=False)
        file = disk.open_write(path) if disk.is_there(path) else disk.create(path)
        self._open[shard.file] = file
        disk.truncate(file, path, shard.nbytes)
        disk.write_at(file, path, shard.header, 0)
        return file, path


def read_piece(file: int, path: Path, piece: Piece, buffer: bytearray) -> Iterator[memoryview]:
    """The bytes of a piece of an open shard, one part after another in the same buffer.

    Raises:
        DiskError: it can't be read.
        SourceError: the file ends too early.
    """
    for at in range(0, piece.nbytes, len(buffer) or 1):
        part = memoryview(buffer)[: min(len(buffer), piece.nbytes - at)]
        disk.read_into(file, path, part, piece.offset + at)
        yield part


def as_stored(array: mx.array) -> mx.array:
    """The array in C order as unsigned integers, whose buffer is what a file holds."""
    return mx.contiguous(array).view(_UNSIGNED[array.itemsize])
