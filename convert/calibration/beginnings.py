"""What each row of a text begins with, where a model writes it: in token ids.

Half of a chat model's rows begin with a question, put by its template; all others as its
tokenizer begins a text. Where it puts nothing in front, a row is what the model writes after
the token that stands between texts, and without that token; where there is none either, it
begins with any ordinary token. Owns that; knows nothing of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np

from configs.errors import RequestError, TemplateError
from convert.calibration.prompts import PROMPTS
from inference.request import Message
from inference.template import ChatTemplate
from inference.tokenizer import Tokenizer

_SOME = "The"
_BETWEEN = ("bos", "eos")
# For templates that tell the day: the same text is to be written on every day.
_DAY = date(2025, 1, 15)


@dataclass(frozen=True)
class Beginnings:
    """What rows begin with.

    Attributes:
        first: What the tokenizer puts in front of a text; empty if nothing.
        between: The token that stands between texts, where `first` is empty; None if none does.
        ordinary: Ids that a text may begin with.
        chats: Questions to a chat model, by its template; empty for others.
        ends: Ids that end a text, or an answer.
        refused: Why there are no `chats` though there is a template; else empty.
    """

    first: tuple[int, ...]
    between: int | None
    ordinary: tuple[int, ...]
    chats: tuple[tuple[int, ...], ...]
    ends: frozenset[int]
    refused: str = ""

    def of(self, row: int, turn: int) -> tuple[int, ...]:
        """What a text begins with.

        Args:
            row: Of the row, from zero; the odd ones are chats.
            turn: Which text of the row, from zero.
        """
        if self.chats and row % 2:
            return self.chats[(row // 2 + 7 * turn) % len(self.chats)]
        if self.first or (self.between is None and not self.ordinary):
            return self.first
        if self.between is not None:
            return (self.between,)
        return (int(np.random.default_rng((row, turn)).choice(self.ordinary)),)

    def hidden(self, row: int) -> int:
        """How many tokens in front of a row are not its own."""
        is_chat = bool(self.chats and row % 2)
        return 0 if is_chat or self.first or self.between is None else 1


def beginnings(
    tokenizer: Tokenizer, template: ChatTemplate | None, rows: int, window: int
) -> Beginnings:
    """What a model's rows begin with.

    Args:
        tokenizer: The model's.
        template: Its chat template, if it has one.
        rows: Of its embeddings.
        window: Positions of a row: a question takes three quarters of them at most.

    Raises:
        TokenizerError: the tokenizer gives up on a question.
    """
    whole, plain = tokenizer.encode_text(_SOME), tokenizer.encode_plain(_SOME)
    first = tuple(whole[:1]) if whole[:1] != plain[:1] else ()
    ends = frozenset(each for each in tokenizer.eos_ids if each < rows)
    named = [tokenizer.id_of(tokenizer.special_tokens.get(f"{each}_token")) for each in _BETWEEN]
    between = next((each for each in named if each is not None and each < rows), None)
    added = tokenizer.added.texts
    highest = min(rows, tokenizer.highest_id + 1)
    ordinary = () if between is not None else tuple(set(range(highest)) - set(added) - ends)
    chats, refused = _chats(tokenizer, template, window)
    return Beginnings(first, between, ordinary, chats, ends, refused)


def _chats(
    tokenizer: Tokenizer, template: ChatTemplate | None, window: int
) -> tuple[tuple[tuple[int, ...], ...], str]:
    """The questions, as far as the template takes them, and why it does not."""
    if template is None:
        return (), ""
    found, control = [], tokenizer.control_tokens(template.source)
    for text in PROMPTS:
        try:
            segments = template.render(
                [Message("user", text)],
                control=control,
                special=tokenizer.special(),
                variables={**tokenizer.special_tokens, "strftime_now": _DAY.strftime},
            )
            prompt = tokenizer.encode_segments(segments, control)
        except (TemplateError, RequestError) as error:
            return (), error.what
        if len(prompt) <= window * 3 // 4:
            found.append(tuple(prompt))
    return tuple(found), "" if found else "it puts too much around a question"
