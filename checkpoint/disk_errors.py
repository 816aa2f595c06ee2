"""What the operating system says when it refuses something, as one line that helps.

Owns the words for its error numbers. Makes no call itself: `checkpoint.disk` does.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import DiskError

# errno -> (what happened, how to mend it)
_EXPLAINED = {
    errno.ENOSPC: ("the disk is full", "free some space and run it again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run it again"),
    errno.EFBIG: (
        "the file system allows no file this large",
        "raise the limit (ulimit -f); convert makes smaller ones with --max-shard-size",
    ),
    errno.EROFS: ("the file system is read-only", "choose a folder that can be written"),
    errno.EACCES: ("permission denied", "change the permissions or choose another folder"),
    errno.EPERM: ("the system does not permit it", "choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.EIO: ("the device reported an input/output error", "check the disk and the cable"),
    errno.ENOENT: ("there is no such file or folder", ""),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", ""),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n 4096`"),
    errno.ELOOP: ("the symbolic links go round in a circle", ""),
    errno.ENOLCK: ("the file system gives out no locks", "choose a folder on another disk"),
    errno.ENOTSUP: ("the file system does not support it", "choose a folder on another disk"),
    errno.EOPNOTSUPP: ("the file system does not support it", "choose a folder on another disk"),
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
def doing(verb: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` in the `with` block into a `DiskError` that names what was tried."""
    try:
        yield
    except OSError as error:
        text, mend = _EXPLAINED.get(error.errno or 0, (error.strerror or str(error), ""))
        raise DiskError(path, f"can't {verb}: {text}", mend) from error
    except ValueError as error:  # a NUL in the path
        raise DiskError(path, f"can't {verb}: {error}") from error
