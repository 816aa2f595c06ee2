"""The sampler: what each filter leaves, against numpy and transformers; draws by chi-square."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inference.logprobs import logprobs
from inference.request import SamplingOptions
from inference.sampler import Sampler, sample_rows

P = [0.05, 0.4, 0.25, 0.2, 0.1]
LOGITS = mx.log(mx.array(P))
FREE: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}


def token_of(drawn: mx.array) -> int:
    return int(drawn.item())  # type: ignore[arg-type]


def draw(count: int, logits: mx.array = LOGITS, **options: Any) -> list[int]:
    """`count` tokens, each the first of an answer with a seed of its own."""
    values: dict[str, Any] = {**FREE, **options}
    tokens = [Sampler(SamplingOptions(seed=seed, **values), [0])(logits) for seed in range(count)]
    return [token_of(token) for token in tokens]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"temperature": 0.0}, {1}),
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 5}, {0, 1, 2, 3, 4}),
        ({"top_k": 999}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.01}, {1}),
        ({"top_p": 1e-30}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.5}, {1, 2}),
        ({"top_p": 0.86}, {1, 2, 3, 4}),
        ({"min_p": 0.45}, {1, 2, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.7}, {1, 2}),  # 0.4 and 0.25 are 0.76 of what top-k left
        ({"temperature": 0.5, "top_p": 0.7}, {1, 2}),
        ({"temperature": 100.0, "top_p": 0.15}, {1}),
        ({"temperature": 1e-5}, {1}),
        ({"temperature": 1e-38}, {1}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.15}, {0, 3, 4}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.3}, {0, 1, 2, 3, 4}),  # one alone stays
        ({"xtc_probability": 1.0, "xtc_threshold": 0.0}, {0}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.5}, {0, 1, 2, 3, 4}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.3, "top_k": 2}, {2}),  # 0.62 and 0.38 then
        ({"xtc_probability": 1.0, "xtc_threshold": 0.1, "temperature": 0.0}, {1}),
        ({"logit_bias": ((1, -100.0), (0, 3.0)), "top_k": 1}, {0}),
    ],
)
def test_filters_keep_the_right_tokens(options: dict[str, Any], kept: set[int]) -> None:
    assert set(draw(150, **options)) == kept


def softmax(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    raised = np.exp(values - values.max())
    result: np.ndarray[Any, Any] = raised / raised.sum()
    return result


def reference(options: SamplingOptions) -> np.ndarray[Any, Any]:
    """The probabilities of the first token after prompt [0], in float64, filter by filter."""
    values = np.log(np.array(P, np.float64))
    for token, bias in options.logit_bias:
        values[token] += bias
    if options.repetition_penalty != 1:
        values[0] *= options.repetition_penalty  # all of these logits are negative
    p = softmax(values / options.temperature)
    order = np.argsort(-p)
    if options.top_k:
        p[order[options.top_k :]] = 0
        p /= p.sum()
    if options.top_p < 1:
        above = np.cumsum(p[order]) - p[order]
        p[order[above >= options.top_p]] = 0
        p /= p.sum()
    p[p < options.min_p * p.max()] = 0
    p /= p.sum()
    likely = [token for token in order if p[token] >= options.xtc_threshold]
    fewer = p.copy()
    fewer[likely[:-1]] = 0
    mixed = options.xtc_probability * fewer / fewer.sum()
    result: np.ndarray[Any, Any] = mixed + (1 - options.xtc_probability) * p
    return result


def assert_drawn_by(probabilities: np.ndarray[Any, Any], tokens: Sequence[int]) -> None:
    """A chi-square test at one in 100,000; what has probability zero never comes."""
    counts = Counter(tokens)
    assert set(counts) <= set(np.flatnonzero(probabilities).tolist())
    expected = probabilities * len(tokens)
    statistic = sum(
        (counts[int(t)] - expected[t]) ** 2 / expected[t] for t in expected.nonzero()[0]
    )
    limit = {0: 0.0, 1: 19.5, 2: 23.0, 3: 25.9, 4: 28.5}[np.count_nonzero(probabilities) - 1]
    assert statistic <= limit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.4},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"xtc_probability": 0.3, "xtc_threshold": 0.15},
        {"logit_bias": ((0, 2.0), (1, -1.0))},
        {"repetition_penalty": 0.5},
        {"temperature": 1.5, "top_k": 4, "top_p": 0.8, "min_p": 0.1, "xtc_probability": 0.5},
    ],
    ids=str,
)
def test_tokens_are_drawn_by_their_probability(options: dict[str, Any]) -> None:
    chosen = SamplingOptions(seed=1, **{**FREE, **options})
    probabilities = reference(chosen)
    assert_drawn_by(probabilities, draw(2000, **options))  # of many requests
    # Of one request. Its window would look on its own tokens too.
    if chosen.repetition_penalty == 1:
        sampler = Sampler(chosen, [0])
        assert_drawn_by(probabilities, [token_of(sampler(LOGITS)) for _ in range(2000)])


def test_half_precision_logits_are_drawn_from_in_float32() -> None:
    logits = mx.array([8.0, 8.03, 0.0], mx.bfloat16)
    assert set(draw(60, logits, top_p=0.9)) == {0, 1}


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.1}, {"min_p": 1.0}])
def test_equals_are_kept_together(options: dict[str, Any]) -> None:
    assert set(draw(150, mx.array([2.0, 1.0, 2.0, 2.0]), **options)) == {0, 2, 3}


@pytest.mark.parametrize("top_p", [0.5, 0.95, 0.999999, 1.0])
def test_tokens_that_the_model_rules_out_never_come(top_p: float) -> None:
    logits = mx.array([-math.inf, 0.0, -math.inf, 1.0])
    assert set(draw(100, logits, top_p=top_p, top_k=3)) <= {1, 3}


def test_a_temperature_however_low_takes_the_best() -> None:
    logits = mx.array([1000.0, 1000.25, -1000.0, 900.0])
    for temperature in (9e-6, 1e-5, 1e-4):
        assert set(draw(50, logits, temperature=temperature)) == {1}


def processed(
    logits: np.ndarray[Any, Any], ids: list[int], processors: Sequence[LogitsProcessor]
) -> np.ndarray[Any, Any]:
    """What transformers makes of the same, as probabilities."""
    scores, read = torch.tensor(logits)[None], torch.tensor([ids])
    for processor in processors:
        scores = processor(read, scores)
    return np.asarray(torch.softmax(scores.double(), -1)[0].numpy())


PROMPT = [5, 9, 9, 700, 31]
THEIRS: list[tuple[dict[str, Any], list[LogitsProcessor]]] = [
    ({}, []),
    ({"temperature": 0.3}, [TemperatureLogitsWarper(0.3)]),
    ({"top_k": 17}, [TopKLogitsWarper(17)]),
    ({"top_k": 800}, [TopKLogitsWarper(800)]),
    ({"top_p": 0.9}, [TopPLogitsWarper(0.9)]),
    ({"top_p": 0.05}, [TopPLogitsWarper(0.05)]),
    ({"min_p": 0.05}, [MinPLogitsWarper(0.05)]),
    (
        {"repetition_penalty": 1.3, "repetition_context": 0},
        [RepetitionPenaltyLogitsProcessor(1.3)],
    ),
    (
        {"logit_bias": ((3, 4.0), (700, -9.0))},
        [SequenceBiasLogitsProcessor({(3,): 4.0, (700,): -9.0})],
    ),
    (
        {
            "repetition_penalty": 1.2,
            "repetition_context": 0,
            "temperature": 0.8,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.02,
        },
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(40),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.02),
        ],
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), THEIRS, ids=lambda value: str(value)[:40])
def test_filters_are_those_of_transformers(
    ours: dict[str, Any], theirs: list[LogitsProcessor]
) -> None:
    for seed in range(5):
        logits = (np.random.default_rng(seed).normal(size=800) * 3).astype(np.float32)
        sampler = Sampler(SamplingOptions(seed=1, **{**FREE, **ours}), PROMPT)
        left = np.asarray(mx.softmax(sampler.left(mx.array(logits)), precise=True))
        expected = processed(logits, PROMPT, theirs)
        assert ((left > 0) == (expected > 0)).all()
        np.testing.assert_allclose(left, expected, rtol=2e-4, atol=1e-9)


def sequence(sampler: Sampler, logits: mx.array, count: int) -> list[int]:
    return [token_of(sampler(logits)) for _ in range(count)]


def test_no_end_before_min_tokens_as_in_transformers() -> None:
    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    logits[[3, 8]] = 9.0
    options = SamplingOptions(temperature=0.0)
    sampler = Sampler(options, [0], min_tokens=3, stop_ids={8, 3})
    theirs = MinNewTokensLengthLogitsProcessor(1, 3, [3, 8])
    ids = [0]
    for _ in range(5):
        expected = processed(logits, ids, [theirs])
        assert ((np.asarray(sampler.left(mx.array(logits))) > -np.inf) == (expected > 0)).all()
        ids.append(token_of(sampler(mx.array(logits))))
    assert not {3, 8} & set(ids[1:4]) and ids[4:] == [3, 3]


def free(seed: int, **options: Any) -> Sampler:
    return Sampler(SamplingOptions(seed=seed, **{**FREE, **options}), [0])


def test_a_seed_gives_the_same_tokens_whatever_else_is_drawn() -> None:
    first = sequence(free(3), LOGITS, 40)
    mx.random.seed(99)
    mx.eval(mx.random.normal((10,)))
    assert sequence(free(3), LOGITS, 40) == first != sequence(free(4), LOGITS, 40)
    assert len(set(sequence(free(2**64 - 1), LOGITS, 40))) > 1


def test_a_random_number_depends_on_the_seed_and_its_place_alone() -> None:
    """Whatever the tokens before were, and whether XTC drew numbers of its own."""
    other = mx.array([0.0, 9.0, 0.0, 0.0, 0.0])
    one, two, three = free(3), free(3), free(3, xtc_probability=1e-12)
    for _ in range(9):
        one(LOGITS), two(other), three(LOGITS)
    tokens = [sequence(sampler, LOGITS, 30) for sampler in (one, two, three)]
    assert tokens[0] == tokens[1] == tokens[2]


KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.5},
    {"temperature": 0.0, "logit_bias": ((2, 5.0),)},
    {"temperature": 1.0, "seed": 4},
    {"temperature": 0.8, "seed": 5, "top_k": 9, "frequency_penalty": 0.5},
]


@pytest.mark.parametrize("rows", [[0], [0, 0, 0], [0, 1, 2, 3, 4], [3, 4], [4, 0, 0, 2]])
def test_rows_are_drawn_as_each_would_be_alone(rows: list[int]) -> None:
    def samplers() -> list[Sampler]:
        return [
            Sampler(
                SamplingOptions(**{"seed": 1, **KINDS[kind]}), [1], min_tokens=2, stop_ids=[0, 1]
            )
            for kind in rows
        ]

    logits = mx.random.normal((12, len(rows), 30), key=mx.random.key(7)) * 2
    together, alone = samplers(), samplers()
    for step in range(12):
        drawn = sample_rows(together, logits[step])
        expected = [token_of(sampler(logits[step, row])) for row, sampler in enumerate(alone)]
        assert drawn.shape == (len(rows),) and drawn.tolist() == expected


def greedy(prompt: list[int], count: int, logits: mx.array, **options: Any) -> list[int]:
    return sequence(Sampler(SamplingOptions(temperature=0.0, **options), prompt), logits, count)


def test_repetition_penalty_looks_back_as_far_as_its_context() -> None:
    logits = mx.array([2.0, 1.9, 1.8, -0.5])

    def repeated(prompt: list[int], context: int, count: int) -> list[int]:
        return greedy(prompt, count, logits, repetition_penalty=1.5, repetition_context=context)

    assert repeated([3], 1, 4) == [0, 1, 0, 1]
    assert repeated([3], 2, 4) == [0, 1, 2, 0]
    assert repeated([0, 1, 3], 3, 1) == [2]
    assert repeated([0, 1, 3, 3, 3], 3, 1) == [0]
    assert repeated([0, 1, 3, 3, 3], 0, 1) == [2]  # all of it
    assert repeated([3] * 50, 0, 4) == [0, 1, 2, 0]


def test_repetition_penalty_makes_negative_logits_more_negative() -> None:
    assert greedy([0], 1, mx.array([-1.0, -1.5]), repetition_penalty=2.0) == [1]


def test_presence_penalty_counts_a_token_of_the_answer_once() -> None:
    logits = mx.array([2.0, 1.0, -3.0])
    assert greedy([0, 0], 5, logits, presence_penalty=1.5) == [0, 1, 0, 0, 0]
    assert greedy([0], 4, logits, presence_penalty=-4.0) == [0, 0, 0, 0]
    # With a window of one, a token is free again once another stands there.
    assert greedy([0], 5, logits, presence_penalty=1.5, presence_context=1) == [0, 1, 0, 1, 0]


def test_frequency_penalty_counts_every_time() -> None:
    logits = mx.array([2.0, 0.75, -3.0])
    # 2, 1.5, 1, 0.5 against 0.75, 0.25
    assert greedy([0, 0], 6, logits, frequency_penalty=0.5) == [0, 0, 0, 1, 0, 1]
    narrow = greedy([0], 6, logits, frequency_penalty=0.5, frequency_context=2)
    assert narrow == [0] * 6


def test_penalties_are_of_openai_s_form() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, after the bias."""
    options = SamplingOptions(
        temperature=0.0, presence_penalty=0.3, frequency_penalty=0.2, logit_bias=((2, 50.0),)
    )
    sampler = Sampler(options, [1, 1])
    assert sequence(sampler, mx.array([0.0, 1.0, 2.0]), 3) == [2, 2, 2]
    left = sampler.left(mx.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(np.asarray(left), [0.0, 1.0, 52.0 - 3 * 0.2 - 0.3], rtol=1e-6)


def test_xtc_spares_some_tokens() -> None:
    options = SamplingOptions(**FREE, xtc_probability=1.0, xtc_threshold=0.15, seed=1)
    assert set(sequence(Sampler(options, [0], exempt_ids=[1]), LOGITS, 150)) == {0, 1, 3, 4}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_logprobs_are_of_the_model_s_own_distribution(dtype: mx.Dtype) -> None:
    logits = (mx.random.normal((300,), key=mx.random.key(2)) * 4).astype(dtype)
    exact = np.array(logits.astype(mx.float32), np.float64)
    exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
    chosen, top = logprobs(logits, mx.array([7]), 5).read()
    assert chosen == pytest.approx(exact[7], abs=1e-5)
    assert [token for token, _ in top] == np.argsort(-exact, kind="stable")[:5].tolist()
    assert [value for _, value in top] == pytest.approx(np.sort(exact)[::-1][:5], abs=1e-5)


@pytest.mark.parametrize(("count", "told"), [(0, 0), (2, 2), (3, 2), (20, 2)])
def test_logprobs_name_no_more_than_there_are(count: int, told: int) -> None:
    logits = mx.array([0.0, -math.inf, 1.0, -math.inf])
    chosen, top = logprobs(logits, mx.array([0]), count).read()
    assert len(top) == told and chosen == pytest.approx(-1.31326, abs=1e-4)
