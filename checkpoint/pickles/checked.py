"""Remembers which archives were held to their checksums, so that large ones are read once.

Owns the memory: an archive is checked again when its path, size, time or inode changes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from checkpoint import own_cache
from checkpoint.pickles.zip_file import Entry, check_sums

_KIND = "zip-sums"
# Fewer bytes are checked in a moment.
_WORTH_A_NOTE = 1 << 28


def check_once(path: Path, entries: Sequence[Entry]) -> None:
    """`check_sums`, unless the archive is known to have passed as it is now.

    Raises:
        PickleError: An entry is damaged.
        DiskError: The archive can't be read.
    """
    real = os.path.realpath(path)
    worth = sum(entry.size for entry in entries) >= _WORTH_A_NOTE
    before = _state(real)
    noted = own_cache.recall(_KIND, real) if worth else {}
    if before is not None and noted.get("state") == before:
        return
    check_sums(path, entries)
    if worth and before is not None and before == _state(real):
        own_cache.note_down(_KIND, real, {"state": before})


def _state(real: str) -> list[int] | None:
    """What changes whenever the file does."""
    try:
        found = Path(real).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino]
