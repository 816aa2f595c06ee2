"""The numbers of calibration: moments, grids, error feedback, refit, and the choice of a layer."""

from __future__ import annotations

import itertools
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoint.packing import Quantization
from convert.calibration.gptq import Grid, gptq
from convert.calibration.grid import STORES, first_grid, nearest
from convert.calibration.hessian import Moments, System, inverse_factor
from convert.calibration.judge import Evenly, Judge, Unseen
from convert.calibration.layer import Outcome, Packed, Solver, candidates, chosen
from convert.calibration.refit import refit
from convert.search import search

Floats = NDArray[np.float32]
BFLOAT16 = STORES[mx.bfloat16]


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(tokens: int, columns: int, seed: int = 1) -> Floats:
    """Inputs that hang together, a few of them large, as a model's do."""
    mixed = random(tokens, columns, seed=seed) @ random(columns, columns, seed=99)
    scales = 1 + 10 * (np.arange(columns) % 17 == 0)
    return (mixed * scales / np.sqrt(columns)).astype(np.float32)


def loss(grid: Grid, weights: Floats, hessian: NDArray[np.float64]) -> float:
    error = (grid.values() - weights).T.astype(np.float64)
    return float(np.sum((error @ hessian) * error))


def quantized(
    weights: Floats, x: Floats, bits: int, size: int, sweeps: int
) -> tuple[Grid, NDArray[np.float64]]:
    moments = Moments(x.shape[1])
    moments.add(x, x)
    hessian = moments.damped()
    diagonal, factor = hessian.diagonal().astype(np.float32), inverse_factor(hessian)
    levels = (1 << bits) - 1
    grid = gptq(weights, diagonal, factor.astype(np.float32), size, levels, BFLOAT16)
    return refit(grid, weights, hessian.astype(np.float32), levels, BFLOAT16, sweeps), hessian


@pytest.mark.parametrize("dtype", STORES)
def test_numbers_are_stored_as_mlx_stores_them(dtype: mx.Dtype) -> None:
    values = np.concatenate([random(4096) * 10.0**power for power in (-6, -2, 0, 3)])
    expected = np.array(mx.array(values).astype(dtype).astype(mx.float32))
    assert np.array_equal(STORES[dtype](values.astype(np.float32)), expected)


def test_the_factor_is_that_of_the_inverse() -> None:
    x = inputs(200, 24)
    moments = Moments(24)
    moments.add(x, x)
    factor = inverse_factor(moments.damped())
    assert np.array_equal(factor, np.triu(factor))
    assert np.allclose(factor.T @ factor @ moments.damped(), np.eye(24), atol=1e-8)


def test_wanted_weights_make_of_our_inputs_what_the_source_makes_of_its_own() -> None:
    """They are least squares' own."""
    x, source, lack = inputs(300, 16), inputs(300, 16, seed=2), random(300, 8, seed=6)
    weights = random(8, 16)
    moments = Moments(16, 8)
    moments.add(x[:100], source[:100], lack[:100])
    moments.add(x[100:], source[100:], lack[100:])
    found = System(moments, 1e-7).wanted(weights[2:], 2)
    expected, *_ = np.linalg.lstsq(x, source @ weights.T + lack, rcond=None)
    near = 0.01 * np.abs(expected).max()
    assert np.allclose(found, expected[:, 2:], atol=near)
    # The same, told of what the output lacks in all.
    alone = Moments(16, drifts=False)
    alone.add(x)
    besides = (((source - x) @ weights.T + lack).T @ x).astype(np.float32)
    other = System(alone, 1e-7).wanted(weights[2:], 2, besides[2:])
    assert np.allclose(other, expected[:, 2:], atol=near)


def test_the_loss_is_that_of_the_outputs() -> None:
    x, source = inputs(300, 16), inputs(300, 16, seed=2)
    weights, made, lack = random(8, 16), random(8, 16, seed=5), random(300, 8, seed=6)
    expected = np.square(x @ made.T - source @ weights.T - lack).sum()
    parts = ([each[:100], each[100:]] for each in (x, source, lack))
    judge = Unseen(*parts)
    found = sum(
        judge.loss(made[low : low + 4], judge.wanted(weights[low : low + 4], low)) for low in (0, 4)
    )
    assert found == pytest.approx(float(expected), rel=1e-5)
    evenly = Evenly(x.T @ x)
    expected = np.square(x @ (made - weights).T).sum()
    assert evenly.loss(made, evenly.wanted(weights, 0)) == pytest.approx(float(expected), rel=1e-4)


def test_a_refit_of_two_columns_finds_the_best_codes() -> None:
    """Brute force over all codes of one group, for the scale and bias that were found."""
    columns, bits = 4, 2
    for seed in range(8):
        weights, x = random(columns, 1, seed=seed), inputs(64, columns, seed=seed)
        grid, hessian = quantized(weights, x, bits, columns, 8)
        found = loss(grid, weights, hessian)
        best = min(
            loss(Grid(np.array(codes, np.float32)[:, None], *grid[1:]), weights, hessian)
            for codes in itertools.product(range(1 << bits), repeat=columns)
        )
        assert found <= 1.25 * best + 1e-9
        moved = [
            loss(Grid(grid.codes + step, *grid[1:]), weights, hessian)
            for step in np.eye(columns, dtype=np.float32)[..., None]
        ]
        assert found <= min(moved) + 1e-6


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_sweep_is_better(bits: int) -> None:
    weights, x = random(64, 12), inputs(400, 64)
    losses = []
    for sweeps in (0, 1, 3):
        grid, hessian = quantized(weights, x, bits, 32, sweeps)
        losses.append(loss(grid, weights, hessian))
        assert grid.codes.min() >= 0 and grid.codes.max() < 1 << bits
        assert np.array_equal(grid.codes, np.rint(grid.codes))
        for part in grid[1:]:
            assert np.array_equal(BFLOAT16(part), part)
    assert losses[0] > losses[1] >= losses[2] * 0.9999


