"""Writes shards: the header first, then tensors block by block at known offsets.

Keeps a CRC-32 of every tensor as it was handed over, so that what is read back
can be held against what was meant. Owns the staged shard files only.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

import mlx.core as mx

from checkpoint import disk
from convert.plan import Shard

_RAW = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


class ShardFile:
    """One shard being written; a context manager that syncs and closes it.

    Attributes:
        checksums: CRC-32 of each tensor's bytes so far.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._path = folder / shard.file
        self._shard = shard
        self._at = dict(shard.offsets)
        self.checksums = dict.fromkeys(shard.offsets, 0)

    def __enter__(self) -> Self:
        self._file = disk.create(self._path)
        disk.truncate(self._file, self._path, self._shard.nbytes)
        disk.write_at(self._file, self._path, self._shard.header, 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                disk.fsync(self._file, self._path)
        finally:
            disk.close(self._file, self._path)

    def append(self, name: str, block: mx.array) -> int:
        """Write the next rows of a tensor; gives the number of bytes.

        Raises:
            DiskError: the disk is full, or the write failed.
        """
        rows = mx.contiguous(block).view(_RAW[block.itemsize])  # a transposed one is not
        # MLX's stubs leave out that arrays are buffers.
        data = memoryview(rows).cast("B")  # type: ignore[arg-type]
        disk.write_at(self._file, self._path, data, self._at[name])
        self._at[name] += len(data)
        self.checksums[name] = zlib.crc32(data, self.checksums[name])
        return len(data)
