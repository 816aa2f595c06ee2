"""The one door to the file system for everything that must not fail half way.

Owns opening, reading, writing, syncing and renaming, and turns what the operating
system says into a `DiskError` that names the file. Knows nothing of what the bytes
mean. Callers write `disk.write_at(...)`, so that a test can put a fault in its place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import DiskError, SourceError

# macOS refuses a single read or write of 2 GiB or more.
_MOST_AT_ONCE = 1 << 30

# errno -> (what happened, how to mend it)
_EXPLAINED = {
    errno.ENOSPC: ("the disk is full", "free some space and run it again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run it again"),
    errno.EFBIG: ("the file system allows no file this large", "use a smaller --max-shard-size"),
    errno.EROFS: ("the file system is read-only", "choose a folder that can be written"),
    errno.EACCES: ("permission denied", "change the permissions or choose another folder"),
    errno.EPERM: ("the system does not permit it", "choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.EIO: ("the device reported an input/output error", "check the disk and the cable"),
    errno.ENOENT: ("there is no such file or folder", ""),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", ""),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n 4096`"),
    errno.ELOOP: ("the symbolic links go round in a circle", ""),
}

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_full(error: DiskError) -> bool:
    """Whether the error says that there is no room: disk, quota or file size."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    )


@contextmanager
def _doing(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text, mend = _EXPLAINED.get(error.errno or 0, (error.strerror or str(error), ""))
        raise DiskError(path, f"can't {verb}: {text}", mend) from error
    except ValueError as error:  # a NUL in the path
        raise DiskError(path, f"can't {verb}: {error}") from error


def open_read(path: Path) -> int:
    """Open a regular file; a FIFO, device or folder is refused and never waited for.

    Raises:
        SourceError: It is not a regular file.
        DiskError: It can't be opened.
    """
    with _doing("open", path):
        _refuse_special(path, path.stat().st_mode)  # to open a device may already do something
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _refuse_special(path, os.fstat(fd).st_mode)
    except SourceError:
        os.close(fd)
        raise
    return fd


def _refuse_special(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise SourceError(path, f"is {kind}, not a file", "put the real file in its place")


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """`open_read` for the length of a `with` block."""
    fd = open_read(path)
    try:
        yield fd
    finally:
        os.close(fd)


def file_bytes(fd: int, path: Path) -> int:
    """The size of an open file."""
    with _doing("read", path):
        return os.fstat(fd).st_size


def read_into(fd: int, path: Path, buffer: bytearray | memoryview, offset: int) -> None:
    """Fill the buffer from the file at `offset`.

    Raises:
        SourceError: The file ends before the buffer is full.
        DiskError: The read failed.
    """
    if not len(buffer):
        return
    view = memoryview(buffer).cast("B")
    done = 0
    while done < len(view):
        with _doing("read", path):
            got = os.preadv(fd, [view[done : done + _MOST_AT_ONCE]], offset + done)
        if not got:
            raise SourceError(
                path,
                f"ends at byte {offset + done}, before byte {offset + len(view)}",
                "it was cut short or changed while it was read: download it again",
            )
        done += got


def read_whole(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes."""
    with reading(path) as fd:
        size = file_bytes(fd, path)
        if size > limit:
            raise SourceError(path, f"is {size:,} bytes long, more than the {limit:,} allowed")
        buffer = bytearray(size)
        read_into(fd, path, buffer, 0)
    return bytes(buffer)


def create(path: Path) -> int:
    """Create a new file for reading and writing; an existing one is an error."""
    with _doing("create", path):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def open_write(path: Path) -> int:
    """Open an existing file for reading and writing; its content stays."""
    with _doing("open", path):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def write_at(fd: int, path: Path, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of the data at `offset`."""
    if not len(data):
        return
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        with _doing("write", path):
            done += os.pwrite(fd, view[done : done + _MOST_AT_ONCE], offset + done)


def truncate(fd: int, path: Path, size: int) -> None:
    """Give the file this size; what is added reads as zeros."""
    with _doing("resize", path):
        os.ftruncate(fd, size)


def fsync(fd: int, path: Path) -> None:
    """Wait until the file's bytes are on the device itself, not only in its cache."""
    with _doing("sync", path):
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)


def close(fd: int, path: Path) -> None:
    """Close a written file; some file systems report a failed write only here."""
    with _doing("close", path):
        os.close(fd)


def fsync_folder(path: Path) -> None:
    """Wait until the folder's entries (files made, renamed, removed) are on the device."""
    with _doing("sync", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """Create a file with this content, synced."""
    fd = create(path)
    try:
        write_at(fd, path, data, 0)
        fsync(fd, path)
    except DiskError:
        os.close(fd)
        raise
    close(fd, path)


def make_folder(path: Path, *, parents: bool = False) -> None:
    """Make a folder that does not exist yet."""
    with _doing("make the folder", path):
        path.mkdir(parents=parents)


def rename(path: Path, target: Path) -> None:
    """Give a file or folder another name in one step."""
    with _doing(f"rename to {target.name}", path):
        path.rename(target)


def remove(path: Path) -> None:
    """Remove a file."""
    with _doing("remove", path):
        path.unlink()


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder and what is in it; links are removed, never followed."""
    with _doing("remove", path):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


def list_folder(path: Path) -> list[str]:
    """The names in a folder, sorted."""
    with _doing("list", path):
        return sorted(os.listdir(path))


def is_folder(path: Path) -> bool:
    """Whether the path leads to a folder."""
    with _doing("look at", path):
        try:
            return stat.S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False


def free_bytes(path: Path) -> int:
    """Bytes that may still be written to the file system of an existing folder."""
    with _doing("ask for the free space of", path):
        return shutil.disk_usage(path).free