def test_a_constant_group_stays_as_it_is() -> None:
    weights = np.full((32, 3), 0.5, np.float32)
    scale, bias = first_grid(weights, np.full(32, 1 / 32, np.float32), 15, BFLOAT16)
    values = nearest(weights, scale, bias, 15) * scale + bias
    assert np.allclose(values, weights, atol=1e-6)


def layer(seed: int = 3) -> mx.array:
    return mx.array(random(40, 128, seed=seed) * 0.05).astype(mx.bfloat16)


def solved(
    moments: Moments, judge: Judge, weights: mx.array, form: Quantization
) -> tuple[Packed, Outcome]:
    pack = partial(Solver(moments).pack, form) if moments.sound else None
    shape = (weights.shape[0], weights.shape[1])
    found = candidates(lambda low, high: weights[low:high], shape, form, judge, pack)
    return chosen(found, form)


def learnt(x: Floats, source: Floats | None = None) -> Moments:
    moments = Moments(x.shape[1])
    moments.add(x, x if source is None else source)
    return moments


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_layer_loses_far_less_than_rounded_or_searched(bits: int) -> None:
    form, weights = Quantization(bits, 64, "affine"), layer()
    x = inputs(1200, 128)
    made, outcome = solved(learnt(x[:900]), Unseen([x[900:]]), weights, form)
    assert outcome.method == "calibrated"
    exact = np.array(weights.astype(mx.float32))

    def lost(parts: tuple[mx.array, ...]) -> float:
        error = np.array(Packed(parts, form).values()) - exact
        return float(np.square(x[900:] @ error.T).sum())

    rounded = lost(tuple(mx.quantize(weights, group_size=64, bits=bits)))
    searched = lost(search(weights, form, (mx.default_stream(mx.cpu),)))
    found = lost(made.parts)
    assert found < 0.6 * rounded
    assert outcome.ratio == pytest.approx(found / searched, rel=0.02)
    assert [part.dtype for part in made.parts] == [mx.uint32, mx.bfloat16, mx.bfloat16]


def test_drifted_inputs_are_made_good() -> None:
    """Inputs that quantization has shrunk ask for larger weights."""
    x = inputs(1000, 64)
    weights, form = layer()[:, :64], Quantization(8, 64, "affine")
    judge = Unseen([x[800:] * np.float32(0.8)], [x[800:]])
    made, outcome = solved(learnt(x[:800] * np.float32(0.8), x[:800]), judge, weights, form)
    assert outcome.method == "calibrated"
    assert outcome.ratio is not None and outcome.ratio < 0.05
    ratio = np.array(made.values()) / np.array(weights.astype(mx.float32))
    assert 1.15 < np.median(ratio) < 1.26  # 1.25, but for the damping


def test_search_stands_where_calibration_does_not_carry_over() -> None:
    every_other = np.where(np.arange(128) % 2, np.float32(30), np.float32(0.01))
    seen, unseen = random(300, 128) * every_other, random(300, 128, seed=8) * every_other[::-1]
    weights, form = layer(), Quantization(3, 64, "affine")
    made, outcome = solved(learnt(seen), Unseen([unseen]), weights, form)
    searched = search(weights, form, (mx.default_stream(mx.cpu),))
    assert outcome.method == "search" and outcome.ratio is not None and outcome.ratio >= 1
    assert all(map(mx.array_equal, made.parts, searched))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_search_stands_where_the_text_says_nothing(bad: float) -> None:
    x = np.full((50, 128), bad, np.float32)
    form, weights = Quantization(4, 32, "affine"), layer()
    with np.errstate(invalid="ignore"):
        moments = learnt(x)
    made, outcome = solved(moments, Unseen([x]), weights, form)
    assert (outcome.method, outcome.ratio) == ("search", None)
    assert all(map(mx.array_equal, made.parts, search(weights, form, (mx.default_stream(mx.cpu),))))


def test_broken_weights_are_left_to_be_found() -> None:
    """What is NaN must come out NaN, so that the writer refuses it."""
    weights = layer()
    weights[3, 5] = mx.nan
    x, form = inputs(500, 128), Quantization(4, 64, "affine")
    made, outcome = solved(learnt(x[:400]), Unseen([x[400:]]), weights, form)
    assert outcome.method == "search"
    assert any(mx.isnan(part).any().item() for part in made.parts[1:])


@pytest.mark.parametrize("columns", [128, 384])
def test_inverse_factors_by_halves(columns: int) -> None:
    hessian = learnt(inputs(2 * columns, columns)).damped()
    factor = inverse_factor(hessian)
    assert np.allclose(factor.T @ factor @ hessian, np.eye(columns), atol=1e-6)


def test_errors_are_passed_on_in_steps_as_they_are_one_by_one() -> None:
    """GPTQ in its plainest form, a column at a time, with the grids that were found."""
    weights, x = random(64, 5), inputs(400, 64)
    hessian = learnt(x).damped()
    factor = inverse_factor(hessian).astype(np.float32)
    found = gptq(weights, hessian.diagonal().astype(np.float32), factor, 32, 7, BFLOAT16)
    left = weights.copy()
    for at in range(64):
        scale, bias = found.scales[at // 32], found.biases[at // 32]
        code = nearest(left[at], scale, bias, 7)
        error = (left[at] - (code * scale + bias)) / factor[at, at]
        left[at + 1 :] -= factor[at, at + 1 :, None] * error
        assert np.mean(code == found.codes[at]) == 1
