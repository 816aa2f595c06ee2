"""The text of `--show-config`: every value as TOML, with its origin as a comment.

It knows how TOML writes a value; what the values mean is the schema's.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from configs.quantization import LayerRule

if TYPE_CHECKING:
    from configs.resolve import Resolved

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def show(resolved: Resolved) -> str:
    """All tables; a key that is not set stands as a comment, for TOML has no null."""
    from configs.schema import TABLES

    lines = []
    for name, table in TABLES.items():
        lines.append(f"[{name}]")
        for key in table.checks:
            value = getattr(getattr(resolved, name), key)
            if value is None:
                lines.append(f"# {key} is not set")
                continue
            origin = toml_text(resolved.origin(f"{name}.{key}"))[1:-1]
            lines.append(f"{key} = {toml_value(value)}  # {origin}")
        lines.append("")
    return "\n".join(lines)


def toml_value(value: object) -> str:
    """One value in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, LayerRule):
        given = {field.name: getattr(value, field.name) for field in fields(value)}
        pairs = [f"{key} = {toml_value(v)}" for key, v in given.items() if v not in (None, False)]
        return f"{{ {', '.join(pairs)} }}"
    if value == Path("self"):
        value = "./self"  # the word alone is no file
    if isinstance(value, (str, Path)):
        return toml_text(str(value))
    raise TypeError(f"no key has a {type(value).__name__}")


def toml_text(text: str) -> str:
    """A string in TOML, all on one line and without invisible characters."""
    return f'"{"".join(_character(c) for c in text)}"'


def _character(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    # TOML has no way to write a lone surrogate, which a path from the command line may hold.
    code = 0xFFFD if "\ud800" <= character <= "\udfff" else ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
