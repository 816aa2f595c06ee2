"""Logits to the next token.

Owns the order of the filters and the random numbers of one request:

    repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw

each on what the one before left, probabilities taken anew (the order of
transformers). Temperature 0 takes the most probable token after the penalty.
`top_k` of the vocabulary's size or more filters nothing.

The random number of the n-th token of an answer is a function of the seed and n
alone, so a seed gives the same text alone, in any batch, and streamed or not.
Knows nothing of models, text or other requests.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import mlx.core as mx

from inference.request import SamplingOptions


class Sampler:
    """Draws the tokens of one request; all of it stays on the device, unevaluated.

    Args:
        options: How to draw.
        prompt: Token ids that stand before the answer; the penalty looks back on them.
    """

    def __init__(self, options: SamplingOptions, prompt: Sequence[int]) -> None:
        self._options = options
        self._drawn = 0
        self._recent: mx.array | None = None
        if options.repetition_penalty != 1.0:
            self._recent = mx.array(list(prompt[-options.repetition_context :]), mx.uint32)

    def __call__(self, logits: mx.array) -> mx.array:
        """Draw a token.

        Args:
            logits: [vocabulary], in any float type.

        Returns:
            The token's id, [1].
        """
        options = self._options
        logits = logits.astype(mx.float32)
        if self._recent is not None:
            logits = _penalize(logits, self._recent, options.repetition_penalty)
        if options.temperature == 0.0:
            token = mx.argmax(logits, axis=-1, keepdims=True)
        else:
            # From the largest down, so that no temperature overflows.
            token = self._draw((logits - mx.max(logits)) / options.temperature)
        if self._recent is not None:
            both = mx.concatenate([self._recent, token.astype(mx.uint32)])
            self._recent = both[-options.repetition_context :]
        self._drawn += 1
        return token

    def _draw(self, logits: mx.array) -> mx.array:
        options = self._options
        if 0 < options.top_k < logits.shape[-1]:
            logits = _top_k(logits, options.top_k)
        if options.top_p < 1.0:
            logits = _top_p(logits, options.top_p)
        if options.min_p > 0.0:
            lowest = mx.max(logits) + math.log(options.min_p)
            logits = mx.where(logits < lowest, -mx.inf, logits)
        return mx.random.categorical(logits[None], key=self._key())

    def _key(self) -> mx.array:
        text = f"{self._options.seed} {self._drawn}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return mx.array(list(memoryview(digest).cast("I")), mx.uint32)


def _penalize(logits: mx.array, recent: mx.array, penalty: float) -> mx.array:
    """Divide positive logits of recent tokens by the penalty, multiply negative ones by it.

    CTRL (Keskar et al., 2019, arXiv:1909.05858), with the sign-aware form in use since.
    """
    found = logits[recent]
    return mx.put_along_axis(
        logits, recent, mx.where(found > 0, found / penalty, found * penalty), axis=-1
    )


def _top_k(logits: mx.array, k: int) -> mx.array:
    lowest = mx.min(mx.topk(logits, k, axis=-1))
    return mx.where(logits < lowest, -mx.inf, logits)


def _top_p(logits: mx.array, p: float) -> mx.array:
    """Keep the smallest set of most probable tokens that together have probability `p`.

    Nucleus sampling (Holtzman et al., 2019, arXiv:1904.09751).
    """
    order = mx.argsort(-logits)
    ordered = logits[order]
    probabilities = mx.softmax(ordered, precise=True)
    before = mx.cumsum(probabilities) - probabilities
    kept = mx.where(before < p, ordered, -mx.inf)
    return mx.put_along_axis(logits, order, kept, axis=-1)
