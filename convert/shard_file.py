"""Writes shards: the header first, then tensors block by block at known offsets.

Keeps a CRC-32 of every tensor as it was handed over, so that what is read back
can be held against what was meant. Owns the staged shard files only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

from checkpoint import disk
from convert.plan import Shard

_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


class ShardFile:
    """One shard being written.

    Attributes:
        checksums: CRC-32 of each tensor's bytes so far.
    """

    def __init__(self, file: int, path: Path, shard: Shard) -> None:
        self._file = file
        self._path = path
        self._at = dict(shard.offsets)
        self.checksums = dict.fromkeys(shard.offsets, 0)

    def append(self, name: str, rows: mx.array) -> int:
        """Write the next rows of a tensor; gives the number of bytes.

        Args:
            name: The tensor.
            rows: What `as_stored` made of them.

        Raises:
            DiskError: the disk is full, or the write failed.
        """
        # MLX's stubs leave out that arrays are buffers.
        data = memoryview(rows).cast("B")  # type: ignore[arg-type]
        disk.write_at(self._file, self._path, data, self._at[name])
        self._at[name] += len(data)
        self.checksums[name] = zlib.crc32(data, self.checksums[name])
        return len(data)


@contextmanager
def open_shard(folder: Path, shard: Shard) -> Iterator[ShardFile]:
    """A new shard with its header written; synced and closed at the end.

    Raises:
        DiskError: it can't be made, synced or closed.
    """
    path = folder / shard.file
    file = disk.create(path)
    try:
        disk.truncate(file, path, shard.nbytes)
        disk.write_at(file, path, shard.header, 0)
        yield ShardFile(file, path, shard)
        disk.fsync(file, path)
    finally:
        disk.close(file, path)


def as_stored(array: mx.array) -> mx.array:
    """The array in C order as unsigned integers, whose buffer is what a file holds."""
    return mx.contiguous(array).view(_UNSIGNED[array.itemsize])
