"""How probable a model finds a text: log-probability and rank of every token.

Owns the measurement and its totals. Reads the text once, in pieces, so that the logits
of a long one are never in memory together. Knows nothing of files or output.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from configs.errors import GenerationError
from inference.cache import SequenceCache
from inference.engine import prefill_tokens

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
    """A text's tokens and their totals; the first token counts for nothing."""

    tokens: tuple[TokenScore, ...]

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
    kv_bits: int | None = None,
) -> Score:
    """Score token ids.

    Args:
        model: Token ids [1, n] and a cache to logits [1, n, vocabulary].
        ids: At least one, each below `vocabulary`.
        vocabulary: Size of the last axis of the logits; sets the size of the pieces.
        attention_heads: As for the engine.
        kv_bits: Of the KV cache.

    Raises:
        GenerationError: The model gives NaN, or a token has probability zero.
    """
    cache = SequenceCache(model, kv_bits)
    tokens = [TokenScore(ids[0], None, None)]
    read = 0
    while read < len(ids) - 1:
        largest = max(1, _LOGIT_BYTES // (4 * vocabulary))
        count = min(prefill_tokens(read, attention_heads), largest, len(ids) - 1 - read)
        piece = mx.array([list(ids[read : read + count])])
        targets = mx.array(list(ids[read + 1 : read + count + 1]))[:, None]
        logits = model(piece, cache=cache.layers)[0].astype(mx.float32)
        found = mx.take_along_axis(logits, targets, axis=-1)
        logprobs = found[:, 0] - mx.logsumexp(logits, axis=-1)
        ranks = 1 + mx.sum(logits > found, axis=-1)
        mx.eval(logprobs, ranks)
        cache.compress()
        cache.evaluate()
        mx.clear_cache()
        found_here = zip(
            cast(list[float], logprobs.tolist()), cast(list[int], ranks.tolist()), strict=True
        )
        for logprob, rank in found_here:
            tokens.append(_checked(ids[len(tokens)], logprob, rank, len(tokens)))
        read += count
    return Score(tuple(tokens))


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
