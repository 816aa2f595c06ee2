"""The one door to the file system for everything that must not fail half way.

Owns opening, reading, writing, syncing, locking and renaming, and turns what the
operating system says into a `DiskError` that names the file. Knows nothing of what the
bytes mean. It reaches the system through its own names `os`, `fcntl` and `shutil` alone,
so that a test can put a fault in place of any call.
"""

# The methods of Path would bypass this module's `os`.
# ruff: noqa: PTH104, PTH106, PTH108, PTH116, PTH118

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from checkpoint.disk_errors import doing
from checkpoint.disk_errors import is_full as is_full
from configs.errors import DiskError, SourceError

# macOS refuses a single read or write of 2 GiB or more.
_MOST_AT_ONCE = 1 << 30

# Only macOS has it: its fsync leaves bytes in the drive's cache, which loses power too.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
# How a file system says that it has no such call; network and FUSE ones lack some.
_LACKING = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_read(path: Path) -> int:
    """Open a regular file; a FIFO, device or folder is refused and never waited for.

    Raises:
        SourceError: It is not a regular file.
        DiskError: It can't be opened.
    """
    with doing("open", path):
        _refuse_special(path, os.stat(path).st_mode)  # to open a device may already do something
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with doing("look at", path):
            _refuse_special(path, os.fstat(fd).st_mode)
    except BaseException:
        with suppress(OSError):
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
        close(fd, path)


def file_bytes(fd: int, path: Path) -> int:
    """The size of an open file."""
    with doing("read", path):
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
        with doing("read", path):
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
    with doing("create", path):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def open_write(path: Path) -> int:
    """Open an existing file for reading and writing; its content stays."""
    with doing("open", path):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def write_at(fd: int, path: Path, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of the data at `offset`."""
    if not len(data):
        return
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        with doing("write", path):
            done += os.pwrite(fd, view[done : done + _MOST_AT_ONCE], offset + done)


def truncate(fd: int, path: Path, size: int) -> None:
    """Give the file this size; what is added reads as zeros."""
    with doing("resize", path):
        os.ftruncate(fd, size)


def fsync(fd: int, path: Path) -> None:
    """Wait until the file's bytes are on the device itself, not only in its cache."""
    with doing("sync", path):
        _sync(fd)


def _sync(fd: int) -> None:
    if _FULL_SYNC is not None:
        try:
            fcntl.fcntl(fd, _FULL_SYNC)
            return
        except OSError as error:
            if error.errno not in _LACKING:
                raise
    os.fsync(fd)


def close(fd: int, path: Path) -> None:
    """Close a file; some file systems report a failed write only here."""
    with doing("close", path):
        os.close(fd)


def fsync_folder(path: Path) -> None:
    """Wait until the folder's entries (files made, renamed, removed) are on the device."""
    with doing("sync", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(fd)
        except OSError as error:
            # Where folders can't be synced there is nothing that one could do instead.
            if error.errno not in _LACKING:
                raise
        finally:
            os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """Create a file with this content, synced."""
    fd = create(path)
    try:
        write_at(fd, path, data, 0)
        fsync(fd, path)
    except BaseException:
        with suppress(OSError):
            os.close(fd)
        raise
    close(fd, path)


def replace_whole(path: Path, data: bytes) -> None:
    """Put a file with this content, synced, in the place of one that may be there."""
    new = path.with_name(f".{path.name}.{os.getpid()}.ferry")
    write_whole(new, data)
    try:
        rename(new, path)
    except DiskError:
        remove(new)
        raise
    fsync_folder(path.parent)


def open_lock(path: Path) -> int:
    """Open a file that processes lock, made if it is missing; its content stays."""
    with doing("open", path):
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(path, flags, 0o644)


def lock(fd: int, path: Path) -> bool:
    """Hold an open file for this process alone until it is closed or the process ends.

    Returns:
        False when another process holds it.
    """
    with doing("lock", path):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def is_open_at(fd: int, path: Path) -> bool:
    """Whether the path still leads to the open file, and not to another or to none."""
    with doing("look at", path):
        try:
            return os.path.samestat(os.fstat(fd), os.lstat(path))
        except (FileNotFoundError, NotADirectoryError):
            return False


def make_folder(path: Path, *, parents: bool = False, exist_ok: bool = False) -> None:
    """Make a folder, one that does not exist yet unless `exist_ok`."""
    with doing("make the folder", path):
        try:
            (os.makedirs if parents else os.mkdir)(path)
        except FileExistsError:
            if not exist_ok:
                raise


def rename(path: Path, target: Path) -> None:
    """Give a file or folder another name in one step; what has that name is replaced."""
    with doing(f"rename to {target.name}", path):
        _refuse_devices(path, target)
        os.rename(path, target)


def remove(path: Path) -> None:
    """Remove a file."""
    with doing("remove", path):
        _refuse_devices(path)
        os.unlink(path)


def _refuse_devices(*paths: Path) -> None:
    """Leave /dev/null and its like alone, which root could remove and replace."""
    for path in paths:
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise DiskError(path, "is a device", "give a file or a new folder")


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder and what is in it; links are removed, never followed."""
    with doing("remove", path):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def remove_empty_folder(path: Path) -> None:
    """Remove a folder if nothing is in it."""
    with doing("remove", path):
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def list_folder(path: Path) -> list[str]:
    """The names in a folder, sorted."""
    with doing("list", path):
        return sorted(os.listdir(path))


def is_folder(path: Path) -> bool:
    """Whether the path leads to a folder."""
    with doing("look at", path):
        try:
            return stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False


def is_there(path: Path) -> bool:
    """Whether the name is taken, be it by a link to nowhere."""
    with doing("look at", path):
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def size_and_time(path: Path) -> tuple[int, int]:
    """The size of a file, and when it was last written, in nanoseconds."""
    with doing("look at", path):
        found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def held_bytes(folder: Path) -> int:
    """Bytes that a folder and all in it take on the disk; holes in files take none."""
    with doing("look at", folder):
        return sum(
            os.lstat(os.path.join(inside, name)).st_blocks * 512
            for inside, folders, files in os.walk(folder)
            for name in (*folders, *files)
        )


def free_bytes(path: Path) -> int:
    """Bytes that may still be written to the file system of an existing folder."""
    with doing("ask for the free space of", path):
        return shutil.disk_usage(path).free
