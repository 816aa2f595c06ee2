"""What becomes of guessed tokens once the model has read them.

At each place the next token is drawn as it always is, with the request's own random
numbers for that place. Guesses count as long as they are what was drawn, so an answer is
the very text that it would be without them. Owns that comparison, and the bringing back of
a cache that has read wrong guesses. Knows nothing of where guesses come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from inference.cache import SequenceCache
from inference.logprobs import Logprobs, logprobs
from inference.marks import Mark, go_back
from inference.rows import Drawn, Row
from inference.sampler import Sampler


@dataclass(frozen=True)
class _Places:
    """What is drawn at the places of one row, unevaluated."""

    tokens: mx.array
    totals: mx.array
    samplers: list[Sampler]
    logprobs: list[Logprobs]


def unread(row: Row) -> list[int]:
    """The tokens that a row's cache has not read, and the guesses after them."""
    last = row.said[-1] if row.said else row.request.prompt[-1]
    return [*row.behind, last, *row.guess.tokens]


def settle(rows: Sequence[Row], logits: Sequence[mx.array]) -> list[tuple[Row, list[Drawn]]]:
    """Draw, wait for the device, and keep what is right.

    Args:
        rows: With what was guessed for each.
        logits: Of each row, [guesses + 1, vocabulary].

    Returns:
        The tokens of each row, one at least.
    """
    drawn = [_draw(row, found) for row, found in zip(rows, logits, strict=True)]
    mx.eval(
        *(array for each in drawn for array in (each.tokens, each.totals)),
        *(array for each in drawn for found in each.logprobs for array in found.arrays()),
    )
    return [(row, _keep(row, each)) for row, each in zip(rows, drawn, strict=True)]


def bring_back(row: Row, cache: SequenceCache, read: Sequence[int], right: int) -> None:
    """Let a row's own cache forget the guesses that were wrong.

    Where it can't be cut it goes back to before all of `read`, and what was right of that
    is read again with the next token.

    Args:
        row: Whose it is; its mark was made before.
        cache: It has read `read`.
        read: The row's unread tokens, and the guesses.
        right: Guesses that were right.
    """
    wrong = len(row.guess.tokens) - right
    marks = () if row.mark is None else (row.mark,)
    wanted = cache.length - wrong
    row.behind = ()
    if go_back(cache, wanted, marks) != wanted:
        row.behind = tuple(read[: len(read) - wrong])


def mark(row: Row, cache: SequenceCache) -> None:
    """Remember where a row's cache is before it reads guesses."""
    row.mark = Mark.of(cache) if row.guess.tokens else None


def _draw(row: Row, logits: mx.array) -> _Places:
    """Draw the next token at every place, each as if the guesses before it were right."""
    count, sampler, guess = logits.shape[0], row.sampler, row.guess
    samplers: list[Sampler] = []
    if not guess.allowed and sampler.plain:
        tokens = mx.argmax(logits, axis=-1)
        for _ in range(count):
            sampler.skip()
            samplers.append(sampler.fork())
    else:
        found = []
        for place in range(count):
            if guess.allowed:
                sampler.allowed = guess.allowed[place]
            found.append(sampler(logits[place]))
            samplers.append(sampler.fork())
        tokens = mx.concatenate(found)
    totals = mx.logsumexp(logits.astype(mx.float32), axis=-1)
    asked = row.request.options.logprobs
    told = (
        []
        if asked is None
        else [logprobs(logits[n], tokens[n : n + 1], asked) for n in range(count)]
    )
    return _Places(tokens, totals, samplers, told)


def _keep(row: Row, places: _Places) -> list[Drawn]:
    tokens = cast(list[int], places.tokens.tolist())
    totals = cast(list[float], places.totals.tolist())
    right = 0
    while right < len(row.guess.tokens) and tokens[right] == row.guess.tokens[right]:
        right += 1
    row.right = right
    row.sampler = places.samplers[right]
    row.token = mx.array(tokens[right : right + 1], mx.uint32)
    row.drawn += right + 1
    told = [found.read() for found in places.logprobs[: right + 1]]
    return [
        Drawn(tokens[place], totals[place], told[place] if told else None)
        for place in range(right + 1)
    ]
