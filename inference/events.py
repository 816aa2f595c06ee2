"""The one stream of events that every entry point renders.

Owns the event types. Knows nothing of how they are made or shown. Each event
names its request, since one stream carries many of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.errors import FerryError

FinishReason = Literal["stop", "length", "error", "cancelled"]


@dataclass(frozen=True)
class Usage:
    """Tokens counted; `cached_tokens` of the prompt needed no prefill.

    `completion_tokens` counts every token the model produced, the one that ended
    the answer included. `drafted_tokens` were guessed before the model was asked, and
    `accepted_tokens` of them were right; None where nothing is guessed.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None


@dataclass(frozen=True)
class Timings:
    """Seconds of one request. A request that produced no token has None for the first.

    `tokens_per_pass` of the model is None where nothing is guessed, and it is one.
    """

    first_token_seconds: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    tokens_per_pass: float | None = None


@dataclass(frozen=True)
class Started:
    """The request's prompt begins to be read."""

    request: str
    prompt_tokens: int


@dataclass(frozen=True)
class Delta:
    """More of the answer's text; never empty, never part of a character or stop string."""

    request: str
    text: str


@dataclass(frozen=True)
class Aside:
    """What a model said beside the answer's text.

    Attributes:
        request: Its id.
        kind: "thinking", a piece of what it thinks; "call", a whole call of a tool.
        text: As it said it; a call with its markers.
    """

    request: str
    kind: Literal["answer", "thinking", "call"]
    text: str


@dataclass(frozen=True)
class Token:
    """One token that the model produced, for a request that asks for log-probabilities.

    It comes before the text that it completes. There is one for each of
    `Usage.completion_tokens`, the one that ended the answer included.

    Attributes:
        request: Its id.
        id: The token.
        logprob: Natural logarithm of its probability, before any sampling option.
        top: The most probable tokens at its place, with theirs, best first.
    """

    request: str
    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Finished:
    """The answer is whole, or as whole as it will be (`error` says why it is not)."""

    request: str
    reason: FinishReason
    usage: Usage
    timings: Timings
    error: FerryError | None = None


@dataclass(frozen=True)
class Failed:
    """The request could not be run at all."""

    request: str
    error: FerryError


Event = Started | Delta | Aside | Token | Finished | Failed
