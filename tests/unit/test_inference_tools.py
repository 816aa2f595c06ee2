"""Tools: mlx-lm's parsers found as mlx-lm finds them, and calls in OpenAI's form."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest

from configs.errors import RequestError
from inference.tool_calls import Calls
from inference.tools import PARSERS, Call, CallParser, check_tools, find_parser, parser_name

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TOOLS = json.dumps([ADD])


def nothing(_: str) -> bool:
    return False


def test_the_parser_is_the_one_that_mlx_lm_finds() -> None:
    from mlx_lm.tokenizer_utils import _infer_tool_parser

    texts = sorted({text for _, choices in PARSERS for words in choices for text in words})
    words = [*texts, "<|tool_call_end|>", ""]
    vocabularies: list[dict[str, int]] = [
        {},
        {"<|tool_call_start|>": 1, "<|tool_call_end|>": 2},
        {"<|open|>": 1, "<|close|>": 2, "<|sep|>": 3, "<|end_of_msg|>": 4},
    ]
    found = set()
    for first, second in itertools.product(words, words):
        for vocabulary in vocabularies:
            template = f"{first} and {second}"
            theirs = _infer_tool_parser(
                SimpleNamespace(chat_template=template, get_vocab=lambda v=vocabulary: v)
            )
            assert parser_name(vocabulary.__contains__, template) == theirs, template
            found.add(theirs)
    assert {name for name, _ in PARSERS} <= found and "kimi_k3" in found and None in found


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [
        (
            "json_tools",
            '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
            [Call("add", {"a": 1})],
        ),
        (
            "mistral",
            '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}, "id": "x1"}, {"name": "b"}]',
            [Call("add", {"a": 1}, "x1"), Call("b", {})],
        ),
        (
            "pythonic",
            '<|tool_call_start|>[add(a=1, b="é")]<|tool_call_end|>',
            [Call("add", {"a": 1, "b": "é"})],
        ),
        (
            "qwen3_coder",
            "<tool_call>\n<function=add>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>",
            [Call("add", {"a": "x"})],
        ),
    ],
)
def test_calls_are_read_by_mlx_lm_s_parsers(name: str, text: str, calls: list[Call]) -> None:
    parser = find_parser(TOOLS, nothing, "", frozenset({"tools"}), name)
    assert parser.parse(text) == calls


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('<tool_call>{"name": add}</tool_call>', "can't be read (Expecting value"),
        ('<tool_call>{"name": "add"', "is not whole, without its </tool_call>"),
        ("<tool_call>[]</tool_call>", "names no tool"),
        ("<tool_call>3</tool_call>", "names no tool"),
        ('<tool_call>{"arguments": {}}</tool_call>', "names no tool"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "is nested too deeply"),
    ],
)
def test_what_can_t_be_read_is_kept_with_the_reason(text: str, what: str) -> None:
    parser = CallParser("json_tools", "<tool_call>", "</tool_call>", TOOLS)
    with pytest.raises(RequestError) as caught:
        parser.parse(text)
    assert what in str(caught.value)
    calls, sections = Calls(), SimpleNamespace(calls=parser)
    calls.take(text, sections)  # type: ignore[arg-type]
    good = '<tool_call>{"name": "add", "arguments": {"é": [1]}}</tool_call>'
    calls.take(good, sections)  # type: ignore[arg-type]
    fields = calls.fields()
    assert (
        fields["tool_call_error"]["text"] == text and what in fields["tool_call_error"]["message"]
    )
    assert fields["tool_calls"] == [
        {
            "id": "call_0",
            "type": "function",
            "function": {"name": "add", "arguments": '{"é": [1]}'},
        }
    ]


@pytest.mark.parametrize(
    ("template", "variables", "named", "what"),
    [
        ("<tool_call>tool_call.name", frozenset({"messages"}), None, "takes none"),
        ("plain", frozenset({"tools"}), None, "no parser"),
        ("plain", frozenset({"tools"}), "../evil", "no parser"),
        ("plain", frozenset({"tools"}), "no_such", "no parser"),
    ],
)
def test_tools_are_refused_where_nobody_could_read_the_calls(
    template: str, variables: frozenset[str], named: str | None, what: str
) -> None:
    with pytest.raises(RequestError, match=what):
        find_parser(TOOLS, nothing, template, variables, named)


@pytest.mark.parametrize(
    "tool", [1, {}, {"type": "function"}, {"name": "add"}, {**ADD, "type": "x"}]
)
def test_a_tool_that_is_not_of_openai_s_form_is_named(tool: Any) -> None:
    with pytest.raises(RequestError, match="tool 2 is not of OpenAI's form"):
        check_tools(json.dumps([ADD, tool]))
