"""Guesses change no answer: the same tokens, log-probabilities and caches, in fewer passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from configs.errors import RequestError
from inference import speculation
from inference.cache import Held
from inference.checking import settle
from inference.drafts import DraftModel, PromptLookup
from inference.engine import Engine
from inference.events import Event, Failed, Finished, Token
from inference.guess import Guess
from inference.pace import MOST, Account, Odds
from inference.request import GenerationOptions, SamplingOptions, TokenRequest
from inference.rows import Row
from inference.sampler import Sampler
from tests.factories_inference import KINDS, IdReader, tiny_config, tiny_network
from tests.factories_models import VOCABULARY

GREEDY = SamplingOptions(temperature=0.0)
SAMPLED = SamplingOptions(seed=5, temperature=0.6)
PENALIZED = SamplingOptions(
    seed=6,
    repetition_penalty=1.3,
    frequency_penalty=0.4,
    presence_penalty=0.2,
    presence_context=3,
    top_k=20,
    min_p=0.01,
    xtc_probability=0.3,
    logit_bias=((7, 2.0),),
)
PROMPT = tuple((7 * n * n + 3 * n) % VOCABULARY for n in range(40))
BATCHED = ("llama", "gemma2", "qwen3_moe", "gpt2")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking costs little, so that there is much of it."""
    monkeypatch.setattr(speculation, "_TOKEN_COST", {"cpu": 0.04, "gpu": 0.04})


def alike(model: nn.Module, kind: str, noise: float = 0.02) -> DraftModel:
    """A draft model that is often right: the model itself, with noise on its weights."""
    made = tiny_network(tiny_config(kind))
    mx.random.seed(1)
    made.update(
        tree_map(lambda value: value + noise * mx.random.normal(value.shape), model.parameters())
    )
    return DraftModel(made, VOCABULARY, 0.0)


def request(
    name: str = "a",
    prompt: tuple[int, ...] = PROMPT,
    sampling: SamplingOptions = GREEDY,
    max_tokens: int = 40,
    stop_ids: frozenset[int] = frozenset(),
    **options: Any,
) -> TokenRequest:
    made = GenerationOptions(sampling, max_tokens, **options)
    return TokenRequest(name, prompt, made, stop_ids)


def run(model: nn.Module, *requests: TokenRequest, **options: Any) -> list[Event]:
    return list(Engine(model, lambda _: IdReader(), **options).run(requests))


def told(events: list[Event]) -> list[Any]:
    """What is said of each answer, but for times and guesses."""
    found: list[Any] = []
    for event in events:
        if isinstance(event, Finished):
            usage = replace(event.usage, drafted_tokens=None, accepted_tokens=None)
            found.append((event.request, event.reason, usage))
        elif isinstance(event, Token):
            found.append((event.request, event.id, tuple(id_ for id_, _ in event.top)))
        else:
            found.append(event)
    return sorted(found, key=lambda each: each[0] if isinstance(each, tuple) else each.request)


def logprobs(events: list[Event]) -> list[float]:
    tokens = [event for event in events if isinstance(event, Token)]
    return [value for each in tokens for value in (each.logprob, *(v for _, v in each.top))]


def finished(events: list[Event]) -> Finished:
    [found] = [event for event in events if isinstance(event, Finished)]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_model_changes_nothing(kind: str) -> None:
    model = tiny_network(tiny_config(kind))
    draft = alike(model, kind)
    accepted = drafted = 0
    for sampling in (GREEDY, SAMPLED, PENALIZED):
        asked = request(sampling=sampling, logprobs=2)
        events = run(model, asked, draft=draft)
        plain = run(model, asked)
        assert told(events) == told(plain)
        np.testing.assert_allclose(logprobs(events), logprobs(plain), atol=1e-4)
        last = finished(events)
        accepted += last.usage.accepted_tokens or 0
        drafted += last.usage.drafted_tokens or 0
        passes = last.timings.tokens_per_pass
        assert passes is not None and passes > (0.6 if "mamba" in kind else 0.99)
    assert 0 < accepted < drafted


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "mamba2", "llama"])
def test_what_was_said_before_changes_nothing(kind: str) -> None:
    model = tiny_network(tiny_config(kind))
    drafted = 0
    for sampling in (GREEDY, replace(GREEDY, logit_bias=((9, 60.0),)), SAMPLED):
        asked = request(prompt=PROMPT[:12] * 4, sampling=sampling, max_tokens=60)
        plain = run(model, asked)
        events = run(model, replace(asked, options=replace(asked.options, prompt_lookup=True)))
        assert told(events) == told(plain)
        assert finished(plain).usage.drafted_tokens is None
        drafted += finished(events).usage.drafted_tokens or 0
    assert drafted > 20


