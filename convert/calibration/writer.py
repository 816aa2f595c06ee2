"""Lets a model write rows of token ids: sampled at temperature 1, from seeds that never change.

A row goes on after the end of a text with the next one until it is full, as what a model is
trained on does. Owns the rows and their seeds; the engine is inference's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from configs.errors import GenerationError
from convert.calibration.beginnings import Beginnings
from inference.engine import Engine
from inference.events import Failed, Finished
from inference.request import GenerationOptions, SamplingOptions, TokenRequest

_TOLD_SECONDS = 15.0
_SEEDS = 1000  # of a row


@dataclass
class _Row:
    """A row under way, and the reader of what the engine adds to it.

    Attributes:
        number: From zero.
        ends: Ids after which a text is over.
        tell: Called for every token.
        ids: What it is so far.
        turn: Texts that it has begun.
        stopped: Whether the text is over.
    """

    number: int
    ends: frozenset[int]
    tell: Callable[[], None]
    ids: list[int] = field(default_factory=list)
    turn: int = 0
    stopped: bool = False
    guides = False

    def allowed(self) -> None:
        """Every token may come next."""

    def asides(self) -> Sequence[Any]:
        """Nothing is told apart."""
        return ()

    def push(self, token: int) -> str:
        """Take a token."""
        self.ids.append(token)
        self.stopped = token in self.ends
        self.tell()
        return ""

    def flush(self) -> str:
        """No text is made."""
        return ""


def write(
    model: Any,
    beginnings: Beginnings,
    shape: tuple[int, int],
    *,
    budget_bytes: int | None,
    attention_heads: int | None,
    note: Callable[[str], None],
) -> list[list[int]]:
    """Let a model write.

    Args:
        model: Called with token ids [rows, n] and a cache; gives logits.
        beginnings: Of the rows.
        shape: How many rows, and the positions of each.
        budget_bytes: Most that the KV caches may take; None for no limit.
        attention_heads: As the engine takes it.
        note: Told now and then how far it is.

    Returns:
        The rows.

    Raises:
        GenerationError: there is too little memory for one row, or the logits are no numbers.
    """
    written, told, total = 0, time.perf_counter(), shape[0] * shape[1]

    def tell() -> None:
        nonlocal written, told
        written += 1
        if time.perf_counter() - told > _TOLD_SECONDS:
            told = time.perf_counter()
            note(f"about {written / total:.0%} of the calibration text is written")

    rows = [_Row(number, beginnings.ends, tell) for number in range(shape[0])]
    by_id = {str(row.number): row for row in rows}
    lengths = [shape[1] + beginnings.hidden(row.number) for row in rows]
    engine = Engine(
        model,
        lambda request: by_id[request.id],
        attention_heads=attention_heads,
        max_rows=len(rows),
        budget_bytes=budget_bytes,
    )

    def begin(row: _Row) -> TokenRequest | None:
        """The row's next text; None if it is full."""
        new = list(beginnings.of(row.number, row.turn))
        if row.ids[-1:] == new[:1]:  # what ends a text and what begins one are the same
            new = new[1:]
        row.ids = (row.ids + new)[: lengths[row.number]]
        left = lengths[row.number] - len(row.ids)
        if not left:
            return None
        seed = _SEEDS * row.number + row.turn
        row.turn, row.stopped = row.turn + 1, False
        sampling = SamplingOptions(temperature=1.0, top_p=1.0, seed=seed)
        options = GenerationOptions(sampling=sampling, max_tokens=left)
        return TokenRequest(str(row.number), tuple(row.ids), options)

    requests = [request for row in rows if (request := begin(row)) is not None]
    for event in engine.run(requests):
        if isinstance(event, Failed):
            raise event.error
        if not isinstance(event, Finished):
            continue
        if event.error is not None:
            raise event.error
        row = by_id[event.request]
        if len(row.ids) < lengths[row.number] and (more := begin(row)) is not None:
            engine.submit(more)
    mx.clear_cache()
    if any(len(row.ids) != lengths[row.number] for row in rows):
        raise GenerationError("model", "wrote less than it was to")
    return [row.ids[beginnings.hidden(row.number) :] for row in rows]
