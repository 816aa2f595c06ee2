"""Reads a staged folder back and holds it against the plan.

Every byte is read again: headers must be the planned ones, tensors must have the
CRC-32 they had when handed over, and each file gets its sha256 for the receipt.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from checkpoint import disk
from checkpoint.shards import read_catalog
from configs.errors import VerifyError
from convert.plan import Plan, Shard

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


def verify_shards(folder: Path, plan: Plan, checksums: Mapping[str, int]) -> tuple[FileDigest, ...]:
    """Re-read every shard.

    Args:
        folder: The staged folder.
        plan: What should be there.
        checksums: CRC-32 of every tensor as it was written.

    Raises:
        VerifyError: something differs.
        DiskError: a file can't be read.
    """
    catalog = read_catalog(folder)
    planned = {tensor.name: tensor for shard in plan.shards for tensor in shard.tensors}
    if set(catalog) != set(planned):
        raise VerifyError(folder, "holds other tensors than planned")
    for name, ref in catalog.items():
        if (ref.dtype, ref.shape) != (planned[name].dtype, planned[name].shape):
            raise VerifyError(ref.file, f"{name} has another dtype or shape than planned")
    # hashlib and zlib let other threads run.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(lambda shard: _verify_shard(folder, shard, checksums), plan.shards))


def _verify_shard(folder: Path, shard: Shard, checksums: Mapping[str, int]) -> FileDigest:
    path = folder / shard.file
    nbytes = {tensor.name: tensor.nbytes for tensor in shard.tensors}
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with disk.reading(path) as file:
        if disk.file_bytes(file, path) != shard.nbytes:
            raise VerifyError(path, "has another size than planned")
        head = bytearray(len(shard.header))
        disk.read_into(file, path, head, 0)
        if head != shard.header:
            raise VerifyError(path, "has another header than planned")
        digest.update(head)
        for name, start in shard.offsets.items():
            checksum = 0
            for at in range(0, nbytes[name], _CHUNK):
                piece = buffer[: min(_CHUNK, nbytes[name] - at)]
                disk.read_into(file, path, piece, start + at)
                digest.update(piece)
                checksum = zlib.crc32(piece, checksum)
            if checksum != checksums[name]:
                raise VerifyError(
                    path, f"{name} reads back otherwise than it was written", "check the disk"
                )
    return FileDigest(shard.file, shard.nbytes, digest.hexdigest())


def digest_file(path: Path, name: str) -> FileDigest:
    """The sha256 of a small file, under the name it has in the folder."""
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(name, path.stat().st_size, value)
