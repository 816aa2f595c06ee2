"""Speculative decoding: which answers have guesses, and whether a model can check them.

Owns a row's guesses and its pace, and the refusal of what does not go together. How
guesses are made is `inference.drafts`' to say, how they are checked `inference.checking`'s.
"""

from __future__ import annotations

from functools import cached_property

import mlx.core as mx
import mlx.nn as nn

from configs.errors import GenerationError, RequestError
from inference.cache import SequenceCache
from inference.drafts import DraftModel, ModelDrafts, PromptLookup, Source
from inference.events import Event
from inference.forks import forked
from inference.guess import Guess
from inference.pace import Account
from inference.request import TokenRequest
from inference.rows import Row
from inference.selfcheck import checking_of

# What checking one token more takes, in passes of one token. On a GPU the weights, which are
# read once a pass, are most of it; on a CPU, where it was measured, the arithmetic is.
_TOKEN_COST = {"cpu": 0.7, "gpu": 0.04}


class Guessing:
    """The guesses of one answer.

    Args:
        sources: The first that has any is asked.
        token_cost: Of checking one.
    """

    def __init__(self, sources: list[Source], token_cost: float) -> None:
        self._sources = sources
        self._account = Account()
        self._token_cost = token_cost
        self._tokens: list[int] = []
        self._asked: Source | None = None
        self.drafted = 0
        self.accepted = 0

    def hopeful(self, row: Row) -> bool:
        """Whether guesses are likely, as far as the row's tokens are known."""
        known = self._known(row)
        hopeful = [source.hopeful(known) for source in self._sources]  # all see what was said
        return any(
            each and self._most(row, s) for each, s in zip(hopeful, self._sources, strict=True)
        )

    def guess(self, row: Row) -> Guess:
        """What may come next, once all of a row's tokens are known."""
        known = self._known(row)
        for source in self._sources:
            most = self._most(row, source)
            if most and (found := source.propose(known, most, row.sampler.fork())):
                self._asked = source
                ends = (n for n, token in enumerate(found) if token in row.request.stop_ids)
                return _allowed(row, found[: next(ends, most)], source.cost)
        self._account.learn(0, 0.0)
        return _allowed(row, [], 0.0)

    def learn(self, row: Row) -> None:
        """What came of the guess that was just checked."""
        if (count := len(row.guess.tokens)) and self._asked is not None:
            self.drafted += count
            self.accepted += row.right
            self._asked.learn(count, row.right)
            spent = row.places * self._token_cost
            spent += count * row.guess.cost * row.beside / self._pass_cost(row)
            self._account.learn(row.right, spent)

    def _pass_cost(self, row: Row) -> float:
        """Of a pass for every row beside this one, in passes of one; less than each alone."""
        return 1 + (row.beside - 1) * self._token_cost

    def _most(self, row: Row, source: Source) -> int:
        if row.behind or not self._account.allows(len(row.said)):
            return 0  # what is read twice comes first, or it would become ever more
        cost = (self._token_cost + source.cost) * row.beside / self._pass_cost(row)
        worth = max(source.least, source.odds.worth(cost))
        most = min(worth, row.request.options.max_tokens - row.drawn - 1)
        change = None if row.cache is None else row.cache.changes_at
        if row.cache is not None and change is not None:
            most = min(most, change - row.cache.length - 2)
        return max(0, most)

    def _known(self, row: Row) -> list[int]:
        if not self._tokens:
            self._tokens += row.request.prompt
        self._tokens += row.said[len(self._tokens) - len(row.request.prompt) :]
        return self._tokens


class Speculation:
    """Speculative decoding with one model.

    Args:
        model: Called with token ids [rows, n] and a cache.
        draft: A smaller model that guesses for every answer.
        mask_axes: Of a batch, where answers are decoded together; None where they are not.
    """

    def __init__(self, model: nn.Module, draft: DraftModel | None, mask_axes: int | None) -> None:
        self._model = model
        self._draft = draft
        self._mask_axes = mask_axes

    def of(self, request: TokenRequest) -> Guessing | None:
        """The guesses of a request; None where it asks for none.

        Raises:
            RequestError: This architecture can't go back in a batch.
        """
        sources: list[Source] = []
        if request.options.prompt_lookup:
            sources.append(PromptLookup())
        if self._draft is not None:
            sources.append(ModelDrafts(self._draft))
        if not sources:
            return None
        if self._refused is not None:
            name = "prompt_lookup" if request.options.prompt_lookup else "draft_model"
            mend = "leave it out, or take one answer at a time (--batch-size 1)"
            raise RequestError(name, self._refused, mend)
        device = "gpu" if mx.default_device() == mx.gpu else "cpu"
        return Guessing(sources, _TOKEN_COST[device])

    @cached_property
    def _refused(self) -> str | None:
        if self._mask_axes is None:
            return None
        kinds = {type(entry).__name__ for entry in SequenceCache(self._model).layers}
        if kinds != {"KVCache"}:
            others = ", ".join(sorted(kinds - {"KVCache"}))
            return f"answers decoded together can't go back in the caches {others}"
        return checking_of(self._model, self._mask_axes)


def guess_next(row: Row) -> list[Event]:
    """Guess what comes next in an answer whose tokens are all known."""
    if row.guessing is not None:
        row.guess = row.guessing.guess(row)
    else:
        row.guess = _allowed(row, [], 0.0)
    return []


def learn(row: Row) -> None:
    """Take note of what became of a row's guess, which is over."""
    if row.guessing is not None:
        row.guessing.learn(row)
    row.guess = Guess()


def _allowed(row: Row, tokens: list[int], cost: float) -> Guess:
    """A guess, cut where the reader's form does not allow it."""
    if not row.reader.guides:
        return Guess(tuple(tokens), cost)
    allowed = [row.reader.allowed()]
    ahead = forked(row.reader)
    if ahead is row.reader:
        return Guess((), cost, tuple(allowed))
    for count, token in enumerate(tokens):
        try:
            ahead.push(token)
            if ahead.stopped:
                return Guess(tuple(tokens[:count]), cost, tuple(allowed))
            allowed.append(ahead.allowed())
        except GenerationError:
            return Guess(tuple(tokens[:count]), cost, tuple(allowed))
    return Guess(tuple(tokens), cost, tuple(allowed))
