"""An answer told apart into what is thought, what is said, and the calls of tools.

Owns the reading of markers: where they are tokens of the vocabulary only those tokens
count, and elsewhere their text does. Stop strings are looked for in what is said alone.
Knows nothing of how sections are shown, or of what a call means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from inference.detokenize import Detokenizer
from inference.reader import Kind
from inference.stops import StopMatcher
from inference.thinking import Markers
from inference.tools import CallParser

# Stands before the text of a token that is one of the added ones, so that a marker that is
# a token can be told from a text that only spells it; a private-use character.
_TOKEN = "\U000f0002"


@dataclass(frozen=True)
class Added:
    """The added tokens that mean something to a model.

    Attributes:
        texts: By their ids.
        special: Those that are no part of an answer's text.
    """

    texts: Mapping[int, str]
    special: frozenset[str]

    def pattern(self, marker: str) -> str:
        """A marker as it is looked for: each token in it is that token."""
        longest_first = sorted({t for t in self.texts.values() if t in marker}, key=len)[::-1]
        if not longest_first:
            return marker
        return re.sub("|".join(map(re.escape, longest_first)), rf"{_TOKEN}\g<0>", marker)


@dataclass(frozen=True)
class Sections:
    """What is told apart in the answer to one request.

    Attributes:
        added: The model's added tokens.
        thinking: Its markers, if it has any.
        opened: Whether the prompt ends within a thinking section.
        calls: Reads calls of tools, if it may make any.
        start_ids: The tokens of `thinking.start`.
        close_ids: Those of `thinking.close`.
        after_ids: Those of `thinking.after`.
        begins: Whether the model may begin a section itself, by a token that says so.
    """

    added: Added = field(repr=False, compare=False)
    thinking: Markers | None = None
    opened: bool = False
    calls: CallParser | None = None
    start_ids: tuple[int, ...] = ()
    close_ids: tuple[int, ...] = ()
    after_ids: tuple[int, ...] = ()
    begins: bool = False


class SectionReader:
    """Reads an answer of sections for the engine.

    Args:
        decode: Token ids to text, special tokens too.
        sections: What to tell apart.
        stops: End the answer.
        min_tokens: Stop strings are looked for in the text that comes after so many tokens.
    """

    guides = False

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        sections: Sections,
        stops: tuple[str, ...] = (),
        min_tokens: int = 0,
    ) -> None:
        self._detokenizer = Detokenizer(decode)
        self._added = sections.added
        self._stops = StopMatcher(stops)
        self._unstopped = min_tokens
        self._kind: Kind = "thinking" if sections.opened else "answer"
        self._held = ""
        self._trim = sections.opened
        self._call: list[str] = []
        self._asides: list[tuple[Kind, str]] = []
        self._markers = _markers(sections)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stops.stopped

    @property
    def kind(self) -> Kind:
        """What the next token belongs to."""
        return self._kind

    def allowed(self) -> None:
        """Every token may come next."""

    def push(self, token: int) -> str:
        """Take a token; return the text of the answer that may be shown now."""
        piece = self._detokenizer.push(token)
        content = self._added.texts.get(token)
        if content is not None and piece.endswith(content):
            piece = f"{piece[: -len(content)]}{_TOKEN}{content}"
        said = self._read(piece)
        self._unstopped -= self._unstopped > 0
        return said

    def flush(self) -> str:
        """The text of the answer that was held back, once it is over."""
        said = self._read(self._detokenizer.flush())
        held, self._held = self._held, ""
        said += self._take(held) + self._stops.flush()
        if self._call:
            self._asides.append(("call", "".join(self._call)))
            self._call = []
        return said

    def asides(self) -> list[tuple[Kind, str]]:
        """What is no text of the answer since this was last asked: thoughts, and whole calls."""
        found, self._asides = self._asides, []
        return found

    def _read(self, piece: str) -> str:
        self._held += piece
        said = ""
        while True:
            markers = self._markers[self._kind]
            found = [(at, -len(m), m) for m in markers if (at := self._held.find(m)) >= 0]
            if not found:
                break
            at, _, marker = min(found)
            said += self._take(self._held[:at])
            self._held = self._held[at + len(marker) :]
            self._switch(marker, markers[marker])
        shown = len(self._held) - _undecided(self._held, markers)
        said += self._take(self._held[:shown])
        self._held = self._held[shown:]
        return said

    def _switch(self, marker: str, to: Kind | None) -> None:
        """Go on after a marker."""
        text = marker.replace(_TOKEN, "")
        if "call" in (self._kind, to):
            self._call.append(text)
        if self._kind == "call":
            self._asides.append(("call", "".join(self._call)))
            self._call = []
        self._trim = to != "call"
        self._kind = to or self._kind

    def _take(self, text: str) -> str:
        """Text of the section that is being read."""
        if self._kind == "call":
            if text:
                self._call.append(text.replace(_TOKEN, ""))
            return ""
        text = self._plain(text)
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        if self._kind == "thinking":
            if text:
                self._asides.append(("thinking", text))
            return ""
        return text if self._unstopped else self._stops.push(text)

    def _plain(self, text: str) -> str:
        """Without special tokens."""
        if _TOKEN not in text:
            return text
        first, *others = text.split(_TOKEN)
        made = [first]
        for part in others:
            known = [each for each in self._added.special if part.startswith(each)]
            made.append(part.removeprefix(max(known, key=len)) if known else part)
        return "".join(made)


def _markers(sections: Sections) -> dict[Kind, dict[str, Kind | None]]:
    """What is looked for in each kind of section, and the kind that follows it."""
    answer: dict[str, Kind | None] = {}
    thinking: dict[str, Kind | None] = {}
    call: dict[str, Kind | None] = {}
    pattern = sections.added.pattern
    if sections.thinking is not None:
        thinking[pattern(sections.thinking.end)] = "answer"
        # A model whose thought was cut short may still say that it ends.
        silent = (sections.thinking.end, *sections.thinking.silent)
        answer |= dict.fromkeys(map(pattern, silent))
        answer[pattern(sections.thinking.start)] = "thinking"
    if sections.calls is not None:
        answer[pattern(sections.calls.start)] = "call"
        if sections.calls.end:
            call[pattern(sections.calls.end)] = "answer"
    return {"answer": answer, "thinking": thinking, "call": call}


def _undecided(text: str, markers: Iterable[str]) -> int:
    """The length of the longest end of `text` that may become a marker."""
    longest = max(map(len, markers), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0
