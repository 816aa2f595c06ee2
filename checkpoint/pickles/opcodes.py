"""The bytes of a pickle, cut into instructions.

Owns the decoding of arguments. Knows the instructions that data is saved
with, and refuses all others by name; knows nothing of what they do.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from checkpoint.json_file import quoted
from configs.errors import PickleError

_LONGEST_LINE = 300
_LONGEST_INTEGER = 16
_FIXED = {
    "PROTO": "<B",
    "FRAME": "<Q",
    "BININT": "<i",
    "BININT1": "<B",
    "BININT2": "<H",
    "BINFLOAT": ">d",
    "BINGET": "<B",
    "LONG_BINGET": "<I",
    "BINPUT": "<B",
    "LONG_BINPUT": "<I",
}
_SIZED = {
    "SHORT_BINUNICODE": "<B",
    "BINUNICODE": "<I",
    "BINUNICODE8": "<Q",
    "SHORT_BINBYTES": "<B",
    "BINBYTES": "<I",
    "BINBYTES8": "<Q",
    "LONG1": "<B",
    "LONG4": "<I",
}
_LINES: dict[str, Callable[[str], object]] = {
    "INT": lambda text: bool(int(text)) if text in ("00", "01") else int(text),
    "LONG": lambda text: int(text.removesuffix("L")),
    "FLOAT": float,
    "GET": int,
    "PUT": int,
}
_TWO_LINES = ("GLOBAL", "INST")
_BARE = frozenset(
    [
        *("MARK", "STOP", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "MEMOIZE"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND"),
        *("APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS"),
        *("FROZENSET", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "BINPERSID"),
    ]
)
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_FORMS = {name: struct.Struct(form) for name, form in (_FIXED | _SIZED).items()}


def instructions(data: bytes, where: str | Path, mend: str) -> Iterator[tuple[str, object]]:
    """The instructions of a pickle, up to and with STOP.

    Args:
        data: The pickle; what follows its STOP is not looked at.
        where: The file to name in an error.
        mend: What a user can do about a file that is refused.

    Yields:
        The name, as `pickletools` calls it, and the argument; None where there is none. For
        GLOBAL and INST that is the module and the name, joined by a dot.

    Raises:
        PickleError: It is cut short, no pickle, or has an instruction that is refused.
    """
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        if count > len(data) - at:
            what = f"is truncated: its pickle ends at byte {len(data):,}, inside an instruction"
            raise PickleError(where, what, mend)
        at += count
        return data[at - count : at]

    def line(longest: int = _LONGEST_LINE) -> str:
        nonlocal at
        end = data.find(b"\n", at, at + longest)
        if end < 0:
            raise PickleError(where, "has a line without an end in its pickle", mend)
        text, at = data[at:end], end + 1
        return text.decode("latin-1")

    while True:
        code = take(1)[0]
        name = _NAMES.get(code, "")
        if name in _BARE:
            yield name, None
            if name == "STOP":
                return
        elif name in _FORMS:
            form = _FORMS[name]
            value = form.unpack(take(form.size))[0]
            yield name, value if name in _FIXED else _decoded(name, take(value), where, mend)
        elif name in _LINES:
            text = line()
            try:
                number = _LINES[name](text)
            except ValueError as error:
                raise PickleError(where, f"has the number {quoted(text)}", mend) from error
            yield name, number
        elif name == "UNICODE":
            yield name, _unescaped(line(len(data)), where, mend)
        elif name in _TWO_LINES:
            yield name, f"{line()}.{line()}"
        elif name:
            what = f"has the pickle instruction {name}, which saved data does not need"
            raise PickleError(where, what, mend)
        else:
            raise PickleError(where, f"is not a pickle: it has the byte {code:#04x}", mend)


def _unescaped(text: str, where: str | Path, mend: str) -> str:
    """Text as protocol 0 has it, without its halves of surrogate pairs."""
    try:
        return text.encode("latin-1").decode("raw-unicode-escape").encode().decode()
    except UnicodeError as error:
        raise PickleError(where, "has a string that is not valid Unicode", mend) from error


def _decoded(name: str, content: bytes, where: str | Path, mend: str) -> object:
    if name.startswith("LONG"):
        if len(content) > _LONGEST_INTEGER:
            raise PickleError(where, f"has an integer of {len(content):,} bytes", mend)
        return int.from_bytes(content, "little", signed=True)
    if name.endswith(("UNICODE", "UNICODE8")):
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PickleError(where, "has a string that is not valid UTF-8", mend) from error
    return content
