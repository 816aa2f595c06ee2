"""The text of one answer, from its tokens.

Owns the order: tokens to text, then stop strings on that text. Knows nothing of how
tokens are made or text is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import mlx.core as mx

from inference.detokenize import Detokenizer
from inference.stops import StopMatcher

Kind = Literal["answer", "thinking", "call"]


class Reader(Protocol):
    """Makes the text of one answer from its tokens."""

    @property
    def guides(self) -> bool:
        """Whether `allowed` says something, so that it has to be asked before each token."""

    @property
    def stopped(self) -> bool:
        """Whether the answer is whole, by a stop string or by its form."""

    def allowed(self) -> mx.array | None:
        """What the next token may be, after all that were pushed: [vocabulary], bool.

        None for any.
        """

    def push(self, token: int) -> str:
        """Take a token; return the text that may be shown now."""

    def flush(self) -> str:
        """The text that was held back, once the answer is over."""

    def asides(self) -> Sequence[tuple[Kind, str]]:
        """What was said beside the answer's text since this was last asked."""


class TextReader:
    """Reads an answer for the engine.

    Args:
        decode: Token ids to text.
        stops: End the answer.
        min_tokens: They are looked for in the text that comes after so many tokens.
    """

    guides = False

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

    def allowed(self) -> None:
        """Every token may come next."""

    def asides(self) -> Sequence[tuple[Kind, str]]:
        """All that is said is the answer's text."""
        return ()

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
