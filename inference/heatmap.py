"""A text coloured by how much each of its tokens says: on a terminal.

Owns the grouping of tokens into what can be shown, and the scale of colours, which the
page shares. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.score import Score, TokenScore
from inference.terminal import neutralize

if TYPE_CHECKING:
    from rich.text import Text

LEVELS = 16
"""Shades; the first says next to nothing, the last `LEVELS - 1` bits or more."""

_PALE, _DEEP = (255, 247, 224), (192, 28, 40)


@dataclass(frozen=True)
class Shown:
    """Text that is shown in one colour: a token, or the tokens of one character."""

    text: str
    tokens: tuple[TokenScore, ...]

    @property
    def bits(self) -> float | None:
        """Surprisal of the tokens together; None where nothing precedes them."""
        known = [token.bits for token in self.tokens if token.bits is not None]
        return sum(known) if known else None


def grouped(score: Score, pieces: Sequence[str]) -> list[Shown]:
    """The tokens with their texts; those that end inside a character join the one that ends it.

    Args:
        score: The tokens.
        pieces: The text that each adds, as `inference.report.texts` gives them.
    """
    groups: list[Shown] = []
    waiting: list[TokenScore] = []
    for token, piece in zip(score.tokens, pieces, strict=True):
        waiting.append(token)
        if piece:
            groups.append(Shown(piece, tuple(waiting)))
            waiting = []
    if waiting:
        groups.append(Shown("", tuple(waiting)))
    return groups


def level(bits: float) -> int:
    """The shade of a surprisal: one for each bit."""
    return min(LEVELS - 1, max(0, round(bits)))


def colour(shade: int) -> tuple[int, int, int]:
    """Red, green and blue of a shade, each 0 to 255."""
    part = shade / (LEVELS - 1)
    red, green, blue = (
        round(low + part * (high - low)) for low, high in zip(_PALE, _DEEP, strict=True)
    )
    return red, green, blue


def terminal_map(groups: Sequence[Shown]) -> Text:
    """The text with a background that deepens with every bit, and the scale under it."""
    from rich.text import Text

    text = Text()
    for group in groups:
        shown = neutralize(group.text)
        if group.bits is None:
            text.append(shown)
        else:
            text.append(shown, style=_style(level(group.bits)))
    text.append("\n\nbits ")
    for shade in range(LEVELS):
        label = f" {shade}{'+' if shade == LEVELS - 1 else ''} "
        text.append(label, style=_style(shade))
    text.append("\n")
    return text


def _style(shade: int) -> str:
    red, green, blue = colour(shade)
    ink = "white" if shade > LEVELS // 2 else "black"
    return f"{ink} on #{red:02x}{green:02x}{blue:02x}"
