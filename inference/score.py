"""How probable a model finds a text: log-probability and rank of every token.

Owns the measurement and its totals. Reads the text once, in pieces, so that the logits
of a long one are never in memory together. Knows nothing of files or output.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from configs.errors import GenerationError
from inference.cache import KvForm, SequenceCache
from inference.prefill import prefill_tokens

_LOGIT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TokenScore:
    """One token, given all before it.

    Attributes:
        id: The token.
        logprob: Natural logarithm of its probability; None for the first token.
        rank: 1 for the most probable token; None for the first token.
    """

    id: int
    logprob: float | None
    rank: int | None

    @property
    def bits(self) -> float | None:
        """Its surprisal."""
        return None if self.logprob is None else -self.logprob / math.log(2)


@dataclass(frozen=True)
class Score:
    """A text's tokens and their totals; the first token counts for nothing.

    Attributes:
        tokens: The tokens in order.
        window: Most tokens that were read together; None where all of them were.
        stride: Tokens that each window but the first scores: each of them has at least
            `window - stride` tokens before it.
    """

    tokens: tuple[TokenScore, ...]
    window: int | None = None
    stride: int | None = None

    @property
    def total_bits(self) -> float:
        """Surprisal of the whole text."""
        return math.fsum(token.bits for token in self.tokens if token.bits is not None)

    @property
    def perplexity(self) -> float | None:
        """2 to the mean surprisal in bits; None where there is but one token, or no such float."""
        scored = len(self.tokens) - 1
        mean = self.total_bits / scored if scored else math.inf
        return 2.0**mean if mean < sys.float_info.max_exp else None


def score(
    model: nn.Module,
    ids: Sequence[int],
    *,
    vocabulary: int,
    attention_heads: int | None = None,
    form: KvForm | None = None,
    window: int | None = None,
    stride: int | None = None,
) -> Score:
    """Score token ids.

    A text of more tokens than a window is read window by window, each `stride` tokens
    after the one before; what the one before has scored is only read again.

    Args:
        model: Token ids [1, n] and a cache to logits [1, n, vocabulary].
        ids: At least one, each below `vocabulary`.
        vocabulary: Size of the last axis of the logits; sets the size of the pieces.
        attention_heads: As for the engine.
        form: Of the KV cache.
        window: Most tokens to read together, at least 2; all of them if None.
        stride: From 1 to `window - 1`; half the window if None.

    Raises:
        GenerationError: The model gives NaN, or a token has probability zero.
    """
    if window is None or len(ids) <= window:
        window, step = None, len(ids)
    else:
        step = window // 2 if stride is None else stride
    tokens = [TokenScore(ids[0], None, None)]
    while len(tokens) < len(ids):
        done = len(tokens)
        end = len(ids) if window is None else min(window if done == 1 else done + step, len(ids))
        begin = 0 if window is None else max(0, end - window)
        reading = _Reading(model, SequenceCache(model, form), attention_heads)
        reading.skip(ids[begin : done - 1])
        while (at := len(tokens)) < end:
            most = max(1, _LOGIT_BYTES // (4 * vocabulary))
            piece = ids[at - 1 : min(end - 1, at - 1 + min(reading.most, most))]
            found = reading.measure(piece, ids[at : at + len(piece)])
            for offset, (logprob, rank) in enumerate(found):
                tokens.append(_checked(ids[at + offset], logprob, rank, at + offset))
    return Score(tuple(tokens), window, step if window is not None else None)


@dataclass
class _Reading:
    """One window being read, piece by piece."""

    model: nn.Module
    cache: SequenceCache
    attention_heads: int | None
    read: int = 0

    @property
    def most(self) -> int:
        """Most tokens of the next piece."""
        most = prefill_tokens(self.read, self.attention_heads)
        change = self.cache.changes_at
        return most if change is None else min(most, change - self.read)

    def skip(self, ids: Sequence[int]) -> None:
        """Read tokens without asking what follows them."""
        while ids:
            piece, ids = ids[: self.most], ids[self.most :]
            self.model(mx.array([list(piece)]), cache=self.cache.layers)
            self._keep(len(piece))

    def measure(self, ids: Sequence[int], targets: Sequence[int]) -> Iterator[tuple[float, int]]:
        """Read tokens; log-probability and rank of each one's successor."""
        wanted = mx.array(list(targets))[:, None]
        logits = self.model(mx.array([list(ids)]), cache=self.cache.layers)[0].astype(mx.float32)
        found = mx.take_along_axis(logits, wanted, axis=-1)
        logprobs = found[:, 0] - mx.logsumexp(logits, axis=-1)
        ranks = 1 + mx.sum(logits > found, axis=-1)
        mx.eval(logprobs, ranks)
        del logits
        self._keep(len(ids))
        return zip(
            cast(list[float], logprobs.tolist()), cast(list[int], ranks.tolist()), strict=True
        )

    def _keep(self, count: int) -> None:
        self.cache.advance(count)
        self.cache.evaluate()
        mx.clear_cache()
        self.read += count


def _checked(token: int, logprob: float, rank: int, position: int) -> TokenScore:
    if math.isnan(logprob):
        raise GenerationError(
            "model",
            f"produced NaN at token {position + 1}",
            "the weights are damaged, or float16 is too small for them: try --dtype float32",
        )
    if math.isinf(logprob):
        raise GenerationError("model", f"gives token {position + 1} the probability zero")
    return TokenScore(token, logprob, rank)
