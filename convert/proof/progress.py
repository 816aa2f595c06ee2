"""What a proof is at, on a terminal; else nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[str, str, int, int], None]
"""Told a phase, what was just done in it, its number from one, and how many there are."""

_NAME_WIDTH = 40


@contextmanager
def told_progress(*, quiet: bool, title: str = "proof") -> Iterator[Tell]:
    """A callback that shows each step.

    Args:
        quiet: Show nothing, even on a terminal.
        title: What is going on.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn(f"{title}: {{task.description}}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(phase: str, name: str, number: int, total: int) -> None:
            text = f"{phase}, {name[-_NAME_WIDTH:]}".ljust(_NAME_WIDTH + 16)
            progress.update(task, description=text, completed=number, total=total)

        yield tell
