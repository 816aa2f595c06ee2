"""Spreads NumPy work on rows that have nothing to do with each other over the processor's cores.

Each thread has its rows to itself, and BLAS one thread in each: its own way of sharing a
product among cores waits for the slowest at every step, which is dear where the machine does
something else besides. Owns that; what is made does not depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

_MOST = 4
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def workers() -> int:
    """How many threads there are at most."""
    return min(_MOST, os.cpu_count() or 1)


def spread(work: Callable[[_Item], _Made], items: Iterable[_Item]) -> list[_Made]:
    """What `work` makes of every item, in order; it may call NumPy alone."""
    given = list(items)
    count = min(workers(), len(given))
    if count <= 1:
        with threadpool_limits(1, user_api="blas"):
            return [work(each) for each in given]
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, given))
