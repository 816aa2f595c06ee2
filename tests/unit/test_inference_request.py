from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from configs.errors import RequestError
from configs.schema import GenerateTable
from inference.request import (
    GenerationOptions,
    Message,
    Request,
    SamplingOptions,
    TokenRequest,
)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("nan")},
        {"repetition_context": -1},
        {"temperature": 100.1},
        {"xtc_probability": 1.1},
        {"xtc_threshold": 0.6},
        {"presence_penalty": float("nan")},
        {"presence_penalty": 101.0},
        {"presence_context": -1},
        {"frequency_penalty": -101.0},
        {"frequency_context": 1.5},
        {"logit_bias": ((1, 100.5),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, float("inf")),)},
        {"logit_bias": 5},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_sampling_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(options))):
        SamplingOptions(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"max_tokens": 2**31},
        {"min_tokens": -1},
        {"min_tokens": 513},
        {"stop": ("",)},
        {"stop": ("\ud800",)},
        {"stop_token": ("",)},
        {"stop_token": (-1,)},
        {"stop_token": (1.0,)},
        {"ignore_eos": 1},
        {"logprobs": -1},
        {"logprobs": 21},
        {"logprobs": True},
        {"n": 0},
        {"n": 129},
    ],
    ids=str,
)
def test_generation_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(options))):
        GenerationOptions(**options)


def test_a_seed_is_drawn_when_none_is_given() -> None:
    tables = (GenerateTable(), GenerateTable(seed=0))
    drawn, given = ({GenerationOptions.from_table(t).sampling.seed for _ in "ab"} for t in tables)
    assert len(drawn) == 2 and given == {0}
    assert len({SamplingOptions().seed for _ in range(8)}) > 1


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_a_blank_prompt_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="empty"):
        Request("a", text=text)
    with pytest.raises(RequestError, match="empty"):
        Request("a", messages=(Message("system", "be kind"), Message("user", text)))


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(RequestError, match="not valid Unicode"):
        Request("a", text="a\ud800")
    with pytest.raises(RequestError, match="message of user"):
        Message("user", "\udfff")


def test_no_tokens_are_refused() -> None:
    with pytest.raises(RequestError, match="no tokens"):
        TokenRequest("a", (), GenerationOptions())


def test_options_of_a_table_keep_every_value() -> None:
    of_sampling: dict[str, Any] = {
        "temperature": 0.1,
        "top_p": 0.2,
        "top_k": 3,
        "min_p": 0.4,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.06,
        "repetition_penalty": 1.5,
        "repetition_context": 6,
        "presence_penalty": 0.7,
        "presence_context": 8,
        "frequency_penalty": -0.9,
        "frequency_context": 10,
        "logit_bias": ((3, -1.0), (11, 2.0)),
        "seed": 12,
    }
    others: dict[str, Any] = {
        "max_tokens": 13,
        "min_tokens": 3,
        "stop": ("x",),
        "stop_token": (14, "<end>"),
        "ignore_eos": True,
        "logprobs": 15,
        "n": 16,
        "thinking": "fold",
        "thinking_budget": 17,
        "tools": '[{"a": 1}]',
        "prompt_lookup": True,
        "calculator": True,
    }
    table = GenerateTable(**of_sampling, **others)
    made = GenerationOptions.from_table(table)
    assert made == GenerationOptions(SamplingOptions(**of_sampling), **others)
    told = {**vars(made.sampling), **vars(made)}
    forms: dict[str, Any] = {"json_schema": '{"type": "null"}', "regex": "a+", "choice": ("a", "b")}
    names = {field.name for field in fields(GenerateTable)} - {"system", *forms}
    assert {name: told[name] for name in names} == {**of_sampling, **others}
    for name, value in forms.items():  # which go with few others, and not with each other
        assert getattr(GenerationOptions.from_table(GenerateTable(**{name: value})), name) == value


def test_values_are_kept_in_one_form() -> None:
    made = SamplingOptions(temperature=1, logit_bias={"7": 1, 3: 2})  # type: ignore[arg-type]
    assert made.logit_bias == ((3, 2.0), (7, 1.0))
    assert isinstance(made.temperature, float)
    assert GenerationOptions(stop="x").stop == ("x",)  # type: ignore[arg-type]


def test_the_answers_to_one_prompt_differ_in_seed_alone() -> None:
    options = GenerationOptions(SamplingOptions(seed=7), n=4)
    request = TokenRequest("a", (1, 2), options, frozenset({3}), frozenset({4}))
    answers = request.answers()
    alone = TokenRequest(
        "a", (1, 2), GenerationOptions(SamplingOptions(seed=7)), frozenset({3}), frozenset({4})
    )
    assert answers[0] == alone and alone.answers() == (alone,)
    assert [answer.choice for answer in answers] == [0, 1, 2, 3]
    assert len({answer.id for answer in answers}) == 4
    seeds = [answer.options.sampling.seed for answer in answers]
    assert len(set(seeds)) == 4 and seeds[0] == 7 and max(seeds) < 2**53
    assert seeds == [answer.options.sampling.seed for answer in request.answers()]
    fewer = replace(request, options=replace(options, n=2)).answers()
    assert fewer == answers[:2]
