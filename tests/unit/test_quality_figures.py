"""The sums that a quality report is made of, and their standard errors."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from convert.quality.figures import Estimate, Tokens, estimate, figures, kl_difference

RANDOM = np.random.default_rng(0)


def mean(rows: mx.array) -> mx.array:
    return rows.mean(-1)


def taken_in(reference: np.ndarray, found: np.ndarray, targets: np.ndarray) -> Tokens:
    tokens = Tokens()
    for low in range(0, len(targets), 30):  # the last part is shorter
        cut = slice(low, low + 30)
        tokens.add(mx.array(reference[cut]), mx.array(found[cut]), mx.array(targets[cut]))
    tokens.close()
    return tokens


def logits(tokens: int = 100, vocabulary: int = 17) -> np.ndarray:
    return RANDOM.normal(size=(tokens, vocabulary)).astype(np.float32) * 3


def log_softmax(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def test_figures_are_what_numpy_finds() -> None:
    reference, targets = logits(), RANDOM.integers(0, 17, 100)
    found = reference + 0.3 * logits()
    told = figures(taken_in(reference, found, targets))
    p, q = log_softmax(reference), log_softmax(found)
    kl = (np.exp(p) * (p - q)).sum(-1)
    rows = np.arange(100)
    surprise, wanted = -q[rows, targets].mean(), -p[rows, targets].mean()
    assert told.kl_mean.value == pytest.approx(kl.mean(), rel=1e-4)
    assert told.kl_median.value == pytest.approx(np.sort(kl)[49], rel=1e-4)
    assert told.kl_p99.value == pytest.approx(np.sort(kl)[98], rel=1e-4)
    assert told.kl_max.value == pytest.approx(kl.max(), rel=1e-4)
    assert told.agreement.value == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert told.perplexity.value == pytest.approx(np.exp(surprise), rel=1e-4)
    assert told.reference_perplexity.value == pytest.approx(np.exp(wanted), rel=1e-4)
    assert told.perplexity_ratio.value == pytest.approx(np.exp(surprise - wanted), rel=1e-4)
    # Both perplexities hang on the same text: their ratio is known better than either.
    assert told.perplexity_ratio.standard_error < told.perplexity.standard_error / 3


def test_a_standard_error_is_the_textbooks_where_tokens_are_independent() -> None:
    values = RANDOM.normal(5, 2, 4000).astype(np.float32)
    found = estimate(mean, [mx.array(values)])
    assert found.value == pytest.approx(values.mean(), rel=1e-5)
    assert found.standard_error == pytest.approx(values.std() / math.sqrt(4000), rel=0.2)
    assert found == estimate(mean, [mx.array(values)])  # the same draws each time


def test_it_is_larger_where_neighbours_are_alike() -> None:
    apart = RANDOM.normal(0, 1, 100).astype(np.float32)
    alike = np.repeat(apart, 20)
    textbook = alike.std() / math.sqrt(alike.size)
    assert estimate(mean, [mx.array(alike)]).standard_error > 2.5 * textbook


def test_what_is_alike_is_no_worse_and_what_is_damaged_is_no_number() -> None:
    reference, targets = logits(), RANDOM.integers(0, 17, 100)
    same = taken_in(reference, reference, targets)
    assert figures(same).kl_max == Estimate(0.0, 0.0)
    assert kl_difference(same, same) == Estimate(0.0, 0.0)
    masked = reference.copy()
    masked[:, 3] = -np.inf  # a row of the head that both leave out
    assert figures(taken_in(masked, masked, np.zeros(100, int))).kl_mean.value == 0
    broken = figures(taken_in(reference, np.full_like(reference, np.nan), targets))
    assert math.isnan(broken.kl_mean.value)
    assert broken.as_json()["kl_nats"]["mean"] == {"value": None, "standard_error": None}
