"""How far vectors, layers' updates, logits and distributions are apart."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest

from convert.proof.errors import distribution_shift, logit_error, relative_error, update_error

mx.random.seed(3)
TOKENS, SIZE = 96, 64
WANTED = mx.random.normal((TOKENS, SIZE))
GIVEN = 100 * mx.random.normal((TOKENS, SIZE))


def with_wrong_tokens(count: int) -> mx.array:
    wrong = mx.arange(TOKENS)[:, None] < count
    return mx.where(wrong, -WANTED, WANTED)


def test_an_error_is_a_share_of_the_vectors_length() -> None:
    assert relative_error(WANTED, WANTED) == 0.0
    assert relative_error(1.25 * WANTED, WANTED) == pytest.approx(0.25, rel=1e-5)
    assert relative_error(1.25e-3 * WANTED, 1e-3 * WANTED) == pytest.approx(0.25, rel=1e-5)


def test_a_layers_error_is_a_share_of_what_it_adds() -> None:
    found, wanted = GIVEN + 1.25 * WANTED, GIVEN + WANTED
    assert update_error(found, wanted, GIVEN) == pytest.approx(0.25, rel=1e-3)
    assert relative_error(found, wanted) < 0.01  # which would look well


@pytest.mark.parametrize("wrong", [1, 3])
def test_every_token_counts_but_where_a_layer_chooses(wrong: int) -> None:
    found, nothing = with_wrong_tokens(wrong), mx.zeros_like(WANTED)
    expected = 2 * math.sqrt(wrong / TOKENS)
    assert update_error(found, WANTED, nothing) == pytest.approx(expected, rel=1e-5)
    assert relative_error(found, WANTED) == pytest.approx(expected, rel=1e-5)
    assert update_error(found, WANTED, nothing, chooses=True) == 0.0


def test_more_tokens_than_a_tie_explains_count_where_it_chooses() -> None:
    nothing = mx.zeros_like(WANTED)
    assert update_error(with_wrong_tokens(5), WANTED, nothing, chooses=True) > 0.2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_wrong(bad: float) -> None:
    found = mx.where(mx.arange(TOKENS)[:, None] == 5, bad, WANTED)
    assert relative_error(found, WANTED) == math.inf
    assert update_error(found, WANTED, GIVEN, chooses=True) == math.inf
    assert logit_error(found, WANTED) == math.inf


def test_a_constant_added_to_logits_changes_nothing() -> None:
    assert logit_error(WANTED + 7.0, WANTED) < 1e-5
    assert logit_error(WANTED * 1.5, WANTED) == pytest.approx(0.5, rel=1e-4)


def test_the_shift_of_a_distribution() -> None:
    even, sure = mx.zeros((4, 2)), mx.array([[math.log(3.0), 0.0]] * 4)
    divergence, agreement = distribution_shift(sure, even)
    assert divergence == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert agreement == 1.0  # the first of two that are even
    assert distribution_shift(WANTED, WANTED) == (0.0, 1.0)
    assert distribution_shift(-WANTED, WANTED)[1] < 0.1
