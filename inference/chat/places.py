"""Where the lines that were typed are remembered: the user's own state folder.

Owns the file of the history, which only its user may read. Nothing hangs on it: where
there can be none, or MLX_FERRY_CHAT_HISTORY is `off`, a chat goes without.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_NAME = "mlx-ferry"
_MOST_BYTES = 1_000_000


def history_file() -> Path | None:
    """The file, made if it is missing; None for none."""
    if os.environ.get("MLX_FERRY_CHAT_HISTORY") == "off":
        return None
    folder = _folder()
    if folder is None:
        return None
    path = folder / "chat_history"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(path, flags, 0o600)
        try:
            os.fchmod(fd, 0o600)
            _shorten(fd)
        finally:
            os.close(fd)
    except OSError:
        return None
    return path


def _folder() -> Path | None:
    given = os.environ.get("XDG_STATE_HOME", "")
    if Path(given).is_absolute():
        return Path(given) / _NAME
    try:
        home = Path.home()
    except RuntimeError:
        return None
    inside = "Library/Application Support" if sys.platform == "darwin" else ".local/state"
    return home / inside / _NAME


def _shorten(fd: int) -> None:
    """Keep the newer half of what has grown too large; entries begin after an empty line."""
    size = os.fstat(fd).st_size
    if size <= _MOST_BYTES:
        return
    kept = os.pread(fd, _MOST_BYTES // 2, size - _MOST_BYTES // 2)
    kept = kept[kept.find(b"\n\n") + 1 :]
    os.ftruncate(fd, 0)
    os.pwrite(fd, kept, 0)
