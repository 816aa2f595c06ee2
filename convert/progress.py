"""The progress bar on a terminal: tensor names, MB/s and the time left; else nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NAME_WIDTH = 44


@contextmanager
def progress_bar(total_bytes: int, *, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """A callback that takes a tensor's name and the bytes just written.

    Args:
        total_bytes: Bytes at the end.
        quiet: Show nothing, even on a terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda name, nbytes: None
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
        task = progress.add_task("", total=total_bytes)

        def advance(name: str, nbytes: int) -> None:
            progress.update(
                task, advance=nbytes, description=name[-_NAME_WIDTH:].ljust(_NAME_WIDTH)
            )

        yield advance
