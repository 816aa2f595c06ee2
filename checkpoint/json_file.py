"""JSON from files that nobody vouches for.

Owns strict parsing: UTF-8, no key twice, no NaN, no number or nesting without bound,
no lone surrogates. Knows nothing of what the values mean.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from checkpoint import disk
from configs.errors import SourceError

CONFIG_LIMIT = 10_000_000
_LONGEST_SHOWN = 80
# A parsed value takes up to a hundred bytes, however short its text; this bounds them
# all to some 200 MB. The largest real files have a tenth as many.
_MOST_VALUES = 2_000_000
_JSON_TYPES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    type(None): "null",
}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _InvalidValueError(ValueError):
    """What the parser's hooks raise, to be told apart from the parser's own errors."""


def quoted(text: str) -> str:
    """A name or value from a file, quoted, escaped and cut to a length fit for a message."""
    if len(text) > _LONGEST_SHOWN:
        text = f"{text[:50]}…{text[-20:]}"
    return repr(text)


def parse(
    data: bytes | bytearray,
    where: Path,
    error: type[SourceError] = SourceError,
    *,
    infinities: bool = False,
) -> Any:
    """Parse one JSON text.

    Args:
        data: The text, as bytes.
        where: The file to name in an error.
        error: The class of error to raise.
        infinities: Allow `Infinity` and `-Infinity`, which Python's writer leaves in the
            config.json of some models; NaN is never allowed.

    Raises:
        SourceError: The class given as `error`, with the reason.
    """
    if data.startswith(codecs.BOM_UTF8):
        raise error(where, "starts with a byte-order mark", "save it as UTF-8 without one")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(where, f"is not valid UTF-8 at byte {problem.start}") from problem
    return parse_text(text, where, error, infinities=infinities)


def parse_text(
    text: str, where: Path, error: type[SourceError] = SourceError, *, infinities: bool = False
) -> Any:
    """As `parse`, for text that is decoded already."""
    if not text or text.isspace():
        raise error(where, "is empty", "download it again")
    if sum(map(text.count, ",[{")) > _MOST_VALUES:
        raise error(where, f"holds more than {_MOST_VALUES:,} values")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            # A hook costs time, and only minus zero needs one.
            parse_int=_integer if "-0" in text else int,
            parse_float=_float,
            parse_constant=_infinity if infinities else _constant,
        )
        if _SURROGATE.search(text):
            _refuse_lone_surrogates(value)
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno}, column {problem.colno}"
        raise error(where, f"is not valid JSON: {problem.msg} at {place}") from problem
    except RecursionError as problem:
        raise error(where, "is not valid JSON: nested too deep") from problem
    except _InvalidValueError as problem:
        raise error(where, f"is not valid JSON: {problem}") from problem
    except ValueError as problem:  # Python's own limit on digits
        raise error(where, "is not valid JSON: a number of thousands of digits") from problem
    return value


def read_json_object(
    path: Path,
    error: type[SourceError] = SourceError,
    limit: int = CONFIG_LIMIT,
    *,
    infinities: bool = False,
) -> dict[str, Any]:
    """Read a JSON file of at most `limit` bytes whose top level is an object.

    Raises:
        SourceError: The class given as `error`, with the reason.
        DiskError: It can't be read.
    """
    value = parse(disk.read_whole(path, limit), path, error, infinities=infinities)
    if not isinstance(value, dict):
        raise error(path, f"holds {json_type(value)} where an object was expected")
    return value


def json_type(value: object) -> str:
    """What JSON calls the type of a parsed value, with its article."""
    return _JSON_TYPES.get(type(value), "a number")


def json_value(value: object) -> str:
    """A parsed value as JSON for a message, cut; of an array or object only its type."""
    if isinstance(value, dict | list):
        return json_type(value)
    text = json.dumps(value)
    return f"{text[:30]}…" if len(text) > 40 else text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen = set[str]()
        for key, _ in pairs:
            if key in seen:
                raise _InvalidValueError(f"key {quoted(key)} is given twice")
            seen.add(key)
    return made


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)  # no integer is minus zero


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _InvalidValueError(f"the number {quoted(text)} is out of range")
    return value


def _constant(text: str) -> NoReturn:
    raise _InvalidValueError(f"it has {text}, which JSON does not allow")


def _infinity(text: str) -> float:
    return _constant(text) if text == "NaN" else float(text)


def _refuse_lone_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as problem:
        raise _InvalidValueError("a string holds half of a surrogate pair") from problem
