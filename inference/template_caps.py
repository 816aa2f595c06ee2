"""The caps on what one rendering of a chat template may take.

Owns the clock and the counts. Knows nothing of jinja's syntax or of messages.
All is counted in the running thread, so the caps hold off the main thread too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import TemplateError

MAX_SECONDS = 5.0
MAX_TEXT = 16_000_000  # characters of one text, and of all the output
MAX_TOTAL = 16 * MAX_TEXT  # characters of all texts made on the way
MAX_ITEMS = 200_000  # of a list, with all that it holds
_MAX_BITS = 4096  # of an integer
_MAX_WIDTH = 9999
# A width or precision of five digits, or one taken from the values.
_WIDE_PERCENT = re.compile(r"%(?:\([^()]*\))?[-+ #0]*(?:\d{5,}|\d*\.?\*|\d*\.\d{5,})|%\([^)]*\(")
_WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*\d{5,}|\{[^{}]*\{")


class CapError(TemplateError):
    """A template went over one of the caps."""


class Caps:
    """The clock and the counts of one rendering."""

    def __init__(self) -> None:
        self._deadline = time.thread_time() + MAX_SECONDS
        self._total = 0
        self._output = 0

    def tick(self) -> None:
        """One more step of the template."""
        if time.thread_time() > self._deadline:
            raise CapError(f"took longer than {MAX_SECONDS:g} seconds")

    def output(self, size: int) -> None:
        """Count characters that are put out."""
        self.tick()
        self._output += size
        if self._output > MAX_TEXT:
            raise CapError(f"made more than {MAX_TEXT} characters")

    def text(self, size: int) -> None:
        """Count a text of `size` characters, before it is made where it may be large."""
        self._total += size
        if size > MAX_TEXT or self._total > MAX_TOTAL:
            raise CapError(f"made more than {MAX_TEXT} characters")

    def items(self, count: int) -> None:
        """Check the length of a list, before it is made where it may be long."""
        if count > MAX_ITEMS:
            raise CapError(f"made a list of more than {MAX_ITEMS} items")

    def made(self, value: Any) -> Any:
        """Count a value that was just made; give it back."""
        if isinstance(value, str):
            self.text(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.text(self.measure(value))
        return value

    def measure(self, value: Any) -> int:
        """Characters in a value and all that it holds, each as often as it would be printed."""
        size = items = 0
        left = [value]
        while left:
            found = left.pop()
            items += 1
            if isinstance(found, str):
                size += len(found)
            elif isinstance(found, Mapping):
                left += [*found.keys(), *found.values()]
            elif isinstance(found, (list, tuple, set, frozenset)):
                left += found
            self.items(items + len(left))
        return size + items

    def repeated(self, sequence: str | list[Any] | tuple[Any, ...], count: int) -> None:
        """Check `sequence * count`."""
        times = max(count, 0)
        self.text(self.measure(sequence) * times)
        if not isinstance(sequence, str):
            self.items(len(sequence) * times)

    def integers(self, operator: str, left: int, right: int) -> None:
        """Check an operation on two integers by the bits of what it would give."""
        bits = left.bit_length() + right.bit_length()
        if operator == "**":
            bits = left.bit_length() * max(right, 1)
        if bits > _MAX_BITS:
            raise CapError("made a number that is too large")

    def percent(self, text: str, values: Any) -> None:
        """Check `text % values`."""
        self._formatted(text, text.count("%"), values, _WIDE_PERCENT.search(text))

    def braces(self, text: str, values: Any) -> None:
        """Check `text.format(values)`."""
        fields = text.replace("{{", "").replace("}}", "")
        self._formatted(text, fields.count("{"), values, _WIDE_BRACES.search(fields))

    def _formatted(self, text: str, fields: int, values: Any, wide: object) -> None:
        if wide:
            raise CapError("formats to a width that is too large")
        self.text(len(text) + fields * (_MAX_WIDTH + self.measure(values)))

    def width(self, value: Any) -> None:
        """Check a number that a filter repeats something by."""
        if isinstance(value, int) and abs(value) > 100:
            raise CapError(f"asks for a width or precision of {value}")
