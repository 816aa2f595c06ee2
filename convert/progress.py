"""The progress bar on a terminal: tensor names, MB/s and the time left; else nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The other columns take about 60 characters, with a bar that one can read.
_NAME_WIDTHS, _OTHERS, _NARROW = (10, 44), 60, 60


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
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    console = Console(stderr=True)
    width = max(_NAME_WIDTHS[0], min(console.width - _OTHERS, _NAME_WIDTHS[1]))

    def whole() -> Column:
        return Column(no_wrap=True)

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False, table_column=whole()),
        DownloadColumn(table_column=whole()),
    ]
    if console.width >= _NARROW:
        columns[1:1] = [BarColumn()]
        columns += [
            TransferSpeedColumn(table_column=whole()),
            TimeRemainingColumn(table_column=whole()),
        ]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total_bytes)

        def advance(name: str, nbytes: int) -> None:
            progress.update(task, advance=nbytes, description=name[-width:].ljust(width))

        yield advance
