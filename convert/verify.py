"""Reads the staged shards back and holds them against the plan and the journal.

Every byte is read again: headers must be the planned ones, each piece must have the
CRC-32 it had when handed over, and each file gets its sha256 for the receipt. Shards
that are complete are read in threads while later ones are made.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from checkpoint import disk
from checkpoint.shards import read_catalog
from configs.errors import SourceError, VerifyError
from convert.blocks import Blocks
from convert.journal import Journal
from convert.plan import Plan, Shard
from convert.shard_file import read_piece

_CHUNK = 4 << 20


@dataclass(frozen=True)
class FileDigest:
    """What a file is known by.

    Attributes:
        file: Its name in the folder.
        nbytes: Its size.
        sha256: In hexadecimal.
    """

    file: str
    nbytes: int
    sha256: str


class _Stopped(Exception):  # noqa: N818  it tells of no error
    """Nobody waits for the result any more."""


class Verification:
    """Checks complete shards in threads of its own; a context manager that ends them.

    Args:
        folder: The staged folder.
        blocks: The plan's blocks.
        journal: The CRC-32 of every piece as it was written.
    """

    def __init__(self, folder: Path, blocks: Blocks, journal: Journal) -> None:
        self._folder = folder
        self._blocks = blocks
        self._journal = journal
        self._stop = Event()
        # hashlib and zlib let other threads run.
        self._threads = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
        self._digests: dict[str, Future[FileDigest]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._threads.shutdown(cancel_futures=True)

    def start(self, shard: Shard) -> None:
        """Check a shard that is complete and synced.

        Raises:
            VerifyError, DiskError: one that was checked before is not what it should be.
        """
        for digest in self._digests.values():
            if digest.done():
                digest.result()
        self._digests[shard.file] = self._threads.submit(self._check, shard)

    def digests(self) -> tuple[FileDigest, ...]:
        """Wait for all shards of the plan; each must have been started.

        Raises:
            VerifyError: something differs.
            DiskError: a file can't be read.
        """
        return tuple(self._digests[shard.file].result() for shard in self._blocks.plan.shards)

    def _check(self, shard: Shard) -> FileDigest:
        path = self._folder / shard.file
        digest = hashlib.sha256()
        buffer = bytearray(min(_CHUNK, shard.nbytes))
        with _reading_back(), disk.reading(path) as file:
            if disk.file_bytes(file, path) != shard.nbytes:
                raise VerifyError(path, "has another size than planned")
            head = bytearray(len(shard.header))
            disk.read_into(file, path, head, 0)
            if head != shard.header:
                raise VerifyError(path, "has another header than planned")
            digest.update(head)
            for piece in self._blocks.pieces_in_order(shard):
                checksum = 0
                for part in read_piece(file, path, piece, buffer):
                    if self._stop.is_set():
                        raise _Stopped
                    digest.update(part)
                    checksum = zlib.crc32(part, checksum)
                if checksum != self._journal.checksum(piece):
                    what = f"{piece.tensor} reads back otherwise than it was written"
                    raise VerifyError(path, what, "check the disk")
        return FileDigest(shard.file, shard.nbytes, digest.hexdigest())


@contextmanager
def _reading_back() -> Iterator[None]:
    """What would be a bad source elsewhere is here a bad result."""
    try:
        yield
    except SourceError as error:
        raise VerifyError(error.where, error.what, "check the disk") from error


def verify_index(folder: Path, plan: Plan) -> None:
    """Read index and headers as any other program would, and compare them with the plan.

    Raises:
        VerifyError: a tensor is missing, or has another dtype or shape.
        DiskError: they can't be read.
    """
    with _reading_back():
        catalog = read_catalog(folder)
    planned = {tensor.name: tensor for shard in plan.shards for tensor in shard.tensors}
    if set(catalog) != set(planned):
        raise VerifyError(folder, "holds other tensors than planned")
    for name, ref in catalog.items():
        if (ref.dtype, ref.shape) != (planned[name].dtype, planned[name].shape):
            raise VerifyError(ref.file, f"{name} has another dtype or shape than planned")


def digest_file(path: Path, name: str) -> FileDigest:
    """The sha256 of a small file, under the name it has in the folder.

    Raises:
        DiskError: it can't be read.
    """
    digest = hashlib.sha256()
    with disk.reading(path) as file:
        size = disk.file_bytes(file, path)
        for at in range(0, size, _CHUNK):
            part = bytearray(min(_CHUNK, size - at))
            disk.read_into(file, path, part, at)
            digest.update(part)
    return FileDigest(name, size, digest.hexdigest())
