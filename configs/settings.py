"""One value and where it came from: what travels from files and flags to `configs.resolve`.

Apart from the rest, so that a command can build its flags, and refuse them, at little cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from configs.checks import InvalidValue, KeyPath, dotted
from configs.errors import ConfigError


class Setting(NamedTuple):
    """A checked value and where it came from, in words for the user."""

    value: object
    origin: str


Layer = Mapping[str, Setting]
"""Settings of one source by dotted key, such as `generate.temperature`."""


def refusal(origin: str, key: KeyPath, error: InvalidValue) -> ConfigError:
    """An invalid value as the user's error: a flag or `--set` names the key, a file does not.

    Args:
        origin: Where the value stands.
        key: Its table and key; `error.path` goes on from there.
        error: What is wrong.
    """
    inner = dotted(error.path) if origin.startswith("--") else dotted((*key, *error.path))
    return ConfigError(origin, f"{inner}: {error.what}" if inner else error.what, error.mend)
