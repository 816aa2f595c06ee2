"""Reads files once, for their digest and for the values in them, within constant memory.

Owns the threads that read and hash while MLX looks at what was read before. Knows
nothing of what a digest should be or of what a folder should hold.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import mlx.core as mx

from checkpoint import disk
from checkpoint.digests import Digest, Hasher
from configs.command import escape
from configs.errors import FerryError

_CHUNK = 4 << 20
_MOST_AT_ONCE = 4
_CODES: dict[int, Literal["B", "H", "I"]] = {1: "B", 2: "H", 4: "I"}


@dataclass(frozen=True)
class Bits:
    """Which bits, all set, make an element infinite or NaN.

    Attributes:
        item_bytes: Bytes of an element.
        mask: Those bits.
    """

    item_bytes: Literal[1, 2, 4]
    mask: int


FLOAT16 = Bits(2, 0x7C00)
BFLOAT16 = Bits(2, 0x7F80)
FLOAT32 = Bits(4, 0x7F800000)
E4M3 = Bits(1, 0x7F)
E8M0 = Bits(1, 0xFF)


@dataclass(frozen=True)
class Region:
    """A tensor in a file.

    Attributes:
        name: The tensor.
        offset: Its first byte in the file.
        nbytes: Its size.
        bits: What its values must not be; None when any bytes will do.
    """

    name: str
    offset: int
    nbytes: int
    bits: Bits | None


@dataclass(frozen=True)
class FileJob:
    """A file to read.

    Attributes:
        path: The file.
        regions: Its tensors, in the order of their bytes.
        digest: What it should hash to; None if nothing says.
        nbytes: Its size when the job was made.
    """

    path: Path
    regions: tuple[Region, ...]
    digest: Digest | None
    nbytes: int

    @property
    def to_read(self) -> int:
        """Bytes that will be read."""
        if self.digest is not None:
            return self.nbytes
        return sum(region.nbytes for region in self.regions if region.bits is not None)

    def pieces(self) -> Iterator[tuple[Region | None, int, int]]:
        """What is read at a time: the tensor it belongs to, offset and length."""
        at = 0
        for region in self.regions:
            if self.digest is not None:
                yield from _cut(None, at, region.offset)
            if self.digest is not None or region.bits is not None:
                yield from _cut(region, region.offset, region.offset + region.nbytes)
            at = region.offset + region.nbytes
        if self.digest is not None:
            yield from _cut(None, at, self.nbytes)


def _cut(region: Region | None, start: int, end: int) -> Iterator[tuple[Region | None, int, int]]:
    for at in range(start, end, _CHUNK):
        yield region, at, min(_CHUNK, end - at)


@dataclass
class FileFound:
    """What a file held.

    Attributes:
        hashed: Whether it was hashed.
        changed: What it hashed to, if that is not what it should.
        not_finite: Tensors with infinite or NaN values.
        zero: Tensors of which every byte is zero, of those whose values were looked at.
    """

    hashed: bool = False
    changed: Digest | None = None
    not_finite: list[str] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)


def read_files(
    jobs: Sequence[FileJob], progress: Callable[[str, int], None]
) -> Iterator[tuple[FileJob, FileFound | FerryError]]:
    """Read every file, several at a time; an error ends its own file only.

    Args:
        jobs: The files.
        progress: Told a file's or tensor's name and the bytes just read.
    """
    waiting = deque(jobs)
    active: deque[_Reading] = deque()
    # Memory that MLX keeps for reuse counts as ours.
    before = mx.set_cache_limit(_MOST_AT_ONCE * _CHUNK)
    try:
        with ThreadPoolExecutor(min(_MOST_AT_ONCE, os.cpu_count() or 1)) as pool:
            while waiting or active:
                while waiting and len(active) < _MOST_AT_ONCE:
                    active.append(_Reading(waiting.popleft(), pool))
                reading = active.popleft()
                try:
                    done = reading.advance(progress)
                except FerryError as error:
                    yield reading.job, error
                    continue
                if done is None:
                    active.append(reading)
                else:
                    yield reading.job, done
    finally:
        for reading in active:
            reading.close()
        mx.set_cache_limit(before)


class _Reading:
    """One file being read: a piece is looked at here while the next one comes in."""

    def __init__(self, job: FileJob, pool: ThreadPoolExecutor) -> None:
        self.job = job
        self._pool = pool
        self._pieces = job.pieces()
        self._hash = None if job.digest is None else Hasher(job.digest, job.nbytes)
        self._buffers = bytearray(), bytearray()
        self._turn = 0
        self._file: int | None = None
        self._seen: dict[str, list[int]] = {}
        self._next: Future[tuple[Region | None, memoryview] | None] = pool.submit(self._read)

    def advance(self, progress: Callable[[str, int], None]) -> FileFound | None:
        """Take the piece that was read and ask for the next; gives what was found at the end.

        Raises:
            DiskError: The file can't be read.
            SourceError: It is not a regular file, or ends too early.
        """
        try:
            piece = self._next.result()
        except FerryError:
            self.close()
            raise
        if piece is None:
            self.close()
            return self._found()
        self._next = self._pool.submit(self._read)
        region, data = piece
        if region is not None and region.bits is not None:
            self._look(region, region.bits, data)
        progress(escape(self.job.path.name if region is None else region.name), len(data))
        return None

    def close(self) -> None:
        """Let go of the file, once nobody reads it any more."""
        self._next.cancel()
        with contextlib.suppress(FerryError):
            if not self._next.cancelled():
                self._next.exception()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self) -> tuple[Region | None, memoryview] | None:
        """In a thread: the next piece, hashed; None at the end."""
        if self._file is None:
            self._file = disk.open_read(self.job.path)
        piece = next(self._pieces, None)
        if piece is None:
            return None
        region, offset, length = piece
        self._turn = 1 - self._turn
        buffer = self._buffers[self._turn]
        if len(buffer) < length:
            buffer.extend(bytes(length - len(buffer)))
        data = memoryview(buffer)[:length]
        disk.read_into(self._file, self.job.path, data, offset)
        if self._hash is not None:
            self._hash.update(data)
        return region, data

    def _look(self, region: Region, bits: Bits, data: memoryview) -> None:
        """Keep the highest of the masked bits, and of all bits, that a tensor has."""
        # MLX's stubs leave out that it takes buffers.
        values = mx.array(data.cast(_CODES[bits.item_bytes]))  # type: ignore[arg-type]
        highest = mx.stack([mx.max(values & bits.mask), mx.max(values)])
        before = self._seen.get(region.name, [0, 0])
        self._seen[region.name] = list(map(max, before, highest.tolist()))  # type: ignore[arg-type]

    def _found(self) -> FileFound:
        found = FileFound(hashed=self._hash is not None)
        if self._hash is not None and not self._hash.matches:
            found.changed = self._hash.found
        for region in self.job.regions:
            if region.bits is not None and region.name in self._seen:
                worst, highest = self._seen[region.name]
                if worst == region.bits.mask:
                    found.not_finite.append(region.name)
                if not highest:
                    found.zero.append(region.name)
        return found
