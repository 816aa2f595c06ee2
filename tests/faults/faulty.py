"""A file system that fails: stands below `checkpoint.disk`, counts its calls and breaks some."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkpoint import disk

_CALLS = {
    "os": "open close fstat lstat stat preadv pwrite ftruncate fsync rename unlink rmdir mkdir"
    " listdir walk",
    "fcntl": "flock fcntl",
    "shutil": "rmtree disk_usage",
}


class _Proxy:
    """A module some of whose functions are watched."""

    def __init__(self, module: ModuleType, watched: str, watch: Callable[..., Any]) -> None:
        self._module = module
        self._watched = set(watched.split())
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if name not in self._watched:
            return value
        return lambda *arguments, **named: self._watch(name, value, *arguments, **named)


@contextmanager
def below_disk(watch: Callable[..., Any]) -> Iterator[None]:
    """Every call that `checkpoint.disk` makes goes through `watch(name, call, *arguments)`."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (os, fcntl, shutil):
            name = module.__name__
            patch.setattr(disk, name, _Proxy(module, _CALLS[name], watch))
        yield


class Counting:
    """Lets every call pass.

    Attributes:
        calls: Their names.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.calls.append(name)
        return call(*arguments, **named)


class Failing:
    """Fails one call, or that and every one after it."""

    def __init__(self, first: int, *, for_ever: bool) -> None:
        self._calls = 0
        self._first = first
        self._for_ever = for_ever
        self._lock = threading.Lock()

    def __call__(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with self._lock:
            self._calls += 1
            number = self._calls
        if number < self._first or (number > self._first and not self._for_ever):
            return call(*arguments, **named)
        _half_done(name, call, arguments)
        code = (errno.EIO, errno.ENOSPC)[number % 2]
        raise OSError(code, os.strerror(code))


def _half_done(name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What a call that fails may have done all the same."""
    with suppress(OSError):
        if name == "close":
            call(*arguments)
        elif name == "pwrite":
            file, data, offset = arguments
            call(file, data[: len(data) // 2], offset)
        elif name == "rmtree":
            first = next((path for path in sorted(Path(arguments[0]).rglob("*"))), None)
            if first is not None and first.is_file():
                first.unlink()


class Recording:
    """Lets every call pass and notes what it was done to.

    Attributes:
        events: Call and path, for a rename the path it had; writes and cuts are "write",
            syncs of either kind are "sync".
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self._paths: dict[int, str] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with self._lock:
            given = call(*arguments, **named)
            if name == "open":
                self._paths[given] = str(arguments[0])
                made = "create" if arguments[1] & os.O_CREAT else "open"
                self.events.append((made, str(arguments[0])))
            elif isinstance(arguments[0], int):
                same = {"pwrite": "write", "ftruncate": "write", "fsync": "sync", "fcntl": "sync"}
                self.events.append((same.get(name, name), self._paths[arguments[0]]))
            else:
                self.events.append((name, str(arguments[0])))
            return given

    def last(self, kind: str, path: Path, before: int | None = None) -> int:
        """Where a call was made to a path for the last time, -1 if it never was."""
        events = self.events[:before]
        return max(
            (at for at, event in enumerate(events) if event == (kind, str(path))), default=-1
        )


class Interrupting:
    """Raises an exception in place of the n-th call of a name."""

    def __init__(self, name: str, number: int, error: BaseException) -> None:
        self._name = name
        self._left = number
        self._error = error

    def __call__(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self._left -= name == self._name
        if name == self._name and self._left == 0:
            raise self._error
        return call(*arguments, **named)
