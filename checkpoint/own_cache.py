"""Small notes that later runs save work by: JSON files in this program's own cache folder.

Owns where they lie and how they are written. Nothing hangs on them: one that can't be
read is as good as none, and one that can't be written is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

_NAME = "mlx-ferry"
_LIMIT = 10_000_000


def folder() -> Path | None:
    """The program's cache folder, which need not exist; None for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if Path(given).is_absolute():
        return Path(given) / _NAME
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / _NAME


def recall(kind: str, key: str) -> dict[str, Any]:
    """What was noted under a key; empty if nothing was."""
    path = _path(kind, key)
    try:
        if path is None or path.stat().st_size > _LIMIT:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and value.get("key") == key else {}


def note_down(kind: str, key: str, value: dict[str, Any]) -> None:
    """Note this under a key, in place of what was noted before."""
    path = _path(kind, key)
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}")
        new.write_text(json.dumps(value | {"key": key}))
        new.replace(path)


def _path(kind: str, key: str) -> Path | None:
    root = folder()
    name = hashlib.sha256(os.fsencode(key)).hexdigest()[:40]
    return root and root / kind / f"{name}.json"
