"""What a pickle is read into where plain values don't do: names and calls, not looked up or made.

Owns those types and the walk over nested values. Knows nothing of how they are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle refers to, such as `torch.FloatStorage`; never looked up."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class PersistentId:
    """What stands for something outside the pickle, such as a tensor's storage."""

    value: object


@dataclass(slots=True, eq=False)
class Record:
    """What a pickle would have made by a call, not made.

    Attributes:
        name: The global that would have been called, or made an instance of.
        args: Its positional arguments.
        kwargs: Its arguments by name.
        state: What would have been its state; None if there is none.
    """

    name: str
    args: tuple[object, ...]
    kwargs: dict[str, object]
    state: object = None


NESTING = (dict, list, tuple, Record, PersistentId)


def parts_of(value: object) -> Iterable[object]:
    """The values that a value holds; of a dict, those under its keys."""
    match value:
        case dict():
            return value.values()
        case list() | tuple():
            return value
        case Record():
            return (value.args, value.kwargs, value.state)
        case PersistentId():
            return (value.value,)
    return ()
