"""Token ids to text, one at a time, exactly.

Owns the rule that the pieces joined are what decoding all ids at once gives.
Knows nothing of stop strings or of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes a growing sequence of ids without decoding all of it again.

    Works with any decoder, since it only compares decodings: of the last tokens
    that gave text (the anchor) with and without the new ones. The anchor is there
    because decoders treat the first token differently: they strip its leading
    space, or join a continuation to what stands before it.

    A decoding that ends in U+FFFD may be half a character, and is held until it
    is whole; `flush` gives what never became one.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._anchor = 0
        self._shown = ""

    def push(self, token: int) -> str:
        """Take one token; return the text that is certain now."""
        self._window.append(token)
        text = self._decode(self._window)
        return "" if text.endswith(_REPLACEMENT) else self._advance(text)

    def flush(self) -> str:
        """The rest, once no more tokens can come."""
        return self._advance(self._decode(self._window)) if self._window else ""

    def _advance(self, text: str) -> str:
        if text == self._shown:
            return ""
        if text.startswith(self._shown):
            new = text[len(self._shown) :]
        else:
            # One bad byte makes a byte-fallback decoder give up the good ones before it.
            new = self._decode(self._window[self._anchor :])
        del self._window[: self._anchor]
        self._anchor = len(self._window)
        self._shown = self._decode(self._window)
        return new
