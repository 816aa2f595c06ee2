"""An allow-list reader of pickles that executes nothing.

It runs a pickle's instructions over its own stack and makes only plain values: None,
booleans, numbers, text, bytes, tuples, lists, dicts and sets. A global becomes a `Global`,
a name; a call of one becomes a `Record` of its name and arguments, whatever the name. No
module is imported and nothing is called, so there is nothing that an instruction could
trick it into; the allow-list is there so that nothing is misread.

Owns the table of instructions and the cap on time. Knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from checkpoint.pickles.machine import ENTRY, MAPPING, SEQUENCE, Machine, check_depth
from checkpoint.pickles.opcodes import instructions
from checkpoint.pickles.values import Global as Global
from checkpoint.pickles.values import PersistentId as PersistentId
from checkpoint.pickles.values import Record as Record

SAVE_AGAIN = "save it again as safetensors"
MEMORY_LIMIT = 512 << 20
"""Bytes that the values of one pickle may take, by a generous estimate."""
_MOST_INSTRUCTIONS = 8_000_000
_STEP = 32  # of memory, for an instruction: its places on the stack and in the memo


def load(
    data: bytes,
    allowed: Collection[str],
    where: str | Path,
    *,
    persistent_ids: bool = False,
    mend: str = SAVE_AGAIN,
    memory: int = MEMORY_LIMIT,
) -> Any:
    """The value that a pickle describes; what it would call are `Record`s.

    No value contains itself, and none is nested deeper than 100. Keys and members of sets
    are numbers, text, bytes, booleans or None. A value that stands in several places is the
    same object there: a walk that does not remember where it was may never end.

    Args:
        data: The pickle; nothing after its end is looked at.
        allowed: The globals that it may name, `module.name`.
        where: The file to name in an error.
        persistent_ids: Whether it may refer to things outside, which become `PersistentId`s.
        mend: What a user can do about a file that is refused.
        memory: Bytes that its values may take; the data itself is not counted.

    Raises:
        PickleError: It names another global, is none, or takes too much.
    """
    machine = Machine(allowed, where, persistent_ids, mend, memory)
    for count, (name, argument) in enumerate(instructions(data, where, mend)):
        if count > _MOST_INSTRUCTIONS:
            machine.refuse(f"has more than {_MOST_INSTRUCTIONS:,} pickle instructions")
        machine.charge(_STEP)
        try:
            _STEPS[name](machine, argument)
        except IndexError:
            machine.refuse(f"is not a whole pickle: {name} finds nothing to work on")
    value = machine.result()
    check_depth(machine, value)
    return value


def _text(machine: Machine, value: Any) -> None:
    # One character beyond Latin-1 makes all of them wide.
    machine.push(value, SEQUENCE + (len(value) if value.isascii() else 4 * len(value)))


def _bytes(machine: Machine, value: Any) -> None:
    machine.push(value, SEQUENCE + len(value))


def _number(machine: Machine, value: Any) -> None:
    machine.push(value)


def _frozenset(machine: Machine, _: Any) -> None:
    members = machine.items()
    machine.push(frozenset(map(machine.key, members)), MAPPING + ENTRY * len(members))


def _made(
    empty: Callable[[], object], add: Callable[[Machine, list[Any]], None]
) -> Callable[[Machine, Any], None]:
    def step(machine: Machine, _: Any) -> None:
        items = machine.items()
        machine.push(empty(), MAPPING)
        add(machine, items)

    return step


_Step = Callable[[Machine, Any], None]
_TEXTS: dict[str, _Step] = dict.fromkeys(
    ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"), _text
)
_BYTES: dict[str, _Step] = dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _bytes)
_NUMBERS: dict[str, _Step] = dict.fromkeys(
    ("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "LONG4", "INT", "LONG", "FLOAT"), _number
)
_STEPS: dict[str, _Step] = {
    **_TEXTS,
    **_BYTES,
    **_NUMBERS,
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, size: None,
    "STOP": lambda machine, _: None,
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.discard(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.tuple_of(machine.items()),
    "TUPLE1": lambda machine, _: machine.tuple_of(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.tuple_of(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.tuple_of(machine.last(3)),
    "EMPTY_LIST": lambda machine, _: machine.push([], SEQUENCE),
    "LIST": _made(list, Machine.add_items),
    "APPEND": lambda machine, _: machine.add_items(machine.last(1)),
    "APPENDS": lambda machine, _: machine.add_items(machine.items()),
    "EMPTY_DICT": lambda machine, _: machine.push({}, MAPPING),
    "DICT": _made(dict, Machine.set_items),
    "SETITEM": lambda machine, _: machine.set_items(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.items()),
    "EMPTY_SET": lambda machine, _: machine.push(set(), MAPPING),
    "ADDITEMS": lambda machine, _: machine.add_members(machine.items()),
    "FROZENSET": _frozenset,
    "GET": lambda machine, place: machine.get(place),
    "PUT": lambda machine, place: machine.put(place),
    "BINGET": lambda machine, place: machine.get(place),
    "LONG_BINGET": lambda machine, place: machine.get(place),
    "BINPUT": lambda machine, place: machine.put(place),
    "LONG_BINPUT": lambda machine, place: machine.put(place),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "GLOBAL": lambda machine, name: machine.name(name),
    "INST": lambda machine, name: machine.name(name),
    "STACK_GLOBAL": lambda machine, _: machine.stack_name(),
    "REDUCE": lambda machine, _: machine.call(*machine.last(2)),
    "NEWOBJ": lambda machine, _: machine.call(*machine.last(2)),
    "NEWOBJ_EX": lambda machine, _: machine.call(*machine.last(3)),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persistent(),
}
