"""Logits to the next token.

Owns the order of the filters and the random numbers of one request:

    logit bias -> repetition, presence, frequency penalty -> no end before min_tokens
    -> what is allowed -> temperature -> top-k -> top-p -> min-p -> XTC -> draw

Each filter works on what the one before left, probabilities taken anew (the order of
transformers; XTC comes last, as where it was first made). Tokens of equal probability are
kept or left out together. At a temperature below 1e-5 the most probable token after
the penalties is taken. `top_k` of the vocabulary's size or more filters nothing.

The random numbers of the n-th token of an answer are a function of the seed and n
alone, so a seed gives the same text alone, in any batch, and streamed or not.
Knows nothing of models, text or other requests.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Collection, Sequence

import mlx.core as mx

from inference.request import SamplingOptions, TokenRequest


class Sampler:
    """Draws the tokens of one request; all of it stays on the device, unevaluated.

    Args:
        options: How to draw.
        prompt: Token ids that stand before the answer; the repetition penalty looks back
            on them too.
        min_tokens: No token of `stop_ids` is drawn before the answer has so many.
        stop_ids: Tokens that end the answer.
        exempt_ids: Tokens that XTC never leaves out.

    Attributes:
        allowed: What the next token may be, [vocabulary], bool; None for any.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt: Sequence[int],
        *,
        min_tokens: int = 0,
        stop_ids: Collection[int] = (),
        exempt_ids: Collection[int] = (),
    ) -> None:
        self._options = options
        self.allowed: mx.array | None = None
        self._drawn = 0
        self._endless = min_tokens if stop_ids else 0
        self._stop_ids = mx.array(sorted(stop_ids), mx.uint32)
        self._exempt_ids = mx.array(sorted(exempt_ids), mx.uint32) if exempt_ids else None
        self._bias = _as_arrays(options.logit_bias)
        self._repeated = _window(
            options.repetition_penalty != 1.0, options.repetition_context, prompt
        )
        self._present = _window(options.presence_penalty != 0.0, options.presence_context)
        self._frequent = _window(options.frequency_penalty != 0.0, options.frequency_context)

    @classmethod
    def of(cls, request: TokenRequest) -> Sampler:
        """The sampler of one answer."""
        return cls(
            request.options.sampling,
            request.prompt,
            min_tokens=request.options.min_tokens,
            stop_ids=request.stop_ids,
            exempt_ids=request.exempt_ids,
        )

    @property
    def plain(self) -> bool:
        """Whether the next token is no more than the largest logit."""
        windows = (self._repeated, self._present, self._frequent)
        return (
            self._options.greedy
            and self._bias is None
            and self.allowed is None
            and self._drawn >= self._endless
            and not any(windows)
        )

    def skip(self) -> None:
        """Count a token that was drawn elsewhere, while `plain`."""
        self._drawn += 1

    def fork(self) -> Sampler:
        """One that draws on from here as this one would, without changing it."""
        made = copy.copy(self)
        for name in ("_repeated", "_present", "_frequent"):
            setattr(made, name, copy.copy(getattr(self, name)))
        return made

    def __call__(self, logits: mx.array) -> mx.array:
        """Draw a token.

        Args:
            logits: [vocabulary], in any float type.

        Returns:
            The token's id, [1].
        """
        left = self.left(logits)
        if self._options.greedy:
            token = mx.argmax(left, axis=-1, keepdims=True)
        else:
            token = mx.random.categorical(left[None], key=self._key())
        for window in (self._repeated, self._present, self._frequent):
            if window is not None:
                window.push(token)
        self._drawn += 1
        return token

    def left(self, logits: mx.array) -> mx.array:
        """What the next token is drawn from.

        Args:
            logits: [vocabulary], in any float type.

        Returns:
            [vocabulary], float32: log-probabilities but for a constant, -inf for what is
            left out.
        """
        options = self._options
        logits = self._adjust(logits.astype(mx.float32))
        if options.greedy:
            return logits
        # From the largest down, so that no temperature overflows.
        logits = (logits - mx.max(logits)) / options.temperature
        logits = keep_top(logits, options.top_k, options.top_p)
        if options.min_p > 0.0:
            lowest = mx.max(logits) + math.log(options.min_p)
            logits = mx.where(logits < lowest, -mx.inf, logits)
        if options.xtc_probability > 0.0:
            fewer = leave_out_top(logits, options.xtc_threshold, self._exempt_ids)
            drawn = mx.random.uniform(key=self._key(" xtc"))
            logits = mx.where(drawn < options.xtc_probability, fewer, logits)
        return logits

    def _adjust(self, logits: mx.array) -> mx.array:
        """All that comes before the temperature."""
        options, size = self._options, logits.shape[-1]
        if self._bias is not None:
            ids, values = self._bias
            logits = logits.at[ids].add(values)
        if self._repeated is not None:
            # Keskar et al., 2019 (arXiv:1909.05858), with the sign-aware form in use since.
            penalty = options.repetition_penalty
            penalized = mx.where(logits > 0, logits / penalty, logits * penalty)
            logits = mx.where(self._repeated.counts(size) > 0, penalized, logits)
        if self._present is not None:
            logits = logits - options.presence_penalty * (self._present.counts(size) > 0)
        if self._frequent is not None:
            logits = logits - options.frequency_penalty * self._frequent.counts(size)
        if self._drawn < self._endless:
            logits = mx.put_along_axis(
                logits, self._stop_ids, mx.array(-mx.inf, mx.float32), axis=-1
            )
        if self.allowed is not None:
            logits = mx.where(_sized(self.allowed, size), logits, -mx.inf)
        return logits

    def _key(self, purpose: str = "") -> mx.array:
        text = f"{self._options.seed} {self._drawn}{purpose}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return mx.array(list(memoryview(digest).cast("I")), mx.uint32)


