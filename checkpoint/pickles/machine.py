"""The machine that a pickle's instructions run on: a stack, marks, a memo, and a budget.

Owns what each instruction may do to them, and the caps on memory and depth. Makes plain
values and records only; nothing is imported, nothing called.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NoReturn

from checkpoint.json_file import quoted
from checkpoint.pickles.values import NESTING, Global, PersistentId, Record, parts_of
from configs.errors import PickleError

_MOST_MARKS = 1000
_DEEPEST = 100
# What things take, generously: a string or sequence, a dict or set, a place in each.
SEQUENCE, MAPPING, ITEM, ENTRY = 80, 256, 16, 112
# Their instances are plain values here; each is as harmless as those.
_PLAIN = frozenset(
    [
        *("collections.OrderedDict", "_codecs.encode"),
        *("builtins.bytes", "builtins.set", "builtins.frozenset"),
    ]
)


class Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(
        self,
        allowed: Collection[str],
        where: str | Path,
        persistent_ids: bool,
        mend: str,
        memory: int,
    ) -> None:
        self.allowed = frozenset(allowed) | _PLAIN
        self.where = where
        self.persistent_ids = persistent_ids
        self.mend = mend
        self.left = memory
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, object] = {}

    def refuse(self, what: str) -> NoReturn:
        raise PickleError(self.where, what, self.mend)

    def charge(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            self.refuse("has a pickle whose values take too much memory")

    def result(self) -> object:
        if len(self.stack) != 1 or self.marked:
            self.refuse("is not a whole pickle: it ends with values left over")
        return self.stack[0]

    def push(self, value: object, size: int = 0) -> None:
        self.charge(size)
        self.stack.append(value)

    def items(self) -> list[Any]:
        """What was pushed since the last mark."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def mark(self) -> None:
        if len(self.marked) >= _MOST_MARKS:
            self.refuse(f"has a pickle nested deeper than {_MOST_MARKS:,}")
        self.marked.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.items()

    def discard(self) -> None:
        self.items()

    def tuple_of(self, items: Iterable[Any]) -> None:
        made = tuple(items)
        self.push(made, SEQUENCE + ITEM * len(made))

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def add_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            self.refuse("appends to something that is not a list")
        self.charge(ITEM * len(items))
        target.extend(items)

    def add_members(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            self.refuse("adds members to something that is not a set")
        self.charge(ENTRY * len(items))
        target.update(map(self.key, items))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            self.refuse("sets items of something that is not a dict")
        if len(items) % 2:
            self.refuse("has a key without a value")
        self.charge(ENTRY * len(items) // 2)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if self.key(key) in target:
                self.refuse(f"has the key {_key_shown(key)} twice")
            target[key] = value

    def key(self, value: Any) -> Any:
        # The hash of a tuple of tuples may take time without end.
        if value is not None and type(value) not in (str, bytes, int, float, bool):
            self.refuse("has a key that is no number, text or bytes")
        return value

    def put(self, place: int) -> None:
        self.charge(ENTRY)
        self.memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        if place not in self.memo:
            self.refuse(f"refers to place {place} of its memo, where nothing is")
        self.push(self.memo[place])

    def name(self, name: str) -> None:
        name = re.sub("^__builtin__[.]", "builtins.", name)  # as protocols before 3 have it
        if name not in self.allowed:
            what = f"refers to {quoted(name)}, which is not on the list of what it may"
            self.refuse(f"{what}; nothing of it was run")
        self.push(Global(name), SEQUENCE)

    def stack_name(self) -> None:
        module, name = self.last(2)
        if type(module) is not str or type(name) is not str:
            self.refuse("refers to a global by something that is not text")
        self.name(f"{module}.{name}")

    def call(self, called: Any, args: Any, kwargs: Any = None) -> None:
        """The value of a harmless call, or a record of another."""
        if type(called) is not Global:
            self.refuse("calls something that is not a global")
        kwargs = {} if kwargs is None else kwargs
        if type(args) is not tuple or type(kwargs) is not dict:
            self.refuse(f"calls {called.name} with something that is not arguments")
        if called.name not in _PLAIN:
            self.push(Record(called.name, args, kwargs), MAPPING)
            return
        match called.name, args:
            case "collections.OrderedDict", ():
                self.push({}, MAPPING)
            case "builtins.bytes", ():
                self.push(b"")
            case "builtins.set", ():
                self.push(set(), MAPPING)
            case "builtins.set", (list() as members,):
                self.push(set(map(self.key, members)), MAPPING + ENTRY * len(members))
            case "builtins.frozenset", (list() as members,):
                self.push(frozenset(map(self.key, members)), MAPPING + ENTRY * len(members))
            case "_codecs.encode", (str() as text, "latin1" | "latin-1"):
                # How protocol 2 writes bytes.
                try:
                    self.push(text.encode("latin-1"), SEQUENCE + len(text))
                except UnicodeEncodeError:
                    self.refuse("has bytes that are none")
            case _:
                self.refuse(f"calls {called.name} with arguments that are not understood")

    def build(self) -> None:
        (state,) = self.last(1)
        target = self.stack[-1]
        if type(target) is dict:
            return  # attributes of an OrderedDict, such as a state dict's versions
        if type(target) is not Record or target.state is not None:
            self.refuse("gives a state to something that has none")
        target.state = state

    def persistent(self) -> None:
        if not self.persistent_ids:
            self.refuse("refers to something outside its pickle")
        self.push(PersistentId(self.last(1)[0]), SEQUENCE)


def _key_shown(key: object) -> str:
    return quoted(key if isinstance(key, str) else repr(key))


def check_depth(machine: Machine, value: object) -> None:
    """Refuse values that contain themselves, or are nested beyond what one can walk."""
    depths: dict[int, int] = {}
    path = 0
    waiting: list[tuple[object, bool]] = [(value, False)]
    while waiting:
        one, done = waiting.pop()
        if done:
            inner = (depths[id(part)] for part in parts_of(one) if id(part) in depths)
            depths[id(one)] = 1 + max(inner, default=0)
            path -= 1
            if depths[id(one)] > _DEEPEST:
                machine.refuse(f"has a pickle nested deeper than {_DEEPEST}")
            continue
        if id(one) in depths:
            if depths[id(one)] < 0:
                machine.refuse("has a value that contains itself")
            continue
        if isinstance(one, NESTING):
            machine.charge(ENTRY)
            depths[id(one)] = -1
            path += 1
            if path > _DEEPEST:
                machine.refuse(f"has a pickle nested deeper than {_DEEPEST}")
            waiting.append((one, True))
            waiting.extend((part, False) for part in parts_of(one) if isinstance(part, NESTING))
