"""What a value of one key may be: the kinds of check that `configs.keys` puts together.

A `Check` knows a kind of value, its range and its words for the user. It knows nothing of tables,
files or flags: whoever asks adds where the value came from.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import NamedTuple

KeyPath = tuple[str | int, ...]

_LARGEST_INT = 2**31 - 1
_LARGEST_SIZE = 2**63 - 1
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = r"(?ai)(\d{1,19})(?:\.(\d{1,9}))?\s*((?:[kmgt]i?)?b)?"


class InvalidValue(ValueError):  # noqa: N818 -- names the value, not the failure
    """A value that a key can't take.

    Args:
        what: What is wrong with it.
        mend: What the key takes.
        path: Which key, counted from the one that was checked.
    """

    def __init__(self, what: str, mend: str, path: KeyPath = ()) -> None:
        super().__init__(what, mend)
        self.what = what
        self.mend = mend
        self.path = path

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.what}; {self.mend}" if self.path else self.what


class Check(NamedTuple):
    """One kind of value.

    Args:
        takes: The kind in words, after "it takes".
        metavar: The kind as a placeholder in a command's help.
        read: The value as TOML gives it to the value as it is kept; None when it is not allowed.
        parse: The text of a flag to a value as TOML gives it; ValueError when it is not one.
        kind: "flag" (no argument), "one" (one argument) or "many" (may be repeated).
    """

    takes: str
    metavar: str
    read: Callable[[object], object]
    parse: Callable[[str], object] = str
    kind: str = "one"

    def __call__(self, value: object) -> object:
        """The value as it is kept.

        Raises:
            InvalidValue: It is not of this kind, or out of range.
        """
        kept = self.read(value)
        if kept is None:
            raise InvalidValue(f"{shown(value)} is not allowed", f"it takes {self.takes}")
        return kept

    def from_text(self, text: str) -> object:
        """The same for the text of a flag."""
        if self.parse is str:
            return self(text)
        try:
            return self(self.parse(text))
        except InvalidValue as error:
            words = _short(text) or '""'
            raise InvalidValue(f"{words} is not allowed", error.mend) from error
        except ValueError as error:
            raise InvalidValue(
                f"{_short(text)} is not allowed", f"it takes {self.takes}"
            ) from error


def choice(*allowed: int | str) -> Check:
    """One of a few values; `True` is not 1."""

    def read(value: object) -> object:
        return next((a for a in allowed if type(value) is type(a) and value == a), None)

    words = [str(value) for value in allowed]
    takes = f"{', '.join(words[:-1])} or {words[-1]}" if words[1:] else f"only {words[0]}"
    return Check(takes, "|".join(words), read, type(allowed[0]))


def integer(low: int, high: int = _LARGEST_INT) -> Check:
    """A whole number, from `low` to `high`."""

    takes = f"a whole number of at least {low}"
    bounded = f"{takes} and at most {high}"

    def read(value: object) -> object:
        if type(value) is not int or value < low:
            return None
        if value > high:
            raise InvalidValue(f"{shown(value)} is not allowed", f"it takes {bounded}")
        return value

    return Check(takes if high == _LARGEST_INT else bounded, "N", read, _whole)


def real(low: float, high: float = sys.float_info.max, *, above: bool = False) -> Check:
    """A finite number, from `low` (or above it) to `high`; kept as a float."""

    def read(value: object) -> object:
        # Comparing before converting: float() of a huge int overflows.
        if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
            return None
        number = float(value)  # type: ignore[arg-type]
        return None if above and number == low else number

    takes = f"a finite number above {low:g}" if above else f"a finite number of at least {low:g}"
    if high != sys.float_info.max:
        takes += f" and at most {high:g}"
    return Check(takes, "X", read, float)


def switch() -> Check:
    """True or false."""

    def read(value: object) -> object:
        return value if isinstance(value, bool) else None

    return Check("true or false", "", read, kind="flag")


def text(takes: str, metavar: str = "TEXT", *, empty: bool = False) -> Check:
    """Text that is valid Unicode, not empty unless said so."""

    def read(value: object) -> object:
        return value if _is_text(value) and (value or empty) else None

    return Check(takes, metavar, read)


def texts(takes: str) -> Check:
    """A list of texts, none of them empty; one text stands for a list of one. Kept as a tuple."""

    def read(value: object) -> object:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            return None
        return tuple(items) if all(_is_text(item) and item for item in items) else None

    return Check(f"{takes}, none of them empty", "TEXT", read, kind="many")


def tokens() -> Check:
    """A list of tokens, by text or id; one stands for a list of one. Kept as a tuple.

    The text of a flag that is a whole number is an id; in a file, text is text.
    """

    def read(value: object) -> object:
        items = [value] if isinstance(value, (int, str)) else value
        if not isinstance(items, (list, tuple)):
            return None
        good = all(_is_id(item) or (_is_text(item) and item) for item in items)
        return tuple(items) if good else None

    def parse(text: str) -> object:
        return _whole(text) if text.isascii() and text.isdigit() else text

    return Check("tokens, by their text or their id", "TOKEN|ID", read, parse, kind="many")


def biases(largest: float) -> Check:
    """Numbers up to +-`largest` for token ids: a table, or a list of pairs.

    Kept as a tuple of pairs, in the order of the ids; of two for one id the last holds.
    """
    number = real(-largest, largest)

    def read(value: object) -> object:
        pairs = list(value.items()) if isinstance(value, dict) else value
        if not isinstance(pairs, (list, tuple)):
            return None
        kept = {}
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                return None
            token, bias = pair
            if isinstance(token, str) and token.isascii() and token.isdigit():
                token = _whole(token)
            if not _is_id(token) or (found := number.read(bias)) is None:
                return None
            kept[token] = found
        return tuple(sorted(kept.items()))

    def parse(text: str) -> object:
        token, _, bias = text.partition("=")
        return [[_whole(token), float(bias)]]

    takes = f"a token id and a number from {-largest:g} to {largest:g} for it"
    return Check(takes, "ID=VALUE", read, parse, kind="many")


def letters(allowed: str) -> Check:
    """A text of some letters alone, in either case; kept in upper case."""

    def read(value: object) -> object:
        made = value.upper() if isinstance(value, str) else ""
        return made if 0 < len(made) <= 4096 and set(made) <= set(allowed) else None

    return Check(f"a text of the letters {' and '.join(allowed)}", "LETTERS", read)


def plain_name() -> Check:
    """A name that can be one part of a path."""

    def read(value: object) -> object:
        good = (
            isinstance(value, str)
            and 0 < len(value.encode(errors="replace")) <= 200
            and value.isprintable()
            and not set(value) & set("/\\:")
            and value not in (".", "..")
        )
        return value if good else None

    return Check("a plain name, without / or control characters", "NAME", read)


def file_path() -> Check:
    """A path; kept as a `Path`. Bytes that are not UTF-8 are allowed, as file systems do."""

    def read(value: object) -> object:
        from pathlib import Path

        good = isinstance(value, (str, Path)) and str(value) and "\0" not in str(value)
        return Path(str(value)) if good else None

    return Check("a path", "PATH", read)


def path_or(word: str) -> Check:
    """A path, or one word as it is; a file of that name is reached as `./word`."""
    paths = file_path()

    def read(value: object) -> object:
        return value if type(value) is str and value == word else paths.read(value)

    return Check(f"a path, or {word}", "PATH", read)


def size() -> Check:
    """A number of bytes, or text such as "5GB" (10**9 each) or "4GiB" (2**30 each); kept as int."""

    def read(value: object) -> object:
        number = value if type(value) is int else None
        if isinstance(value, str) and (match := re.fullmatch(_SIZE, value.strip())):
            whole, decimals, unit = match.group(1), match.group(2) or "", match.group(3) or ""
            number = int(whole + decimals) * _UNITS[unit.lower()] // 10 ** len(decimals)
        return number if number is not None and 0 < number <= _LARGEST_SIZE else None

    takes = 'a size such as "5GB", "500MB", "4GiB" or a number of bytes'
    return Check(takes, "SIZE", read)


def shown(value: object) -> str:
    """A value as messages show it: in TOML's words, and short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 128:
        return "so large a number"
    return f'"{_short(value)}"' if isinstance(value, str) else _short(str(value))


def dotted(path: KeyPath) -> str:
    """A key's path as text: `convert.layers[2].bits`."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return words.removeprefix(".")


def nearest(word: str, known: list[str]) -> str:
    """What to say of a misspelt word: the nearest known one, or all of them."""
    from difflib import get_close_matches

    # What begins with the word is what its writer began to write: --temp is no --system.
    longer = [name for name in known if name.startswith(word) and word.strip("-")]
    near = [min(longer, key=len)] if longer else get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _short(words: str) -> str:
    return words if len(words) <= 60 else f"{words[:40]}...{words[-10:]}"


def _whole(text: str) -> int:
    """Python's own limit on digits is no reason to call a number none."""
    digits = text.lstrip("+-")
    if len(digits) > 100 and digits.isdigit():
        return -(10**100) if text.startswith("-") else 10**100
    return int(text)


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_INT


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, from argv or JSON
        raise InvalidValue("this is not valid Unicode", "write it as UTF-8 text") from error
    return True
