"""A reader that goes its own way: what could be said is tried on it.

Owns which parts of a reader change as it reads, and are copied; the model's own tables are
shared. Knows nothing of guesses.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any, TypeVar

from inference.calculator import CalculatorReader
from inference.detokenize import Detokenizer
from inference.guide import GuidedReader
from inference.reader import TextReader
from inference.sections import SectionReader
from inference.stops import StopMatcher
from inference.structured import Grammar

T = TypeVar("T")

_PARTS = (
    CalculatorReader,
    Detokenizer,
    Grammar,
    GuidedReader,
    SectionReader,
    StopMatcher,
    TextReader,
)


def forked(reader: T) -> T:
    """A copy of a reader that can be pushed on without changing it."""
    found: T = _forked(reader)
    return found


def _forked(value: Any) -> Any:
    if isinstance(value, _PARTS):
        made = copy.copy(value)
        made.__dict__.update({name: _forked(part) for name, part in value.__dict__.items()})
        return made
    if isinstance(value, list | deque):
        return copy.copy(value)
    if hasattr(value, "deep_copy"):
        return value.deep_copy()  # llguidance's matcher
    if hasattr(value, "getstate"):
        made = type(value)("replace")  # a decoder of bytes
        made.setstate(value.getstate())
        return made
    return value
