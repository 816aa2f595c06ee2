"""Experts are made by the tokens that come to them: in full, by column, or by search."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from checkpoint.packing import Quantization
from convert.calibration.experts import DIAGONAL, FULL, SEARCH, pack_of
from convert.calibration.hessian import Floats
from convert.calibration.judge import Unseen
from convert.calibration.layer import candidates
from convert.calibration.routes import Routes
from tests.unit.test_calibration_numbers import inputs, random

COLUMNS = 256
FORM = Quantization(3, 64, "affine")


def lost(tokens: int) -> tuple[str, float]:
    """How an expert with so many tokens is made, and what it then loses beside search."""
    weights = mx.array(random(32, COLUMNS) * 0.05).astype(mx.bfloat16)
    x = inputs(tokens + 400, COLUMNS)
    way, pack = pack_of(x[:tokens])
    if pack is None:
        return way, 1.0

    def calibrate(exact: Floats, first_row: int, dtype: mx.Dtype) -> tuple[mx.array, ...]:
        return pack(FORM, exact, first_row, dtype)

    judge = Unseen([x[tokens:]])
    found = candidates(lambda low, high: weights[low:high], (32, COLUMNS), FORM, judge, calibrate)
    return way, found.losses[1] / found.losses[0]


@pytest.mark.parametrize(
    ("tokens", "way", "most"),
    [
        (0, SEARCH, 1.0),
        (31, SEARCH, 1.0),
        (32, DIAGONAL, 0.7),
        (64, DIAGONAL, 0.6),
        (127, DIAGONAL, 0.5),
        (128, FULL, 0.6),
        (1024, FULL, 0.25),
    ],
)
def test_the_more_tokens_the_better(tokens: int, way: str, most: float) -> None:
    found, ratio = lost(tokens)
    assert (found, ratio <= most) == (way, True), ratio


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_tokens_that_say_nothing(bad: float) -> None:
    with np.errstate(all="ignore"):
        assert pack_of(np.full((500, COLUMNS), bad, np.float32)) == (SEARCH, None)


def test_routes_there_and_back() -> None:
    indices = mx.array([[[2, 0], [2, 1], [0, 3]]])
    given = mx.arange(12, dtype=mx.float32).reshape(1, 3, 1, 1, 4)
    routes = Routes(indices, 5)
    assert routes.counts == (2, 1, 2, 1, 0)
    gathered = routes.gather(given)
    assert gathered[:, 0].tolist() == [0, 8, 4, 0, 4, 8]
    expected = mx.broadcast_to(given, (1, 3, 2, 1, 4))
    assert mx.array_equal(routes.scatter(gathered), expected)
