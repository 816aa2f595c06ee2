"""A bar that counts bytes on a terminal's stderr; elsewhere a line where the wait is long.

Owns how it looks. Knows nothing of what the bytes are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from configs.command import note

# Fewer bytes are hashed in a moment, of which a log need not hear.
_WORTH_A_LINE = 1 << 28


@contextmanager
def byte_bar(
    doing: str, total: int, *, quiet: bool, always: bool = False
) -> Iterator[Callable[[int], None]]:
    """A callback that takes the bytes just done; fewer than none were done in vain.

    Args:
        doing: What takes so long, such as "checking 3 files".
        total: Bytes at the end.
        quiet: Show nothing.
        always: Off a terminal, say so in a line if there is much to do.
    """
    if quiet or not sys.stderr.isatty():
        if always and not quiet and total >= _WORTH_A_LINE:
            note(f"{doing} ({total / 1e9:.1f} GB)")
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda count: progress.advance(task, count)