def test_repeated_text_takes_few_passes() -> None:
    model = tiny_network(tiny_config("llama"))
    asked = request(
        sampling=replace(GREEDY, logit_bias=((9, 60.0),)), max_tokens=200, prompt_lookup=True
    )
    last = finished(run(model, asked))
    assert last.timings.tokens_per_pass is not None and last.timings.tokens_per_pass > 8


@pytest.mark.parametrize("kind", BATCHED)
def test_a_batch_with_guesses_is_what_its_rows_are_alone(kind: str) -> None:
    model = tiny_network(tiny_config(kind))
    requests = [
        request("a"),
        request("b", PROMPT[:1], SAMPLED, 9),
        request("c", PROMPT[5:30], PENALIZED, 15, logprobs=1),
        request("d", PROMPT[3:20] * 3, SAMPLED, 30, prompt_lookup=True),
        request("e", PROMPT[:25], GREEDY, 33),
    ]
    alone = [told(run(model, each)) for each in requests]
    for draft in (None, alike(model, kind)):
        events = told(run(model, *requests, max_rows=3, draft=draft))
        assert [[e for e in events if _name(e) == r.id] for r in requests] == alone


def _name(event: Any) -> str:
    return str(event[0] if isinstance(event, tuple) else event.request)


@pytest.mark.parametrize("kind", ["gemma3_text", "mamba"])
def test_caches_that_a_batch_can_t_bring_back_are_refused_by_name(kind: str) -> None:
    model = tiny_network(tiny_config(kind))
    asked = request(prompt_lookup=True)
    events = run(model, asked, request("b", max_tokens=3), max_rows=2)
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert isinstance(failed.error, RequestError) and failed.error.where == "prompt_lookup"
    assert "--batch-size 1" in failed.error.mend and failed.request == "a"
    assert [e.request for e in events if isinstance(e, Finished)] == ["b"]


@pytest.mark.parametrize("options", [{"kv_bits": 8}, {"kv_bits": 4, "kv_start": 47}])
def test_a_quantized_cache(options: dict[str, Any]) -> None:
    model = tiny_network(tiny_config("llama"))
    draft = DraftModel(model, VOCABULARY, 0.0)  # whose own cache is not quantized
    plain = told(run(model, request(), **options))
    events = run(model, request(), draft=draft, **options)
    assert told(events) == plain and (finished(events).usage.accepted_tokens or 0) > 0


def test_ends_within_guesses() -> None:
    model = tiny_network(tiny_config("llama"))
    draft = DraftModel(model, VOCABULARY, 0.0)  # always right
    free = told(run(model, request()))
    said = [int(event.text) for event in run(model, request()) if hasattr(event, "text")]
    assert finished(run(model, request(), draft=draft)).usage.accepted_tokens == 40 - 4
    assert told(run(model, request(), draft=draft)) == free
    for count in (1, 2, 3, 4, 9, 16):
        assert told(run(model, request(max_tokens=count), draft=draft)) == told(
            run(model, request(max_tokens=count))
        )
    for stop in dict.fromkeys(said[2:30:6]):
        at = request(stop_ids=frozenset([stop]), min_tokens=3)
        assert told(run(model, at, draft=draft)) == told(run(model, at))

        def engine(draft: DraftModel | None, stop: int = stop) -> Engine:
            return Engine(model, lambda _: IdReader(stop), draft=draft)

        assert told(list(engine(draft).run([request()]))) == told(
            list(engine(None).run([request()]))
        )


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mamba2"])
def test_a_cache_that_is_kept_holds_what_was_said(kind: str) -> None:
    model = tiny_network(tiny_config(kind))
    draft = DraftModel(model, VOCABULARY, 0.0)
    said = [int(event.text) for event in run(model, request()) if hasattr(event, "text")]
    for stop in said[7:11]:
        engine = Engine(model, lambda _, stop=stop: IdReader(stop), draft=draft)
        asked = request()
        engine.submit(asked, keep=True)
        list(engine.run())
        held = engine.take_cache(asked.id)
        assert isinstance(held, Held) and held.cache.length == len(held.tokens)
        assert held.tokens == (*PROMPT, *said)[: len(held.tokens)]
        longer = (*PROMPT, *said[: len(held.tokens) - len(PROMPT)], 5, 6)
        fresh = told(run(model, request("b", longer)))
        again = Engine(model, lambda _: IdReader())
        again.submit(request("b", longer), held)
        found = told(list(again.run()))
        assert [e for e in found if not isinstance(e, tuple)] == [
            e for e in fresh if not isinstance(e, tuple)
        ]


