"""The check of a value that is JSON: given as a file to a flag, as a table or a text elsewhere.

Apart from `configs.checks`, of whose kind it is. Knows nothing of what the JSON means.
"""

from __future__ import annotations

import sys

from configs.checks import Check, InvalidValue, text

_LONGEST = 16 * 2**20


def json_of(kind: type, takes: str) -> Check:
    """JSON of one kind, as it is or as text; kept as text. A flag's value names a file.

    Args:
        kind: What it is parsed to: dict or list.
        takes: The kind in words, after "it takes".
    """
    as_text = text("text")

    def read(value: object) -> object:
        import json

        try:
            found = json.loads(as_text(value)) if isinstance(value, str) else value  # type: ignore[arg-type]
            kept = json.dumps(found, ensure_ascii=False, allow_nan=False)
        except InvalidValue:
            raise
        except (TypeError, ValueError, RecursionError) as error:
            what = str(error).partition("\n")[0]
            raise InvalidValue("this is not JSON", f"it takes {takes}, and: {what}") from error
        return as_text(kept) if isinstance(found, kind) else None

    return Check(takes, "FILE|-", read, _file_text)


def _file_text(name: str) -> str:
    """A file's text; "-" is stdin.

    Raises:
        OSError: It can't be read.
        ValueError: It is no text, or too long.
    """
    if name == "-":
        data = b"" if sys.stdin is None else sys.stdin.buffer.read(_LONGEST + 1)
    else:
        with open(name, "rb") as file:  # noqa: PTH123 -- pathlib's import costs more
            data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise ValueError(f"{name} is larger than {_LONGEST} bytes")
    return data.decode("utf-8-sig")