def sample_rows(samplers: Sequence[Sampler], logits: mx.array) -> mx.array:
    """Draw one token for each of several answers, each as it would be alone.

    Args:
        samplers: One a row.
        logits: [rows, vocabulary], in any float type.

    Returns:
        The tokens' ids, [rows].
    """
    plain = [sampler.plain for sampler in samplers]
    best = mx.argmax(logits, axis=-1) if any(plain) else None
    tokens = []
    for row, sampler in enumerate(samplers):
        if best is not None and plain[row]:
            sampler.skip()
            tokens.append(best[row : row + 1])
        else:
            tokens.append(sampler(logits[row]))
    return best if best is not None and all(plain) else mx.concatenate(tokens)


def keep_top(logits: mx.array, top_k: int, top_p: float) -> mx.array:
    """Leave out all but the `top_k` largest, then all but the nucleus of what is left.

    The nucleus is the smallest set of most probable tokens that together have probability
    `top_p` (Holtzman et al., 2019, arXiv:1904.09751), with all that equal its last.

    Args:
        logits: [vocabulary], float32.
        top_k: 0 keeps all.
        top_p: 1 keeps all.

    Returns:
        The same, -inf where a token is left out.
    """
    limited = 0 < top_k < logits.shape[-1]
    if not limited and top_p >= 1.0:
        return logits
    largest = mx.topk(logits, top_k) if limited else logits
    if limited:
        logits = mx.where(logits < mx.min(largest), -mx.inf, logits)
    if top_p >= 1.0:
        return logits
    ordered = mx.sort(largest)
    probabilities = mx.exp(ordered - mx.logsumexp(logits))
    above = mx.cumsum(probabilities, reverse=True, inclusive=False)
    # The largest stays whatever rounding makes of what stands above it.
    lowest = mx.minimum(mx.min(mx.where(above < top_p, ordered, mx.inf)), ordered[-1])
    return mx.where(logits < lowest, -mx.inf, logits)


def leave_out_top(logits: mx.array, threshold: float, exempt: mx.array | None) -> mx.array:
    """Leave out the tokens of at least this probability, but for the least probable of them.

    XTC ("exclude top choices", text-generation-webui, pull request 6335). With fewer than
    two such tokens nothing is left out.

    Args:
        logits: [vocabulary], float32.
        threshold: The probability.
        exempt: Ids that are never left out.
    """
    probabilities = mx.softmax(logits, precise=True)
    likely = mx.where(probabilities >= threshold, probabilities, mx.inf)
    out = probabilities > mx.min(likely)
    if exempt is not None:
        out = mx.put_along_axis(out, exempt, mx.array(False), axis=-1)
    return mx.where(out, -mx.inf, logits)


class _Window:
    """How often each token stands among the last ones.

    Args:
        size: How many of them; 0 for all.
        ids: Those that stand there already.
    """

    def __init__(self, size: int, ids: Sequence[int]) -> None:
        self._size = size
        self._recent = mx.array(list(ids[-size:]), mx.uint32)
        self._counts: mx.array | None = None

    def counts(self, vocabulary: int) -> mx.array:
        """[vocabulary], float32."""
        if self._counts is None:
            none = mx.zeros((vocabulary,), mx.float32)
            counts = none.at[self._recent].add(1.0) if self._recent.size else none
            if self._size:
                return counts
            self._counts = counts
        return self._counts

    def push(self, token: mx.array) -> None:
        """Add one token, [1], to the end."""
        if self._size:
            both = mx.concatenate([self._recent, token.astype(mx.uint32)])
            self._recent = both[-self._size :]
        elif self._counts is not None:
            self._counts = self._counts.at[token].add(1.0)


def _window(wanted: bool, size: int, ids: Sequence[int] = ()) -> _Window | None:
    return _Window(size, ids) if wanted else None


def _sized(allowed: mx.array, size: int) -> mx.array:
    """What is allowed, for a head of so many logits; those beyond it never are."""
    if allowed.size < size:
        return mx.pad(allowed, (0, size - allowed.size))
    return allowed[:size]


def _as_arrays(bias: Sequence[tuple[int, float]]) -> tuple[mx.array, mx.array] | None:
    if not bias:
        return None
    ids, values = zip(*bias, strict=True)
    return mx.array(ids, mx.uint32), mx.array(values, mx.float32)
