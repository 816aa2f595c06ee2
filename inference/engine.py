"""The one engine: requests in, a stream of events out.

Owns the order of work. Each `step` begins one token more for every answer under way and
looks at the one before, takes in requests that wait as memory allows, and reads a piece
of their prompts: a small one while answers run, so that a long prompt never stalls them.
What a request gives does not depend on the others.

Knows token ids, never text formats: a `Reader` makes text of them, says when a stop
string ends an answer and, where it has a form, what the next token may be.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

import mlx.core as mx
import mlx.nn as nn

from configs.errors import FerryError
from inference.beginning import Beginning
from inference.budget import PIECE_TOKENS, Budget, CacheCost, measure
from inference.cache import Held, KvForm, SequenceCache
from inference.decoding import Decoder, OneByOne, Step, Together, own_cache
from inference.drafts import DraftModel
from inference.events import Event, Failed, Finished, Started, Timings, Usage
from inference.prefill import Prefill
from inference.reader import Reader
from inference.request import TokenRequest
from inference.rows import Row, Waiting
from inference.sampler import Sampler
from inference.selfcheck import Batching, batching_of
from inference.speculation import Speculation, guess_next, learn
from inference.throughput import Throughput

_BETWEEN_TOKENS = 512  # of prompts, read between two tokens of the answers under way
_LOOKAHEAD = 256  # requests taken in before they can start, to see what they share
_CLEAR_EVERY = 256


@dataclass
class Engine:
    """Runs requests on one model.

    Args:
        model: Called with token ids [rows, n] and a cache; gives logits [rows, n, vocabulary].
        make_reader: Makes the reader of a request.
        kv_bits: Of the KV cache; None keeps it in the compute dtype.
        kv_start: Tokens that the cache holds before it is brought to `kv_bits`.
        attention_heads: Query heads of a layer, where attention is not fused: prompts are
            then read in pieces small enough for its scores. None where it is.
        max_rows: Answers under way at once.
        draft: Guesses what comes next in every answer.
        budget_bytes: Most that the KV caches may take; None for no limit.
        throughput: What it all took so far.
    """

    model: nn.Module
    make_reader: Callable[[TokenRequest], Reader]
    kv_bits: int | None = None
    kv_start: int = 0
    attention_heads: int | None = None
    max_rows: int = 1
    draft: DraftModel | None = None
    budget_bytes: int | None = None
    throughput: Throughput = field(default_factory=Throughput)
    _waiting: deque[Waiting] = field(default_factory=deque)
    _rows: list[Row] = field(default_factory=list)
    _begun: Step | None = None
    _cancelled: set[str] = field(default_factory=set)
    _kept: dict[str, Held | None] = field(default_factory=dict)
    _lookers: dict[str, Callable[[SequenceCache], None]] = field(default_factory=dict)
    _steps: int = 0

    def submit(
        self,
        request: TokenRequest,
        given: Held | None = None,
        *,
        keep: bool = False,
        look: Callable[[SequenceCache], None] | None = None,
        look_at: int | None = None,
    ) -> None:
        """Take a request; it starts when there is room.

        Args:
            request: With an id that no other under way has.
            given: A cache to begin with, as far as the prompt begins with what it has
                read. It is the engine's from here.
            keep: Hold the request's own cache for `take_cache`.
            look: Shown the cache once it has read the prompt but for its last token; it may
                copy it, and not change it.
            look_at: Show it after so many tokens of the prompt too.
        """
        self._waiting.append(Waiting(request, given, look_at))
        if keep:
            self._kept[request.id] = None
        if look is not None:
            self._lookers[request.id] = look

    def begin_with(self, beginning: Beginning) -> None:
        """Let every prompt begin with this, as far as it begins alike."""
        self._prefill.beginning = beginning

    def take_cache(self, request: str) -> Held | None:
        """The cache of a request that has finished, if it was to be kept."""
        return self._kept.pop(request, None)

    def cancel(self, request: str) -> None:
        """Finish a submitted request at the next step, with what it has.

        It may be called from a signal handler.
        """
        self._cancelled.add(request)

    def run(self, requests: Iterable[TokenRequest] = ()) -> Iterator[Event]:
        """Yield the events of these requests, and of those submitted, until all have finished.

        Requests are taken from the iterable as there is room. Closing the iterator drops
        whatever is not finished.
        """
        source, more = iter(requests), True
        try:
            while True:
                while more and len(self._waiting) < _LOOKAHEAD:
                    request = next(source, None)
                    if request is None:
                        more = False
                    else:
                        self.submit(request)
                if not self._waiting and not self._rows:
                    return
                yield from self.step()
        finally:
            self._waiting.clear()
            for row in [*self._rows]:
                self._drop(row)
            self._begun = None

    def step(self) -> list[Event]:
        """Decode, admit, prefill."""
        with self.throughput.timed():
            events = [*self._cancel(), *self._decode(), *self._admit(), *self._read()]
        self.throughput.rows = len(self._rows)
        self._steps += 1
        if self._steps % _CLEAR_EVERY == 0:
            mx.clear_cache()
        return events

    def _decode(self) -> list[Event]:
        """Give the device the next step of all, then look at the one before."""
        events: list[Event] = []
        going = [row for row in self._rows if row.going]
        if any(row.guessing is not None and row.guessing.hopeful(row) for row in going):
            before, self._begun = self._begun, None
            events += self._look(before)  # what is guessed follows what is known
            if (checked := self._check()) is not None:
                return events + checked
            going = [row for row in self._rows if row.going]
        before, self._begun = self._begun, None
        guided = [row for row in going if row.reader.guides]

        def look() -> None:
            events.extend(self._look(before))
            for row in guided:
                events.extend(self._guide(row))

        if going:
            if not self._waiting and all(row.ready for row in self._rows):
                self._decoder.settle()
            self._begun = self._decoder.step(going, look if guided else None)
            self.throughput.passes += self._begun.passes
        if not guided:
            look()
        return events

    def _check(self) -> list[Event] | None:
        """Let the model read what can be guessed of the answers; None if nothing can."""
        events: list[Event] = []
        for row in [row for row in self._rows if row.going]:
            events += self._work(row, partial(guess_next, row))
        if not any(row.guess.tokens for row in self._rows if row.going):
            return events or None
        for row, drawn in self._decoder.check([row for row in self._rows if row.going]):
            self.throughput.drafted += len(row.guess.tokens)
            self.throughput.accepted += row.right if row.guess.tokens else 0
            learn(row)
            for each in drawn:
                if not row.over:
                    self.throughput.answer_tokens += 1
                    events += self._work(row, partial(row.take, each))
        self.throughput.passes += 1
        return events

    def _look(self, begun: Step | None) -> list[Event]:
        """Wait for a step, and say what its tokens mean."""
        events: list[Event] = []
        for row, drawn in begun.read() if begun is not None else ():
            if not row.over:
                self.throughput.answer_tokens += 1
                events += self._work(row, partial(row.take, drawn))
        return events

    def _guide(self, row: Row) -> list[Event]:
        """Let a row draw only what its reader allows after the tokens that it knows."""

        def ask() -> list[Event]:
            row.sampler.allowed = row.reader.allowed()
            return []

        return [] if row.over else self._work(row, ask)

    def _admit(self) -> list[Event]:
        """Take in what waits, in order, as far as there is room."""
        events: list[Event] = []
        while self._waiting and len(self._rows) < self.max_rows:
            request = self._waiting[0].request
            if not self._fits(request) and self._rows:
                break
            waiting = self._waiting.popleft()
            if not self._fits(request):
                self._prefill.clear()
            if self._budget is not None and not self._fits(request):
                refusal = self._budget.refusal(len(request.prompt), request.length)
                events.append(Failed(request.id, refusal))
                continue
            try:
                sampler, reader = Sampler.of(request), self.make_reader(request)
                guessing = self._speculation.of(request)
            except FerryError as error:
                events.append(Failed(request.id, error))
                continue
            row = Row(request, sampler, reader, time.perf_counter(), waiting.given)
            row.look_at, row.guessing = waiting.look_at, guessing
            self._rows.append(row)
            events.append(Started(request.id, len(request.prompt)))
        self.throughput.most_rows = max(self.throughput.most_rows, len(self._rows))
        return events

    def _read(self) -> list[Event]:
        """Read prompts, one after the other, but keep no answer waiting for long."""
        most = PIECE_TOKENS if self._begun is None else _BETWEEN_TOKENS
        before = self.throughput.prompt_tokens
        reading = [row for row in self._rows if not row.ready]
        events: list[Event] = []
        for row in reading:
            while not row.over and not row.ready:
                left = most - (self.throughput.prompt_tokens - before)
                if left <= 0:
                    break
                events += self._work(row, partial(self._read_piece, row, left))
        if reading:
            mx.clear_cache()
        return events

    def _read_piece(self, row: Row, most: int) -> list[Event]:
        if not row.begun:
            coming = [r.request.prompt for r in self._rows if not r.begun and r is not row]
            self._prefill.begin(row, [*coming, *(w.request.prompt for w in self._waiting)])
            self.throughput.cached_tokens += row.cached
            if row.leave_at is not None and not self._fits(None, row.leave_at):
                row.leave_at = None
        if row.unread:
            self.throughput.prompt_tokens += self._prefill.read(row, most)
            if row.read == row.look_at and (look := self._lookers.get(row.request.id)):
                look(own_cache(row))
        if not row.unread and (look := self._lookers.pop(row.request.id, None)):
            look(own_cache(row))
        return []

    def _cancel(self) -> list[Event]:
        """Finish what was cancelled."""
        names, self._cancelled = self._cancelled, set()
        events: list[Event] = []
        for row in [row for row in self._rows if row.request.id in names]:
            events += self._work(row, partial(row.finish, "cancelled"))
        for waiting in [w for w in self._waiting if w.request.id in names]:
            self._waiting.remove(waiting)
            name, size = waiting.request.id, len(waiting.request.prompt)
            unread = Finished(name, "cancelled", Usage(size, 0, 0), Timings(None, None, None))
            events += [Started(name, size), unread]
        return events

    def _work(self, row: Row, task: Callable[[], list[Event]]) -> list[Event]:
        """Do a row's work; an error ends that row alone."""
        try:
            events = task()
        except FerryError as error:
            row.over = True
            events = [Failed(row.request.id, error)]
        if row.over:
            self._drop(row)
        return events

    def _drop(self, row: Row) -> None:
        """Let go of a row."""
        row.over = True
        self._lookers.pop(row.request.id, None)
        if row.request.id in self._kept and row.begun:
            self._kept[row.request.id] = row.held(self._decoder.cache(row))
        self._decoder.leave(row)
        self._rows.remove(row)

    def _fits(self, request: TokenRequest | None, beginning: int = 0) -> bool:
        """Whether there is memory for another request, or for a beginning of so many tokens."""
        if self._budget is None:
            return True
        under_way = [row.request for row in self._rows]
        reading = [len(row.request.prompt) for row in self._rows if row.slot is None]
        if request is not None:
            under_way.append(request)
            reading.append(len(request.prompt))
        lengths = [r.length for r in under_way]
        beginnings = [*self._prefill.held, beginning]
        return self._budget.fits(lengths, reading, beginnings)

    @cached_property
    def _prefill(self) -> Prefill:
        return Prefill(self.model, KvForm(self.kv_bits, self.kv_start), self.attention_heads)

    @cached_property
    def _decoder(self) -> Decoder:
        if self.max_rows == 1:
            return OneByOne(self.model)
        quantized = Batching("the KV cache is quantized")
        batching = quantized if self.kv_bits is not None else batching_of(self.model)
        self.throughput.one_by_one = batching.refused
        if batching.refused is not None:
            return OneByOne(self.model)
        return Together(self.model, batching.mask_axes)

    @cached_property
    def _speculation(self) -> Speculation:
        mask_axes = self._decoder.mask_axes if isinstance(self._decoder, Together) else None
        return Speculation(self.model, self.draft, mask_axes)

    @cached_property
    def _budget(self) -> Budget | None:
        if self.budget_bytes is None:
            return None
        cost = measure(self.model, KvForm(self.kv_bits, self.kv_start))
        if self.draft is not None:
            cost = CacheCost((*cost.layers, *measure(self.draft.model).layers))
        return Budget(self.budget_bytes, cost, isinstance(self._decoder, Together))
