"""The progress bar of a batch on a terminal: rows, tokens a second, the time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from inference.batch.run import Progress


@contextmanager
def progress_bar(rows: int, done: int, *, quiet: bool) -> Iterator[Progress]:
    """What to tell of rows and tokens.

    Args:
        rows: Of the whole batch.
        done: Those that an earlier run has answered.
        quiet: Show nothing, even on a terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda rows, tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows  {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=rows, completed=done, speed="")
        produced = 0

        def tell(rows: int, tokens: int) -> None:
            nonlocal produced
            produced += tokens
            elapsed = bar.tasks[0].elapsed or 0.0
            speed = f"{produced / elapsed:,.0f} tokens/s" if elapsed > 0 else ""
            bar.update(task, advance=rows, speed=speed)

        yield tell
