"""One answer held to a form, or to so many tokens of thought.

Owns what the next token of such an answer may be. A form holds what is said; a thinking
section before it is free, and is ended when its budget is used up. Knows nothing of models.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable

import mlx.core as mx

from inference.reader import Kind
from inference.sections import SectionReader, Sections
from inference.structured import Grammar


class GuidedReader:
    """Reads an answer for the engine, and says what may come next.

    Args:
        inner: Reads what is not of the form.
        sections: What it tells apart.
        size: Of the vocabulary.
        budget: Most tokens of a thinking section.
        grammar: Of the form, if one is asked for.
        thoughts: Gives the tokens that a thought before the form may have: [vocabulary], bool.
    """

    guides = True

    def __init__(
        self,
        inner: SectionReader,
        sections: Sections,
        size: int,
        *,
        budget: int | None = None,
        grammar: Grammar | None = None,
        thoughts: Callable[[], mx.array] | None = None,
    ) -> None:
        self._inner = inner
        self._sections = sections
        self._size = size
        self._budget = budget
        self._grammar = grammar
        self._thoughts = thoughts
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._thought = 0
        self._said = False
        # The token with which the model may begin to think in place of the form.
        self._begin = sections.start_ids[0] if grammar is not None and sections.begins else None
        # Where every message has a head, the first one is that of the thought.
        heads = grammar is not None and bool(sections.after_ids)
        self._forced: deque[int] = deque(sections.start_ids if heads else ())
        self._check_budget()

    @property
    def stopped(self) -> bool:
        """Whether the answer is whole: by a stop string, or since nothing can follow."""
        if self._grammar is None:
            return self._inner.stopped
        return self._said and self._grammar.complete

    def allowed(self) -> mx.array | None:
        """What the next token may be: [vocabulary], bool; None for any.

        Raises:
            GenerationError: Nothing can follow.
        """
        if self._forced:
            return self._only(self._forced[0])
        if self._grammar is None:
            return None
        if self._inner.kind == "thinking":
            return None if self._thoughts is None else self._thoughts()
        allowed = self._grammar.allowed()
        return allowed if self._begin is None else allowed | self._only(self._begin)

    def push(self, token: int) -> str:
        """Take a token; return the text of the answer that may be shown now.

        Raises:
            GenerationError: It may not come here.
        """
        before, begin = self._inner.kind, self._begin
        forced = bool(self._forced) and self._forced.popleft() == token
        self._begin = None
        if self._grammar is None:
            said = self._inner.push(token)
        elif forced or before == "thinking" or token == begin:
            self._inner.push(token)  # what stands beside a marker is not of the form
            said = ""
            if not forced:
                self._lead_on(before)
        else:
            self._said = True
            said = self._bytes.decode(self._grammar.push(token))
        self._thought = self._thought + 1 if before == self._inner.kind == "thinking" else 0
        self._check_budget()
        return said

    def flush(self) -> str:
        """The text that was held back, once the answer is over."""
        held = self._inner.flush()
        return held if self._grammar is None else self._bytes.decode(b"", final=True)

    def asides(self) -> list[tuple[Kind, str]]:
        """What is no text of the answer since this was last asked."""
        return self._inner.asides()

    def _lead_on(self, before: Kind) -> None:
        """Complete what the model began before a form: a thought's marker, or the way from it."""
        if before == "answer":
            self._forced.extend(self._sections.start_ids[1:])
        elif self._inner.kind == "answer":
            self._forced.extend(self._sections.after_ids)

    def _check_budget(self) -> None:
        """End a thought that is long enough."""
        over = self._budget is not None and self._thought >= self._budget
        if over and self._inner.kind == "thinking" and not self._forced:
            self._forced.extend(self._sections.close_ids)

    def _only(self, token: int) -> mx.array:
        return mx.arange(self._size) == token
