"""The text of one answer, from its tokens.

Owns the order: tokens to text, then stop strings on that text. Knows nothing of how
tokens are made or text is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from inference.detokenize import Detokenizer
from inference.stops import StopMatcher


class Reader(Protocol):
    """Makes the text of one answer from its tokens."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""

    def push(self, token: int) -> str:
        """Take a token; return the text that may be shown now."""

    def flush(self) -> str:
        """The text that was held back, once the answer is over."""


class TextReader:
    """Reads an answer for the engine.

    Args:
        decode: Token ids to text.
        stops: End the answer.
        min_tokens: They are looked for in the text that comes after so many tokens.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: tuple[str, ...],
        min_tokens: int = 0,
    ) -> None:
        self._unstopped = min_tokens
        self._detokenizer = Detokenizer(decode)
        self._stops = StopMatcher(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """Take a token; return the text that may be shown now."""
        text = self._detokenizer.push(token)
        if self._unstopped > 0:
            self._unstopped -= 1
            return text
        return self._stops.push(text)

    def flush(self) -> str:
        """The text that was held back, once the answer is over."""
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()
