"""The choice of options within a budget: against brute force, and its promises for any input."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.mixed.allocate import Option, allocate, hull, least_bytes, most_bytes

OPTIONS = st.lists(
    st.builds(Option, st.integers(1, 60), st.floats(0, 10, allow_nan=False)), min_size=1, max_size=4
)
LAYERS = st.lists(OPTIONS, min_size=1, max_size=4)


def totals(layers: list[list[Option]], chosen: list[int]) -> tuple[int, float]:
    picked = [options[at] for options, at in zip(layers, chosen, strict=True)]
    return sum(option.nbytes for option in picked), sum(option.error for option in picked)


def best_error(layers: list[list[Option]], budget: int) -> float:
    return min(
        sum(option.error for option in picked)
        for picked in itertools.product(*layers)
        if sum(option.nbytes for option in picked) <= budget
    )


@given(LAYERS, st.integers(0, 240))
def test_small_budgets_like_brute_force(layers: list[list[Option]], more: int) -> None:
    budget = least_bytes(layers) + more
    nbytes, error = totals(layers, allocate(layers, budget))
    assert nbytes <= budget
    assert error <= best_error(layers, budget) + 1e-6


@given(LAYERS)
def test_all_that_helps_is_taken_when_there_is_room(layers: list[list[Option]]) -> None:
    chosen = allocate(layers, 1000)
    for options, at in zip(layers, chosen, strict=True):
        assert options[at].error == min(option.error for option in options)
    assert totals(layers, chosen)[0] == most_bytes(layers)


def test_layers_of_very_different_sizes() -> None:
    codes = [Option(2, 16.0), Option(3, 4.0), Option(4, 1.0), Option(6, 0.0625), Option(8, 0.0)]
    layers = [
        [Option(option.nbytes * size, option.error * gain) for option in codes]
        for size, gain in ((10, 1.0), (10, 8.0), (3, 2.0), (25, 0.5))
    ]
    for budget in range(least_bytes(layers), most_bytes(layers) + 2):
        nbytes, error = totals(layers, allocate(layers, budget))
        assert nbytes <= budget
        assert error <= 1.0001 * best_error(layers, budget)


def test_more_bytes_never_lose_more_where_steps_are_even() -> None:
    layers = [[Option(bits, gain * 4.0**-bits) for bits in range(2, 9)] for gain in (1, 3, 9, 27)]
    found = [totals(layers, allocate(layers, budget))[1] for budget in range(8, 33)]
    assert found == sorted(found, reverse=True)


def test_of_equal_options_the_first_counts() -> None:
    assert hull([Option(4, 1.0), Option(4, 1.0), Option(5, 1.0)]) == [0]


def test_a_thousand_layers() -> None:
    layers = [
        [Option(bits * (1 + layer % 7), (1 + layer % 13) * 4.0**-bits) for bits in range(2, 9)]
        for layer in range(1000)
    ]
    budget = (least_bytes(layers) + most_bytes(layers)) // 2
    nbytes, _ = totals(layers, allocate(layers, budget))
    assert budget - 1 <= nbytes <= budget


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="1 too small"):
        allocate([[Option(4, 1.0)], [Option(3, 1.0)]], 6)
