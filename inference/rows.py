"""One request under way: what it has read and said, and what its next token means.

Owns the state of a request, and its events. Knows nothing of models, nor of the other
requests.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import mlx.core as mx

from configs.errors import GenerationError
from inference.cache import Held, SequenceCache
from inference.events import Aside, Delta, Event, Finished, FinishReason, Timings, Token, Usage
from inference.guess import Guess
from inference.marks import Mark, go_back
from inference.reader import Reader
from inference.request import TokenRequest
from inference.sampler import Sampler

if TYPE_CHECKING:
    from inference.speculation import Guessing


@dataclass(frozen=True)
class Drawn:
    """A token of an answer.

    Attributes:
        token: Its id.
        total: The log-sum-exp of its logits.
        logprob: Of it and of the most probable tokens, where the request asks for them.
    """

    token: int
    total: float
    logprob: tuple[float, tuple[tuple[int, float], ...]] | None = None


@dataclass(frozen=True)
class Waiting:
    """A request that waits, with the cache that it may begin with."""

    request: TokenRequest
    given: Held | None
    look_at: int | None = None


@dataclass(eq=False)
class Row:
    """A request under way.

    Attributes:
        request: The request.
        sampler: Draws its tokens.
        reader: Makes its text.
        began: When, by the performance counter.
        given: A cache that it may begin with.
        cache: Its own cache; None before it begins to read, and while it has a slot.
        slot: Its place in a batch.
        read: Tokens of the prompt that its cache holds.
        cached: How many of them were not read for it.
        leave_at: After so many tokens of the prompt, others can begin with its cache.
        look_at: After so many, its cache is shown to whoever asked for that.
        token: What its next step reads, [1]; maybe not computed yet.
        drawn: Steps that were begun.
        said: Tokens of the answer, as far as they are known.
        over: Whether it has finished.
        guessing: Makes its guesses; None where none are made.
        guess: What is guessed of its next tokens.
        right: How many of them were right.
        places: Places that were read for them, and its share of those read for nothing.
        beside: Rows of the pass that read them.
        behind: Tokens before `token` that its own cache has not read.
        mark: Where its own cache was before it read the last guesses.
        passes: Calls of the model that gave its tokens.
    """

    request: TokenRequest
    sampler: Sampler
    reader: Reader
    began: float
    given: Held | None = None
    cache: SequenceCache | None = None
    slot: int | None = None
    read: int = 0
    cached: int = 0
    leave_at: int | None = None
    look_at: int | None = None
    token: mx.array = field(init=False)
    drawn: int = 0
    said: list[int] = field(default_factory=list)
    over: bool = False
    guessing: Guessing | None = None
    guess: Guess = field(default_factory=Guess)
    right: int = 0
    places: float = 0.0
    beside: int = 1
    behind: tuple[int, ...] = ()
    mark: Mark | None = None
    passes: int = 0
    _first_at: float | None = None
    _last_at: float = 0.0

    def __post_init__(self) -> None:
        self.token = mx.array(self.request.prompt[-1:], mx.uint32)

    @property
    def begun(self) -> bool:
        """Whether its prompt has begun to be read."""
        return self.cache is not None or self.slot is not None

    @property
    def unread(self) -> int:
        """Prompt tokens before the last, which are read without asking what follows."""
        return len(self.request.prompt) - 1 - self.read

    @property
    def ready(self) -> bool:
        """Whether only its last token stands before the answer."""
        return self.begun and not self.unread

    @property
    def going(self) -> bool:
        """Whether it needs another step."""
        return self.ready and not self.over and self.drawn < self.request.options.max_tokens

    def take(self, drawn: Drawn) -> list[Event]:
        """Say what a token means for the answer."""
        name, token = self.request.id, drawn.token
        if not math.isfinite(drawn.total):
            return self.finish("error", _not_finite(len(self.said)))
        self._last_at = time.perf_counter()
        if self._first_at is None:
            self._first_at = self._last_at
        self.said.append(token)
        events: list[Event] = [] if drawn.logprob is None else [Token(name, token, *drawn.logprob)]
        if token in self.request.stop_ids:
            return events + self.finish("stop")
        text = self.reader.push(token)
        events += [Aside(name, *aside) for aside in self.reader.asides()]
        if text:
            events.append(Delta(name, text))
        if self.reader.stopped:
            return events + self.finish("stop")
        if len(self.said) == self.request.options.max_tokens:
            return events + self.finish("length")
        return events

    def finish(self, reason: FinishReason, error: GenerationError | None = None) -> list[Event]:
        """The last of its events."""
        self.over = True
        name, held = self.request.id, self.reader.flush()
        usage = Usage(len(self.request.prompt), self.cached, len(self.said))
        if self.guessing is not None:
            drafted, accepted = self.guessing.drafted, self.guessing.accepted
            usage = replace(usage, drafted_tokens=drafted, accepted_tokens=accepted)
        events: list[Event] = [Aside(name, *aside) for aside in self.reader.asides()]
        events += [Delta(name, held)] if held else []
        return [*events, Finished(name, reason, usage, self._timings(), error)]

    def held(self, cache: SequenceCache) -> Held | None:
        """Its cache with the tokens that it has read; None where it has read others since."""
        tokens = (*self.request.prompt, *self.said)
        if cache.length > len(tokens):
            marks = () if self.mark is None else (self.mark,)
            if not go_back(cache, len(tokens), marks):
                return None
        return Held(tokens[: cache.length], cache)

    @property
    def _tokens_per_pass(self) -> float | None:
        if self.guessing is None or not self.passes:
            return None
        return self.drawn / self.passes

    def _timings(self) -> Timings:
        if self._first_at is None:
            return Timings(None, None, None)
        first = self._first_at - self.began
        rest = self._last_at - self._first_at
        read = len(self.request.prompt) - self.cached
        return Timings(
            first_token_seconds=first,
            prefill_tokens_per_second=read / first if first > 0 else None,
            decode_tokens_per_second=(len(self.said) - 1) / rest if rest > 0 else None,
            tokens_per_pass=self._tokens_per_pass,
        )


def _not_finite(position: int) -> GenerationError:
    return GenerationError(
        "model",
        f"produced NaN or infinite logits at token {position + 1}",
        "the weights are damaged, or float16 is too small for them: try --dtype float32",
    )
