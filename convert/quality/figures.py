"""What two models' logits say of each other, token by token, and its sum with standard errors.

Every standard error is a circular block bootstrap's (Politis and Romano, 1992): runs of
neighbouring tokens are drawn anew, since what follows each other is alike. Pure functions of
float32 arrays; the draws are the same each time. Knows neither models nor texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx

from convert.proof.errors import number

LEAST_TOKENS = 64
_DRAWS = 400
_RUN = 32
_TOGETHER = 1 << 22
_DIGITS = 4


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    standard_error: float

    def as_json(self) -> dict[str, float | None]:
        """Four digits of it, and two of its error; null for what JSON has no number for."""
        return {
            "value": rounded(self.value, _DIGITS),
            "standard_error": rounded(self.standard_error, 2),
        }

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.1g}"


@dataclass(frozen=True)
class Figures:
    """A model beside its reference, on one text.

    Attributes:
        kl_mean: Kullback-Leibler divergence from the reference, nats a token.
        kl_median: The same.
        kl_p99: The same.
        kl_max: The same.
        agreement: Share of tokens with the same most probable next one.
        perplexity: Of the model.
        reference_perplexity: Of the reference.
        perplexity_ratio: The first by the second.
    """

    kl_mean: Estimate
    kl_median: Estimate
    kl_p99: Estimate
    kl_max: Estimate
    agreement: Estimate
    perplexity: Estimate
    reference_perplexity: Estimate
    perplexity_ratio: Estimate

    def as_json(self) -> dict[str, Any]:
        """As the receipt has it."""
        return {
            "kl_nats": {
                name: getattr(self, f"kl_{name}").as_json()
                for name in ("mean", "median", "p99", "max")
            },
            "top1_agreement": self.agreement.as_json(),
            "perplexity": self.perplexity.as_json(),
            "perplexity_ratio": self.perplexity_ratio.as_json(),
        }


class Tokens:
    """The figures of every token, taken in part by part.

    Attributes:
        columns: `kl`, `agree`, `nll` and `reference_nll`, each [tokens] once `close`d.
    """

    def __init__(self) -> None:
        self._parts: list[dict[str, mx.array]] = []
        self.columns: dict[str, mx.array] = {}

    def add(self, reference: mx.array, found: mx.array, targets: mx.array) -> None:
        """Take in logits [tokens, vocabulary] of both and the tokens that came next, [tokens]."""
        ours, theirs = (each - mx.logsumexp(each, -1, keepdims=True) for each in (found, reference))
        probable = mx.exp(theirs)
        terms = mx.where(probable > 0, probable * (theirs - ours), 0)
        next_one = targets[:, None]
        part = {
            # A sum of rounding errors can be less than nothing; NaN stays.
            "kl": mx.maximum(terms.sum(-1), 0),
            "agree": (found.argmax(-1) == reference.argmax(-1)).astype(mx.float32),
            "nll": -mx.take_along_axis(ours, next_one, -1)[:, 0],
            "reference_nll": -mx.take_along_axis(theirs, next_one, -1)[:, 0],
        }
        mx.eval(part)
        self._parts.append(part)

    def close(self) -> None:
        """Join the parts."""
        self.columns = {
            name: mx.concatenate([part[name] for part in self._parts]) for name in self._parts[0]
        }
        mx.eval(self.columns)
        self._parts.clear()


def figures(tokens: Tokens) -> Figures:
    """Sum up."""
    columns = tokens.columns

    def of(statistic: Callable[..., mx.array], *names: str) -> Estimate:
        return estimate(statistic, [columns[name] for name in names])

    return Figures(
        kl_mean=of(_mean, "kl"),
        kl_median=of(lambda rows: _quantile(rows, 0.5), "kl"),
        kl_p99=of(lambda rows: _quantile(rows, 0.99), "kl"),
        kl_max=of(lambda rows: rows.max(-1), "kl"),
        agreement=of(_mean, "agree"),
        perplexity=of(lambda rows: mx.exp(_mean(rows)), "nll"),
        reference_perplexity=of(lambda rows: mx.exp(_mean(rows)), "reference_nll"),
        perplexity_ratio=of(
            lambda ours, theirs: mx.exp(_mean(ours) - _mean(theirs)), "nll", "reference_nll"
        ),
    )


def kl_difference(tokens: Tokens, other: Tokens) -> Estimate:
    """Mean divergence less another model's, on the same tokens of text."""
    return estimate(_mean, [tokens.columns["kl"] - other.columns["kl"]])


def layer_errors(errors: Sequence[Mapping[str, mx.array]], name: str) -> tuple[Estimate, ...]:
    """Each layer's error, root mean square over tokens, of `Lockstep.run`'s."""
    return tuple(
        estimate(lambda rows: mx.sqrt(_mean(rows * rows)), [each[name]]) for each in errors
    )


def estimate(statistic: Callable[..., mx.array], columns: Sequence[mx.array]) -> Estimate:
    """A statistic of some columns of the same tokens, with its standard error.

    Args:
        statistic: Of columns [draws, tokens] each, one value a draw.
        columns: [tokens] each.
    """
    with mx.stream(mx.cpu):  # the draws of a GPU need not be the same
        value = number(statistic(*(column[None] for column in columns))[0])
        if not math.isfinite(value):
            return Estimate(value, math.nan)
        count = columns[0].size
        together = max(1, min(_DRAWS, _TOGETHER // count))
        key = mx.random.key(0)
        drawn: list[float] = []
        while len(drawn) < _DRAWS:
            key, own = mx.random.split(key)
            runs = -(-count // _RUN)
            starts = mx.random.randint(0, count, (together, runs, 1), key=own)
            places = ((starts + mx.arange(_RUN)) % count).reshape(together, -1)[:, :count]
            found = statistic(*(column[places] for column in columns))
            drawn += cast(list[float], found.tolist())
        drawn = drawn[:_DRAWS]
    mean = math.fsum(drawn) / _DRAWS
    return Estimate(value, math.sqrt(math.fsum((x - mean) ** 2 for x in drawn) / (_DRAWS - 1)))


def rounded(value: float, digits: int) -> float | None:
    """So many digits; null for what JSON has no number for."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _mean(rows: mx.array) -> mx.array:
    return rows.mean(-1)


def _quantile(rows: mx.array, share: float) -> mx.array:
    return mx.sort(rows, axis=-1)[:, math.ceil(share * rows.shape[-1]) - 1]
