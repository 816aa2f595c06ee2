"""The text of one answer, from its tokens.

Owns the order: tokens to text, then stop strings on that text. Knows nothing of how
tokens are made or text is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inference.detokenize import Detokenizer
from inference.stops import StopMatcher


class TextReader:
    """Reads an answer for the engine."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stops = StopMatcher(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """Take a token; return the text that may be shown now."""
        return self._stops.push(self._detokenizer.push(token))

    def flush(self) -> str:
        """The text that was held back, once the answer is over."""
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()
