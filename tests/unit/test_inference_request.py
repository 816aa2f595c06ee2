from __future__ import annotations

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
        {"repetition_context": 0},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_sampling_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(options))):
        SamplingOptions(**options)


@pytest.mark.parametrize(
    "options", [{"max_tokens": 0}, {"max_tokens": -5}, {"stop": ("",)}, {"stop": ("\ud800",)}]
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
    table = GenerateTable(
        temperature=0.1,
        top_p=0.2,
        top_k=3,
        min_p=0.4,
        repetition_penalty=1.5,
        repetition_context=6,
        max_tokens=7,
        stop=("x",),
        seed=8,
    )
    assert GenerationOptions.from_table(table) == GenerationOptions(
        SamplingOptions(0.1, 0.2, 3, 0.4, 1.5, 6, 8), 7, ("x",)
    )
