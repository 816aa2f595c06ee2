"""The YAML front matter of a model card, changed key by key.

Owns splitting a README and replacing top-level keys. The text of all other keys stays as it
is: a parser's round trip would make `false` of the language `no` and lose the comments. Only
the parser's events are read, nothing is built from them. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import yaml  # type: ignore[import-untyped]

LIMIT = 1 << 19  # characters; the longest real ones, full of evaluation results, have a third
_DEEPEST = 24
_FENCED = re.compile(r"\ufeff?\s*---\r?\n(.*?\r?\n)??---(?:\r?\n|\Z)", re.DOTALL)
_NOTHING = ("", "~", "null", "Null", "NULL")


class FrontMatterError(ValueError):
    """Front matter that can't be used, and why."""


@dataclass(frozen=True)
class FrontMatter:
    """Front matter whose top-level keys have been found.

    Attributes:
        text: All of it, without the fences.
        starts: Where each key's text starts, in the order of the text.
        values: What a key holds, as text: one scalar, or a list of them; None where it holds
            something else.
    """

    text: str
    starts: dict[str, int]
    values: dict[str, tuple[str, ...] | None]

    def changed(self, removed: Collection[str], added: Mapping[str, str | list[str]]) -> str:
        """The text without some keys and with others at its end."""
        bounds = [*self.starts.values(), len(self.text)]
        kept = [
            self.text[start:end]
            for key, (start, end) in zip(self.starts, pairwise(bounds), strict=True)
            if key not in removed
        ]
        head = "".join([self.text[: bounds[0]], *kept])
        if head and not head.endswith("\n"):
            head += "\n"
        if not added:
            return head
        tail: str = yaml.safe_dump(dict(added), sort_keys=False, allow_unicode=True, width=1 << 30)
        return head + tail


def split_readme(readme: str) -> tuple[str, str]:
    """The front matter of a README, empty if it has none, and what follows it."""
    found = _FENCED.match(readme)
    if found is None:
        return "", readme.removeprefix("\ufeff")
    return found[1] or "", readme[found.end() :]


def read_front_matter(text: str) -> FrontMatter:
    """Find the top-level keys.

    Raises:
        FrontMatterError: It is no YAML, or YAML in a form that can't be changed by key.
    """
    if len(text) > LIMIT:
        raise FrontMatterError(f"it is longer than {LIMIT:,} characters")
    reader = _Reader()
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 2}" if mark is not None else ""
        raise FrontMatterError(f"it is not valid YAML: {error.problem}{place}") from error
    except yaml.YAMLError as error:
        raise FrontMatterError("it holds characters that YAML does not allow") from error
    return FrontMatter(text, reader.starts, reader.values)


class _Reader:
    """Follows the parser's events and notes the keys of the outermost mapping."""

    def __init__(self) -> None:
        self.starts: dict[str, int] = {}
        self.values: dict[str, tuple[str, ...] | None] = {}
        self._depth = 0
        self._key: str | None = None
        self._held: list[str] | None = []

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent):
            raise FrontMatterError(f"it has an alias, *{event.anchor}")
        if isinstance(event, yaml.DocumentStartEvent | yaml.DocumentEndEvent) and event.explicit:
            raise FrontMatterError("it is more than one YAML document")
        if isinstance(event, yaml.NodeEvent):
            self._node(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._depth -= 1
            if self._depth == 1:
                self._end_of_value()

    def _node(self, event: Any) -> None:
        if event.tag is not None:
            raise FrontMatterError(f"it has a tag, {event.tag}")
        scalar = isinstance(event, yaml.ScalarEvent)
        if self._depth == 0:
            if not isinstance(event, yaml.MappingStartEvent) or event.flow_style:
                raise FrontMatterError("it is not a list of `key: value` lines")
        elif self._depth == 1 and self._key is None:
            self._begin(event)
            return
        elif scalar and self._depth <= 2:
            if self._held is not None and (event.style or event.value not in _NOTHING):
                self._held.append(event.value)
        elif self._depth >= 2 or isinstance(event, yaml.MappingStartEvent):
            self._held = None
        if not scalar:
            self._depth += 1
            if self._depth > _DEEPEST:
                raise FrontMatterError("it is nested too deep")
        elif self._depth == 1:
            self._end_of_value()

    def _begin(self, event: Any) -> None:
        if not isinstance(event, yaml.ScalarEvent) or event.start_mark.column:
            raise FrontMatterError("it has keys that do not start their line")
        if event.value in self.starts:
            raise FrontMatterError(f"it gives the key {event.value!r} twice")
        self._key, self._held = event.value, []
        self.starts[event.value] = event.start_mark.index

    def _end_of_value(self) -> None:
        if self._key is not None:
            self.values[self._key] = None if self._held is None else tuple(self._held)
        self._key = None
