"""One token more for every answer under way: together, or one by one.

Owns the forward pass of a step and what is drawn from it. Nothing here waits for the
device: a step is begun, and read when the next one has begun. Knows nothing of prompts
or of what a token means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import mlx.core as mx
import mlx.nn as nn

from inference.batching import BatchCache
from inference.cache import SequenceCache
from inference.checking import bring_back, mark, settle, unread
from inference.logprobs import Logprobs, logprobs
from inference.rows import Drawn, Row
from inference.sampler import sample_rows

Between = Callable[[], None]


@dataclass(frozen=True)
class Step:
    """One step of some rows, which the device works on.

    Attributes:
        rows: In this order.
        tokens: [rows], what was drawn.
        totals: [rows], the log-sum-exp of the logits.
        logprobs: Of the rows that ask for them.
        passes: Calls of the model.
    """

    rows: tuple[Row, ...]
    tokens: mx.array
    totals: mx.array
    logprobs: tuple[Logprobs | None, ...]
    passes: int

    def read(self) -> Iterator[tuple[Row, Drawn]]:
        """Wait for the device; what each row drew."""
        mx.eval(self.tokens, self.totals)
        tokens = cast(list[int], self.tokens.tolist())
        totals = cast(list[float], self.totals.tolist())
        for row, token, total, found in zip(self.rows, tokens, totals, self.logprobs, strict=True):
            yield row, Drawn(token, total, None if found is None else found.read())


class Decoder(Protocol):
    """Decodes the rows that are ready."""

    def step(self, rows: Sequence[Row], before_drawing: Between | None = None) -> Step:
        """Begin a step of these rows.

        Args:
            rows: Those that are going.
            before_drawing: Called while the device works on the logits.
        """

    def check(self, rows: Sequence[Row]) -> list[tuple[Row, list[Drawn]]]:
        """Read the guesses of these rows, wait, and give the tokens that each has drawn.

        All that was begun has been looked at.
        """

    def leave(self, row: Row) -> None:
        """A row needs no more steps."""

    def cache(self, row: Row) -> SequenceCache:
        """A row's cache, for whoever goes on with it."""

    def settle(self) -> None:
        """No row will come for a while."""


