"""The text and bytes of one token by itself, for log-probabilities.

Owns how a token's bytes are found, whatever kind of vocabulary it is in. Text of several
tokens is `detokenize`'s.
"""

from __future__ import annotations

import re
from functools import cache, cached_property
from typing import Any

from inference.tokenizer import Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_ANCHORS = 2000  # ids to look among for a token whose text is plain


class TokenTexts:
    """Texts of tokens.

    Args:
        tokenizer: Whose tokens they are.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kinds = tokenizer.decoder_kinds()

    def fields(self, token: int) -> dict[str, Any]:
        """Its JSON fields: id, text, and the bytes, of which the text may be only a part."""
        data = self.bytes(token)
        return {"id": token, "text": data.decode("utf-8", "replace"), "bytes": list(data)}

    def bytes(self, token: int) -> bytes:
        """What the token adds to the text in the middle of an answer; b"" if it has no text."""
        piece = self._tokenizer.piece(token)
        if piece is None:
            return b""
        if "ByteLevel" in self._kinds:
            values = [_byte_level().get(char) for char in piece]
            if None not in values:
                return bytes(value for value in values if value is not None)
            return piece.encode()
        if "ByteFallback" in self._kinds and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        before, both = self._decode(self._anchor), self._decode([*self._anchor, token])
        return (both[len(before) :] if both.startswith(before) else both).encode()

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=False) if ids else ""

    @cached_property
    def _anchor(self) -> list[int]:
        """A token to put in front, since decoders treat the first one differently."""
        for token in range(min(_ANCHORS, self._tokenizer.highest_id + 1)):
            text = self._decode([token])
            if text.isascii() and text.isalpha():
                return [token]
        return []


@cache
def _byte_level() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with.

    As GPT-2 set it: a byte that prints as one character of Latin-1 is that character, the
    others follow from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }
