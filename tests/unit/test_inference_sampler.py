from __future__ import annotations

import math
from collections import Counter
from typing import Any

import mlx.core as mx
import pytest

from inference.request import SamplingOptions
from inference.sampler import Sampler

LOGITS = mx.log(mx.array([0.05, 0.4, 0.25, 0.2, 0.1]))


def draw(count: int, logits: mx.array = LOGITS, **options: Any) -> list[int]:
    """`count` tokens, each the first of an answer with a seed of its own."""
    values: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, **options}
    tokens = [Sampler(SamplingOptions(seed=seed, **values), [0])(logits) for seed in range(count)]
    return [int(token.item()) for token in tokens]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"temperature": 0.0}, {1}),
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 5}, {0, 1, 2, 3, 4}),
        ({"top_k": 999}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.01}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.5}, {1, 2}),
        ({"top_p": 0.86}, {1, 2, 3, 4}),
        ({"min_p": 0.45}, {1, 2, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.7}, {1, 2}),  # 0.4 and 0.25 are 0.76 of what top-k left
        ({"temperature": 0.5, "top_p": 0.7}, {1, 2}),
        ({"temperature": 100.0, "top_p": 0.15}, {1}),
        ({"temperature": 1e-38}, {1}),
    ],
)
def test_filters_keep_the_right_tokens(options: dict[str, Any], kept: set[int]) -> None:
    assert set(draw(150, **options)) == kept


def test_tokens_are_drawn_by_their_probability() -> None:
    counts = Counter(draw(2000))
    for token, probability in enumerate([0.05, 0.4, 0.25, 0.2, 0.1]):
        spread = 4 * math.sqrt(2000 * probability * (1 - probability))
        assert abs(counts[token] - 2000 * probability) < spread


def test_half_precision_logits_are_drawn_from_in_float32() -> None:
    logits = mx.array([8.0, 8.03, 0.0], mx.bfloat16)
    assert set(draw(60, logits, top_p=0.9)) == {0, 1}


def sequence(seed: int, **options: Any) -> list[int]:
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed, **options), [0])
    return [int(sampler(LOGITS).item()) for _ in range(40)]  # type: ignore[arg-type]


def test_a_seed_gives_the_same_tokens_whatever_else_is_drawn() -> None:
    first = sequence(3)
    mx.random.seed(99)
    mx.eval(mx.random.normal((10,)))
    assert sequence(3) == first != sequence(4)
    assert len(set(sequence(2**64 - 1))) > 1


def test_repetition_penalty_looks_back_as_far_as_its_context() -> None:
    logits = mx.array([2.0, 1.9, 1.8, -0.5])

    def greedy(prompt: list[int], context: int, count: int) -> list[int]:
        options = SamplingOptions(
            temperature=0.0, repetition_penalty=1.5, repetition_context=context
        )
        sampler = Sampler(options, prompt)
        return [int(sampler(logits).item()) for _ in range(count)]  # type: ignore[arg-type]

    assert greedy([3], 1, 4) == [0, 1, 0, 1]
    assert greedy([3], 2, 4) == [0, 1, 2, 0]
    assert greedy([0, 1, 3], 3, 1) == [2]
    assert greedy([0, 1, 3, 3, 3], 3, 1) == [0]


def test_repetition_penalty_makes_negative_logits_more_negative() -> None:
    options = SamplingOptions(temperature=0.0, repetition_penalty=2.0)
    assert int(Sampler(options, [0])(mx.array([-1.0, -1.5])).item()) == 1  # type: ignore[arg-type]
