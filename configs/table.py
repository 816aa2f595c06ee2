"""The base of the schema's tables: checked at construction, by the checks of `configs.keys`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

from configs.checks import Check, InvalidValue
from configs.keys import KEYS

DEFAULTS: Mapping[str, Any] = {name: key.default for name, key in KEYS.items()}


class Table:
    """A frozen dataclass whose every field is checked, and normalised, at construction.

    A field may be None only when that is its default.

    Args:
        checks: The check of each field.

    Raises:
        InvalidValue: With the field's name as the first part of its path.
    """

    checks: ClassVar[Mapping[str, Check]]

    def __init_subclass__(cls, *, checks: Mapping[str, Check]) -> None:
        cls.checks = checks

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            try:
                value = self.checks[field.name](value)
            except InvalidValue as error:
                error.path = (field.name, *error.path)
                raise
            object.__setattr__(self, field.name, value)


def checks_of(table: str) -> Mapping[str, Check]:
    """The checks of a table's keys, by field."""
    prefix = f"{table}."
    return {
        name.removeprefix(prefix): key.check
        for name, key in KEYS.items()
        if name.startswith(prefix)
    }
