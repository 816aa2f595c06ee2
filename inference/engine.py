"""The one engine: requests in, a stream of events out.

Owns the order of work. Each `step` takes in requests that wait, reads one piece of
one prompt, and decodes one token of every answer under way, so that a long prompt
never stalls the answers that run. Every request has its own cache, sampler and
reader, and what it gives does not depend on the others.

Knows token ids, never text formats: a `Reader` makes text of them and says when a
stop string ends an answer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, cast

import mlx.core as mx
import mlx.nn as nn

from configs.errors import FerryError, GenerationError
from inference.cache import SequenceCache
from inference.events import Delta, Event, Failed, Finished, FinishReason, Started, Timings, Usage
from inference.request import TokenRequest
from inference.sampler import Sampler

PREFILL_TOKENS = 2048
_SCORE_BYTES = 512 * 2**20  # of attention scores at a time, where attention is not fused
_CLEAR_EVERY = 256


class Reader(Protocol):
    """Makes the text of one answer from its tokens."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""

    def push(self, token: int) -> str:
        """Take a token; return the text that may be shown now."""

    def flush(self) -> str:
        """The text that was held back, once the answer is over."""


@dataclass
class _Row:
    """One request under way."""

    request: TokenRequest
    cache: SequenceCache
    sampler: Sampler
    reader: Reader
    began: float
    read: int = 0
    produced: int = 0
    first_token_at: float | None = None
    last_token_at: float = 0.0
    # The step that the device works on: its token, and the log-sum-exp of its logits.
    pending: tuple[mx.array, mx.array] | None = None

    @property
    def unread(self) -> int:
        """Prompt tokens before the last, which are read without asking what follows."""
        return len(self.request.prompt) - 1 - self.read


@dataclass
class Engine:
    """Runs requests on one model.

    Args:
        model: Called with token ids [1, n] and a cache; gives logits [1, n, vocabulary].
        make_reader: Makes the reader of a request.
        kv_bits: Of the KV cache; None keeps it in the compute dtype.
        attention_heads: Query heads of a layer, where attention is not fused: prompts are
            then read in pieces small enough for its scores. None where it is.
        max_rows: Answers under way at once.
    """

    model: nn.Module
    make_reader: Callable[[TokenRequest], Reader]
    kv_bits: int | None = None
    attention_heads: int | None = None
    max_rows: int = 1
    _waiting: deque[TokenRequest] = field(default_factory=deque)
    _rows: list[_Row] = field(default_factory=list)
    _steps: int = 0

    def submit(self, request: TokenRequest) -> None:
        """Take a request; it starts when a row is free."""
        self._waiting.append(request)

    def run(self, requests: Iterable[TokenRequest]) -> Iterator[Event]:
        """Submit requests and yield the events of all until each has finished."""
        for request in requests:
            self.submit(request)
        while self._waiting or self._rows:
            yield from self.step()

    def step(self) -> list[Event]:
        """Admit, prefill, decode."""
        events: list[Event] = self._admit()
        reading = next((row for row in self._rows if row.unread), None)
        if reading is not None:
            events += self._work(self._prefill, reading)
        for row in [row for row in self._rows if not row.unread]:
            events += self._work(self._decode, row)
        self._steps += 1
        if self._steps % _CLEAR_EVERY == 0:
            mx.clear_cache()
        return events

    def _admit(self) -> list[Event]:
        events: list[Event] = []
        while self._waiting and len(self._rows) < self.max_rows:
            request = self._waiting.popleft()
            row = _Row(
                request,
                SequenceCache(self.model, self.kv_bits),
                Sampler(request.options.sampling, request.prompt),
                self.make_reader(request),
                began=time.perf_counter(),
            )
            self._rows.append(row)
            events.append(Started(request.id, len(request.prompt)))
        return events

    def _work(self, task: Callable[[_Row], list[Event]], row: _Row) -> list[Event]:
        """Do a row's work; an error ends that row alone."""
        try:
            return task(row)
        except FerryError as error:
            self._rows.remove(row)
            return [Failed(row.request.id, error)]

    def _prefill(self, row: _Row) -> list[Event]:
        """Read the next piece of a prompt; its logits are never computed."""
        count = min(row.unread, prefill_tokens(row.read, self.attention_heads))
        piece = row.request.prompt[row.read : row.read + count]
        self.model(mx.array([piece]), cache=row.cache.layers)
        row.cache.compress()
        row.cache.evaluate()
        mx.clear_cache()
        row.read += count
        return []

    def _decode(self, row: _Row) -> list[Event]:
        """Give the device the row's next step, then look at the one before."""
        options = row.request.options
        if row.pending is None:
            last = mx.array([row.request.prompt[-1]])
            row.pending = self._forward(row, last)
            return []
        token, total = row.pending
        row.produced += 1
        row.pending = None
        if row.produced < options.max_tokens:
            row.pending = self._forward(row, token)
        return self._take(row, cast(int, token.item()), cast(float, total.item()))

    def _forward(self, row: _Row, token: mx.array) -> tuple[mx.array, mx.array]:
        logits = self.model(token[None], cache=row.cache.layers)[0, -1]
        row.cache.compress()
        step = row.sampler(logits), mx.logsumexp(logits.astype(mx.float32))
        mx.async_eval(step)
        return step

    def _take(self, row: _Row, token: int, total: float) -> list[Event]:
        """Say what a token means for its answer."""
        row.last_token_at = time.perf_counter()
        if row.first_token_at is None:
            row.first_token_at = row.last_token_at
        if not -float("inf") < total < float("inf"):
            row.produced -= 1
            return self._finish(row, "error", _not_finite(row.produced))
        if token in row.request.stop_ids:
            return self._finish(row, "stop")
        text = row.reader.push(token)
        events: list[Event] = [Delta(row.request.id, text)] if text else []
        if row.reader.stopped:
            return events + self._finish(row, "stop")
        if row.produced == row.request.options.max_tokens:
            return events + self._finish(row, "length")
        return events

    def _finish(
        self, row: _Row, reason: FinishReason, error: GenerationError | None = None
    ) -> list[Event]:
        held = row.reader.flush()
        self._rows.remove(row)
        events: list[Event] = [Delta(row.request.id, held)] if held else []
        usage = Usage(len(row.request.prompt), 0, row.produced)
        return [*events, Finished(row.request.id, reason, usage, _timings(row), error)]


def prefill_tokens(read: int, attention_heads: int | None) -> int:
    """How many prompt tokens to read at once, after `read` others."""
    if attention_heads is None:
        return PREFILL_TOKENS
    count = PREFILL_TOKENS
    while count > 16 and 4 * attention_heads * count * (read + count) > _SCORE_BYTES:
        count //= 2
    return count


def _not_finite(position: int) -> GenerationError:
    return GenerationError(
        "model",
        f"produced NaN or infinite logits at token {position + 1}",
        "the weights are damaged, or float16 is too small for them: try --dtype float32",
    )


def _timings(row: _Row) -> Timings:
    if row.first_token_at is None:
        return Timings(None, None, None)
    first = row.first_token_at - row.began
    rest = row.last_token_at - row.first_token_at
    return Timings(
        first_token_seconds=first,
        prefill_tokens_per_second=len(row.request.prompt) / first if first > 0 else None,
        decode_tokens_per_second=(row.produced - 1) / rest if rest > 0 else None,
    )