def test_the_distribution_is_the_sampler_s() -> None:
    """Chi-square at 31 degrees of freedom, both at the first place and after a right guess."""
    size, draws = 32, 3000
    mx.random.seed(3)
    logits = mx.random.normal((3, size)) * 1.5
    expected = np.array(mx.softmax(logits, axis=-1))
    counts, answers = np.zeros((2, size)), [0, 0]
    rng = np.random.default_rng(0)
    guesses = rng.choice(size, size=(draws, 2), p=expected[0] / expected[0].sum())
    guesses[:, 0] = expected[0].argmax()
    for seed in range(draws):
        sampling = SamplingOptions(seed=seed, temperature=1.0, top_p=1.0)
        asked = request(sampling=sampling)
        row = Row(asked, Sampler.of(asked), IdReader(), 0.0)
        row.guess = Guess(tuple(int(each) for each in guesses[seed]))
        [(_, drawn)] = settle([row], [logits])
        for place, each in enumerate(drawn[:2]):
            counts[place, each.token] += 1
            answers[place] += 1
    assert answers[1] > 300
    for place in range(2):
        wanted = expected[place] / expected[place].sum() * answers[place]
        assert ((counts[place] - wanted) ** 2 / wanted).sum() < 70  # p < 1e-4 beyond


@pytest.mark.parametrize("cost", [0.04, 0.6, 1.1])
@pytest.mark.parametrize("right_each", [0, 7, 3])
def test_guessing_never_loses_much(cost: float, right_each: int) -> None:
    """Of a source that has to be tried, as a draft model has."""
    account, odds, balance, said, tries = Account(), Odds(), 0.0, 0, 0
    while said < 1000:
        said += 1
        if account.allows(said):
            tries += 1
            most = max(1, odds.worth(cost))
            right = 1 if right_each and tries % right_each == 0 else 0
            balance += right - most * cost
            said += right
            account.learn(right, most * cost)
            odds.learn(right > 0)
        assert balance > -(0.01 * said + 0.3 + 3 * cost + 0.05)
    assert tries > 7


def test_guesses_that_are_right_become_more() -> None:
    odds, lengths = Odds(), []
    for _ in range(24):
        lengths.append(odds.worth(0.7))
        odds.learn(True)
    assert lengths[0] == 0 and lengths[-1] == MOST and lengths == sorted(lengths)
    odds.learn(False)
    assert 0 < odds.worth(0.7) < 4 < odds.worth(0.04)
    assert odds.worth(0.0) == MOST and odds.worth(1.0) == 0


def test_what_could_have_been_guessed_tells_the_odds() -> None:
    lookup, text = PromptLookup(), [1, 2, 3, 4, 5, 6, 7, 8, 9] * 2
    assert lookup.hopeful(text) and lookup.odds.worth(0.7) == 0
    text += [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert lookup.hopeful(text) and lookup.odds.worth(0.7) > 3
    text += [2, 3, 1, 3, 2, 1, 2, 3, 9, 1, 2, 3, 5]  # known beginnings, other ends
    assert not lookup.hopeful(text) and lookup.odds.worth(0.7) < 3


@pytest.mark.parametrize("kind", ["llama"])
def test_where_checking_is_dear_only_what_is_likely_is_checked(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculation, "_TOKEN_COST", {"cpu": 0.7, "gpu": 0.7})
    model = tiny_network(tiny_config(kind))
    asked = request(prompt=PROMPT[:12] * 4, sampling=SAMPLED, prompt_lookup=True, max_tokens=100)
    assert not finished(run(model, asked)).usage.drafted_tokens
    sure = replace(
        asked, options=replace(asked.options, sampling=replace(GREEDY, logit_bias=((9, 60.0),)))
    )
    usage = finished(run(model, sure)).usage
    assert usage.accepted_tokens == usage.drafted_tokens
    assert usage.drafted_tokens is not None and usage.drafted_tokens > 60


def test_lookup_goes_on_as_the_text_did_last() -> None:
    lookup = PromptLookup()
    sampler = Sampler(GREEDY, ())
    text = [1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8]
    assert lookup.propose(text, 4, sampler) == []
    assert lookup.propose([*text, 1, 2, 3], 4, sampler) == [6, 7, 8, 1]
    assert PromptLookup().propose([1, 2, 1, 2, 1, 2], 5, sampler) == [1, 2, 1, 2, 1]
    assert PromptLookup().propose([1, 2], 5, sampler) == []
