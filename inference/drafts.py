"""Guesses of the tokens to come.

Owns the two sources: what was said before (Saxena, "Prompt lookup decoding", 2023) and a
smaller model (Leviathan et al., 2023, arXiv:2211.17192). Knows nothing of how guesses are
checked, nor of how many are worth it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import mlx.core as mx
import mlx.nn as nn

from inference.budget import PIECE_TOKENS
from inference.cache import KvForm, SequenceCache, common_length
from inference.marks import Mark, can_cut, go_back
from inference.pace import Odds
from inference.sampler import Sampler

_GRAM = 3


class Source(Protocol):
    """Guesses what comes next."""

    cost: float
    """Of one guess, in passes of the model."""

    odds: Odds
    """That a guess is right."""

    least: int
    """How many to guess where the odds are bad, so that they can be told at all."""

    def hopeful(self, tokens: Sequence[int]) -> bool:
        """Whether it will have a guess, as far as can be told from all tokens but the last."""

    def propose(self, tokens: Sequence[int], most: int, sampler: Sampler) -> list[int]:
        """Guess.

        Args:
            tokens: All so far, prompt and answer.
            most: Guesses.
            sampler: Draws the answer; a copy that may be used up.
        """

    def learn(self, guessed: int, right: int) -> None:
        """What came of its guesses: how many were checked, and right from the first on."""


class PromptLookup:
    """Goes on as the text went on where its last tokens stood before.

    It sees what became of every guess that it could have made, checked or not, so that
    none need be checked to tell the odds.
    """

    cost = 0.0
    least = 0

    def __init__(self) -> None:
        self.odds = Odds()
        self._after: dict[tuple[int, ...], int] = {}
        self._seen = 0

    def hopeful(self, tokens: Sequence[int]) -> bool:
        """Whether the last tokens stood somewhere before."""
        return self.place(tokens) is not None

    def propose(self, tokens: Sequence[int], most: int, sampler: Sampler) -> list[int]:
        """Guess; nothing where the last tokens are new."""
        place = self.place(tokens)
        if place is None:
            return []
        found: list[int] = []
        for at in range(place, place + most):
            found.append(tokens[at] if at < len(tokens) else found[at - len(tokens)])
        return found

    def place(self, tokens: Sequence[int]) -> int | None:
        """Where the text last went on from its last tokens; None where it never did."""
        for end in range(max(self._seen, _GRAM), len(tokens)):
            last = tuple(tokens[end - _GRAM : end])
            if self._seen and (place := self._after.get(last)) is not None:
                self.odds.learn(tokens[place] == tokens[end])
            self._after[last] = end
        self._seen = max(self._seen, len(tokens))
        return self._after.get(tuple(tokens[-_GRAM:]))

    def learn(self, guessed: int, right: int) -> None:
        """Nothing that it has not seen."""


class DraftModel:
    """A smaller model of the same tokens.

    Args:
        model: Called with token ids [1, n] and a cache.
        vocabulary: Logits of the model that it guesses for.
        cost: Of one pass, in passes of that model.
        weight_bytes: Of its weights.
    """

    def __init__(
        self, model: nn.Module, vocabulary: int, cost: float, weight_bytes: int = 0
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.cost = cost
        self.weight_bytes = weight_bytes


class ModelDrafts:
    """Goes on as a draft model would, with the request's own random numbers.

    Its logits draw by the very numbers that the model's will, so that where both agree so
    do the tokens drawn.
    """

    least = 1

    def __init__(self, draft: DraftModel) -> None:
        self.cost = draft.cost
        self.odds = Odds()
        self._draft = draft
        self._cache = SequenceCache(draft.model, KvForm())
        self._read: tuple[int, ...] = ()

    def hopeful(self, tokens: Sequence[int]) -> bool:
        """It always has one."""
        return True

    def propose(self, tokens: Sequence[int], most: int, sampler: Sampler) -> list[int]:
        """Guess as many as are asked for."""
        self._catch_up(tuple(tokens))
        mark = Mark.of(self._cache)
        length = self._cache.length
        sampler.allowed = None
        guesses: list[mx.array] = []
        logits = self._logits
        for count in range(most):
            guesses.append(sampler(logits))
            if count < most - 1:
                logits = self._forward(guesses[-1])
        found = cast(list[int], mx.concatenate(guesses).tolist())
        if can_cut(self._cache):
            self._cache.trim(length)
        elif mark is not None:
            mark.restore(self._cache)
        return found

    def learn(self, guessed: int, right: int) -> None:
        """What the odds are."""
        for place in range(min(guessed, right + 1)):
            self.odds.learn(place < right)

    def _catch_up(self, tokens: tuple[int, ...]) -> None:
        """Read what the model has said since; the last logits are kept."""
        shared = min(common_length(self._read, tokens), len(tokens) - 1)
        if go_back(self._cache, shared, ()) != shared:
            self._cache, shared = SequenceCache(self._draft.model, KvForm()), 0
        while (left := len(tokens) - shared) > 0:
            piece = tokens[shared : shared + min(left, PIECE_TOKENS)]
            self._logits = self._forward(mx.array(piece, mx.uint32))
            if left > PIECE_TOKENS:
                self._cache.evaluate()
            shared += len(piece)
        self._read = tokens

    def _forward(self, ids: mx.array) -> mx.array:
        """Logits, [vocabulary] as of the model that is guessed for, after some tokens."""
        logits: mx.array = self._draft.model(ids[None], cache=self._cache.layers)[0, -1]
        self._cache.advance(ids.size)
        size, wanted = logits.shape[-1], self._draft.vocabulary
        if size < wanted:
            return mx.pad(logits.astype(mx.float32), (0, wanted - size), constant_values=-mx.inf)
        return logits[:wanted]
