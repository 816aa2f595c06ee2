"""A whole new file in the place of another, in one step.

Owns the order: write, sync, rename, sync the folder. Knows nothing of what is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from checkpoint import disk
from configs.errors import DiskError


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Put a whole new file in the place of one.

    Args:
        path: What to replace, or to make.
        write: Makes the file of the name that it is given, and syncs it.

    Raises:
        DiskError: It can't be written; what was there is still there.
    """
    path = Path(os.path.realpath(path))  # a link is written through, and stays
    new = path.with_name(f".ferry-{os.getpid()}.new")
    with suppress(DiskError):
        disk.remove(new)
    try:
        write(new)
        disk.rename(new, path)
    except BaseException:
        with suppress(DiskError):
            disk.remove(new)
        raise
    disk.fsync_folder(path.parent)
