"""nanochat's calculator: what a model asks to be worked out, and the result forced back.

Between `<|python_start|>` and `<|python_end|>` the model writes an expression; after it
come `<|output_start|>`, the result and `<|output_end|>`, which the model does not draw but
reads, as nanochat's own engine has it. An expression without a result is passed over.

Owns the watch for those tokens. What has a result, `inference.arithmetic` says.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from configs.errors import RequestError
from inference.arithmetic import work_out
from inference.reader import Kind, Reader
from inference.segments import Segment

if TYPE_CHECKING:
    from inference.tokenizer import Tokenizer

_TOKENS = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")
_PART = re.compile(
    r"(?s)<\|python_start\|>(.*?)<\|python_end\|>|<\|output_start\|>(.*?)<\|output_end\|>"
)
_MOST_TOKENS = 512  # of an expression


@dataclass(frozen=True)
class Marks:
    """The ids of the tokens around an expression and around its result."""

    python_start: int
    python_end: int
    output_start: int
    output_end: int


def parts_of(text: str) -> tuple[dict[str, str], ...]:
    """An answer cut into what was said, worked out and come out, for the model's template.

    Empty where nothing was worked out.
    """
    parts: list[dict[str, str]] = []
    at = 0
    for found in _PART.finditer(text):
        parts.append({"type": "text", "text": text[at : found.start()]})
        kind = "python" if found[1] is not None else "python_output"
        parts.append({"type": kind, "text": found[1] if found[1] is not None else found[2]})
        at = found.end()
    if not parts:
        return ()
    parts.append({"type": "text", "text": text[at:]})
    return tuple(part for part in parts if part["text"] or part["type"] != "text")


def find_marks(tokenizer: Tokenizer) -> Marks:
    """A model's own.

    Raises:
        RequestError: It has none.
    """
    ids = [tokenizer.id_of(token) for token in _TOKENS]
    found = [id_ for id_ in ids if id_ is not None]
    if len(found) < len(_TOKENS):
        what = "this model has no tokens for it, as nanochat's chat models have"
        raise RequestError("calculator", what, "leave it out")
    return Marks(*found)


class CalculatorReader:
    """Reads an answer for the engine, and forces results into it.

    Args:
        inner: Makes its text.
        tokenizer: The model's.
        size: Of the vocabulary.

    Raises:
        RequestError: The model has no tokens for it.
    """

    guides = True

    def __init__(self, inner: Reader, tokenizer: Tokenizer, size: int) -> None:
        self._inner = inner
        self._marks = find_marks(tokenizer)
        self._decode: Callable[[Sequence[int]], str] = tokenizer.decode
        self._tokenizer = tokenizer
        self._size = size
        self._forced: deque[int] = deque()
        self._expression: list[int] | None = None

    @property
    def stopped(self) -> bool:
        """Whether the answer is whole."""
        return self._inner.stopped

    def allowed(self) -> mx.array | None:
        """What the next token may be: [vocabulary], bool; None for any."""
        if self._forced:
            return mx.arange(self._size) == self._forced[0]
        return self._inner.allowed() if self._inner.guides else None

    def push(self, token: int) -> str:
        """Take a token; return the text that may be shown now."""
        if self._forced:
            self._forced.popleft()
        elif token == self._marks.python_start:
            self._expression = []
        elif token == self._marks.python_end and self._expression is not None:
            self._answer(self._expression)
            self._expression = None
        elif self._expression is not None:
            self._expression.append(token)
        return self._inner.push(token)

    def flush(self) -> str:
        """The text that was held back, once the answer is over."""
        return self._inner.flush()

    def asides(self) -> Sequence[tuple[Kind, str]]:
        """What was said beside the answer's text since this was last asked."""
        return self._inner.asides()

    def _answer(self, expression: Sequence[int]) -> None:
        if not expression or len(expression) > _MOST_TOKENS:
            return
        result = work_out(self._decode(expression))
        if result is None:
            return
        written = self._tokenizer.encode_segments([Segment(result)], ())
        self._forced.extend((self._marks.output_start, *written, self._marks.output_end))
