"""A few jobs in threads that end together.

Owns the threads. Knows nothing of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


class StoppedError(Exception):
    """Raised by a job that finds its event set: another job failed, or the user interrupts."""


def at_once(work: Callable[[J, Event], R], jobs: Iterable[J], threads: int = 4) -> list[R]:
    """Do the jobs, a few at a time, and give their results in order.

    Args:
        work: Takes a job and an event, which it looks at now and then: once it is set,
            nobody waits for the result any more.
        jobs: What to do.
        threads: How many at a time.

    Raises:
        Whatever the first job to fail raises.
    """
    stop = Event()
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work, job, stop) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]