class OneByOne:
    """A forward pass for each row."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def step(self, rows: Sequence[Row], before_drawing: Between | None = None) -> Step:
        logits = [forward(self._model, row) for row in rows]
        return _draw(rows, mx.stack(logits), len(rows), before_drawing)

    def check(self, rows: Sequence[Row]) -> list[tuple[Row, list[Drawn]]]:
        reads, logits = [unread(row) for row in rows], []
        for row, read in zip(rows, reads, strict=True):
            cache = own_cache(row)
            mark(row, cache)
            places = 1 + len(row.guess.tokens)
            logits.append(self._model(mx.array([read]), cache=cache.layers)[0, -places:])
            cache.advance(len(read))
        found = settle(rows, logits)
        for row, read in zip(rows, reads, strict=True):
            bring_back(row, own_cache(row), read, row.right)
            row.places, row.beside = len(row.guess.tokens), 1
            row.passes += 1
        return found

    def leave(self, row: Row) -> None:
        row.cache = None

    def cache(self, row: Row) -> SequenceCache:
        return own_cache(row)

    def settle(self) -> None:
        """Nothing is shared."""


class Together:
    """One forward pass for all rows.

    A row whose cache is still empty takes its first token alone: a batch is made of what
    its sequences have read.
    """

    def __init__(self, model: nn.Module, mask_axes: int) -> None:
        self.mask_axes = mask_axes
        self._model = model
        self._batch = BatchCache(mask_axes)
        self._rows: dict[int, Row] = {}
        self._nothing = mx.zeros((1,), mx.uint32)

    def step(self, rows: Sequence[Row], before_drawing: Between | None = None) -> Step:
        first = [row for row in rows if row.slot is None and own_cache(row).length == 0]
        self._join([row for row in rows if row.slot is None and row not in first])
        self._close_gaps(tokens=self._batch.longest + 1)
        together = [row for row in rows if row.slot is not None]
        logits = [forward(self._model, row)[None] for row in first]
        if together:
            logits.append(self._forward(together))
        found = logits[0] if len(logits) == 1 else mx.concatenate(logits)
        return _draw([*first, *together], found, len(logits), before_drawing)

    def check(self, rows: Sequence[Row]) -> list[tuple[Row, list[Drawn]]]:
        first = [row for row in rows if row.slot is None and own_cache(row).length == 0]
        self._join([row for row in rows if row.slot is None and row not in first])
        slots = {row.slot: row for row in rows if row.slot is not None}
        width = max((1, *(1 + len(row.guess.tokens) for row in slots.values())))
        self._close_gaps(tokens=self._batch.longest + width)
        slots = {row.slot: row for row in rows if row.slot is not None}
        logits = []
        for row in first:  # its guesses wait until it has read something
            row.guess = replace(row.guess, tokens=(), allowed=row.guess.allowed[:1])
            logits.append(forward(self._model, row)[None])
        if slots:
            reads = [unread(slots[n]) if n in slots else [] for n in range(self._batch.slots)]
            ids = mx.array([read + [0] * (width - len(read)) for read in reads])
            found = self._model(ids, cache=self._batch.begin(width))
            logits += [found[n, : len(reads[n])] for n in slots]
        drawn = settle([*first, *slots.values()], logits)
        if width > 1:
            self._batch.advance({n: 1 + row.right for n, row in slots.items() if n is not None})
        guessed = max(1, sum(bool(row.guess.tokens) for row in rows))
        for row in rows:
            row.places, row.beside = (width - 1) * len(rows) / guessed, len(rows)
            row.passes += 1
        return drawn

    def leave(self, row: Row) -> None:
        row.cache = None
        if row.slot is not None:
            self._batch.leave(row.slot)
            del self._rows[row.slot]
            row.slot = None

    def cache(self, row: Row) -> SequenceCache:
        return own_cache(row) if row.slot is None else self._batch.read(row.slot)

    def settle(self) -> None:
        self._close_gaps()

    def _close_gaps(self, joining: int = 0, tokens: int = 0) -> None:
        moved = self._batch.close_gaps(joining, tokens)
        self._rows = {moved[slot]: row for slot, row in self._rows.items()}
        for slot, row in self._rows.items():
            row.slot = slot

    def _join(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        caches = [own_cache(row) for row in rows]
        self._close_gaps(len(rows), max(cache.length for cache in caches))
        slots = self._batch.join(caches)
        for slot, row in zip(slots, rows, strict=True):
            row.slot, row.cache = slot, None
            self._rows[slot] = row

    def _forward(self, rows: Sequence[Row]) -> mx.array:
        """Logits, [rows, vocabulary], after each row's token."""
        # A row that needs no more steps, but is not over, reads its own last token too.
        ids = [
            self._rows[slot].token if slot in self._rows else self._nothing
            for slot in range(self._batch.slots)
        ]
        layers = self._batch.begin()
        logits: mx.array = self._model(mx.concatenate(ids)[:, None], cache=layers)[:, -1]
        slots = [row.slot for row in rows]
        return logits if slots == list(range(len(ids))) else logits[mx.array(slots)]


def forward(model: nn.Module, row: Row) -> mx.array:
    """Logits, [vocabulary], after a row's token, by its own cache."""
    cache, ids = own_cache(row), row.token
    if row.behind:
        ids = mx.concatenate([mx.array(row.behind, mx.uint32), ids])
        row.behind = ()
    logits: mx.array = model(ids[None], cache=cache.layers)[0, -1]
    cache.advance(ids.size)
    return logits


def own_cache(row: Row) -> SequenceCache:
    """A row's own cache."""
    if row.cache is None:
        raise RuntimeError(f"request {row.request.id} has no cache of its own")
    return row.cache


def _draw(
    rows: Sequence[Row], logits: mx.array, passes: int, before: Between | None = None
) -> Step:
    """Draw each row's next token from logits [rows, vocabulary], and set the device to work."""
    if before is not None:
        mx.async_eval(logits)
        before()
    tokens = sample_rows([row.sampler for row in rows], logits)
    totals = mx.logsumexp(logits.astype(mx.float32), axis=-1)
    asked = [row.request.options.logprobs for row in rows]
    found = tuple(
        None if count is None else logprobs(logits[index], tokens[index : index + 1], count)
        for index, count in enumerate(asked)
    )
    mx.async_eval(tokens, totals, *(array for f in found if f for array in f.arrays()))
    for index, row in enumerate(rows):
        row.token = tokens[index : index + 1]
        row.drawn += 1
        row.passes += 1
    return Step(tuple(rows), tokens, totals, found, passes)
