"""Whether local files are what their source says they are.

Owns the check of sizes and hashes, several files at once, and the memory of what was
checked: a file is hashed again only when its path, size, time or inode has changed.
Knows nothing of how the files got there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from checkpoint import disk, own_cache
from checkpoint.at_once import StoppedError, at_once
from checkpoint.byte_bar import byte_bar
from checkpoint.digests import Digest, Hasher
from configs.errors import SourceError

_BLOCK = 1 << 22
_KIND = "checked"


@dataclass(frozen=True)
class Expected:
    """A local file, and what its source says of it.

    Attributes:
        path: Where it lies; links are followed.
        size: Its bytes, if the source says.
        digest: Its hash, if the source says.
    """

    path: Path
    size: int | None
    digest: Digest | None


def check_files(files: Iterable[Expected], source: str, *, quiet: bool) -> None:
    """Hold files to their sizes and hashes.

    Args:
        files: What to check; those of which nothing is known pass.
        source: Whose word they are held to, for messages: "the hub".
        quiet: Say nothing of it on stderr.

    Raises:
        SourceError: A file is not what it should be; all such files are named.
        DiskError: One can't be read.
    """
    problems: list[tuple[Path, str]] = []
    pending: list[tuple[Path, int, Digest]] = []
    for real, expected in {os.path.realpath(one.path): one for one in files}.items():
        path = Path(real)
        with disk.reading(path) as fd:
            size = disk.file_bytes(fd, path)
        if expected.size is not None and size != expected.size:
            what = f"has {size:,} bytes, {source}'s has {expected.size:,}"
            problems.append((path, what))
        elif expected.digest is not None and not _is_known(path, expected.digest):
            pending.append((path, size, expected.digest))
    if pending and not problems:
        total = sum(size for _, size, _ in pending)
        with byte_bar(f"checking {_count(pending)}", total, quiet=quiet, always=True) as tell:
            problems = _hash_all(pending, source, tell)
    if problems:
        path, what = problems[0]
        others = "".join(f" and {other}" for other, _ in problems[1:])
        raise SourceError(path, f"is damaged: it {what}", f"delete it{others} and run this again")


def _count(files: Sequence[object]) -> str:
    return f"{len(files)} files" if len(files) != 1 else "1 file"


def remember(path: Path, digest: Digest) -> None:
    """Note that the file, as it is now, has this hash."""
    real = os.path.realpath(path)
    state = _state(Path(real))
    if state is not None:
        own_cache.note_down(_KIND, real, state | {"digest": [digest.kind, digest.value]})


def _hash_all(
    pending: Sequence[tuple[Path, int, Digest]], source: str, tell: Callable[[int], None]
) -> list[tuple[Path, str]]:
    """Hash files in threads; gives those that are not what they should be."""

    def check(item: tuple[Path, int, Digest], stop: Event) -> tuple[Path, str] | None:
        path, size, digest = item
        before = _state(path)
        hasher = hash_file(path, digest, size, tell, stop)
        if not hasher.matches:
            return path, f"has {hasher.found}, {source}'s has {digest}"
        if before is not None and before == _state(path):
            remember(path, digest)
        return None

    return [problem for problem in at_once(check, pending) if problem is not None]


def hash_file(
    path: Path,
    digest: Digest,
    size: int,
    tell: Callable[[int], None],
    stop: Event,
) -> Hasher:
    """Hash a file of `size` bytes, telling of every block; an event stops it half way."""
    hasher = Hasher(digest, size)
    block = bytearray(min(size, _BLOCK))
    with disk.reading(path) as fd:
        for start in range(0, size, _BLOCK):
            if stop.is_set():
                raise StoppedError
            view = memoryview(block)[: min(_BLOCK, size - start)]
            disk.read_into(fd, path, view, start)
            hasher.update(view)
            tell(len(view))
    return hasher


def _is_known(path: Path, digest: Digest) -> bool:
    noted = own_cache.recall(_KIND, str(path))
    state = _state(path)
    if state is None or noted.get("digest") != [digest.kind, digest.value]:
        return False
    return all(noted.get(key) == value for key, value in state.items())


def _state(path: Path) -> dict[str, int] | None:
    """What changes whenever the file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino}
