"""Tools that a model may call: their list for the template, and its calls read back.

Owns which of mlx-lm's parsers reads a model's calls, and OpenAI's form of them. Knows
nothing of how a call is found in an answer.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from configs.errors import RequestError

# What a chat template has, and the parser of `mlx_lm.tool_parsers` that it means. In the
# order of mlx_lm.tokenizer_utils, which can't be imported here: it pulls in transformers.
# tests/unit/test_inference_tools.py holds both equal.
PARSERS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("minimax_m2", (("<minimax:tool_call>",),)),
    ("gemma4", (("<|tool_call>", "<tool_call|>"),)),
    ("function_gemma", (("<start_function_call>",),)),
    ("longcat", (("<longcat_tool_call>",),)),
    ("glm47", (("<arg_key>",),)),
    ("pythonic", (("<|tool_list_start|>",), ("<|tool_call_start|>",))),
    ("qwen3_coder", (("<tool_call>\\n<function=",), ("<tool_call>\n<function=",))),
    ("kimi_k2", (("<|tool_calls_section_begin|>",),)),
    ("minicpm5", (('<function name="', '<param name="'),)),
    ("mistral", (("[TOOL_CALLS]",),)),
    ("muse_spark", (("<atem:function_calls>",),)),
    ("json_tools", (("<tool_call>", "tool_call.name"),)),
)
# Where the template says nothing, the tokens of the vocabulary.
_BY_TOKENS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("kimi_k3", ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")),
    ("pythonic", ("<|tool_call_start|>", "<|tool_call_end|>")),
)


@dataclass(frozen=True)
class Call:
    """One call of a tool, or what a model meant to be one.

    Attributes:
        name: The tool.
        arguments: What it is called with.
        id: The model's own name of the call, if it gives one.
    """

    name: str
    arguments: Any
    id: str | None = None

    def fields(self, number: int) -> dict[str, Any]:
        """As OpenAI writes it; `number` tells the calls of an answer apart."""
        arguments = self.arguments
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id or f"call_{number}", "type": "function", "function": function}


@dataclass(frozen=True)
class CallParser:
    """Reads the calls of one model.

    Attributes:
        name: Of mlx-lm's module.
        start: Begins a call.
        end: Ends it; "" where only the answer's end does.
        tools: The tools that can be called, as JSON, for the types of their arguments.
    """

    name: str
    start: str
    end: str
    tools: str

    def parse(self, text: str) -> list[Call]:
        """The calls in a section, which begins with `start`.

        Raises:
            RequestError: It can't be read as calls.
        """
        inner = text.removeprefix(self.start)
        if self.end:
            if not inner.endswith(self.end):
                raise RequestError("tool call", f"is not whole, without its {self.end}")
            inner = inner.removesuffix(self.end)
        parse: Callable[[str, Any], Any] = _module(self.name).parse_tool_call
        try:
            found = parse(inner, json.loads(self.tools))
        # What a parser raises depends on where the text goes wrong.
        except (ValueError, LookupError, TypeError, AttributeError, SyntaxError) as error:
            what = str(error).partition("\n")[0] or type(error).__name__
            raise RequestError("tool call", f"can't be read ({what})") from error
        except (RecursionError, MemoryError) as error:
            raise RequestError("tool call", "is nested too deeply") from error
        calls = [_call(each) for each in (found if isinstance(found, list) else [found])]
        if not calls:
            raise RequestError("tool call", "names no tool")
        return calls


def find_parser(
    tools: str,
    has_token: Callable[[str], bool],
    template: str,
    variables: frozenset[str],
    named: str | None,
) -> CallParser:
    """The parser for a model's calls.

    Args:
        tools: The tools, as JSON.
        has_token: Whether the vocabulary has a token of this text.
        template: The chat template's source.
        variables: What the template reads.
        named: The parser that tokenizer_config.json names, if it does.

    Raises:
        RequestError: The template takes no tools, or nobody knows how its calls are written.
    """
    if "tools" not in variables:
        raise RequestError(
            "tools", "this model's chat template takes none", "use a model made for tools"
        )
    name = named or parser_name(has_token, template)
    module = None if name is None or not name.isidentifier() else _module_or_none(name)
    if name is None or module is None:
        what = "mlx-lm has no parser for this model's calls"
        raise RequestError("tools", what, "name one as tool_parser_type in tokenizer_config.json")
    return CallParser(name, module.tool_call_start, module.tool_call_end, tools)


def parser_name(has_token: Callable[[str], bool], template: str) -> str | None:
    """Which of mlx-lm's parsers reads a model's calls, as mlx-lm finds it."""
    for name, choices in PARSERS:
        if any(all(text in template for text in texts) for texts in choices):
            return name
    return next((name for name, tokens in _BY_TOKENS if all(map(has_token, tokens))), None)


def check_tools(text: str) -> list[dict[str, Any]]:
    """The tools as the template takes them.

    Raises:
        RequestError: One is not of OpenAI's form.
    """
    tools: list[Any] = json.loads(text)
    for number, tool in enumerate(tools, 1):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name or tool.get("type") != "function":
            mend = 'write {"type": "function", "function": {"name", "description", "parameters"}}'
            raise RequestError("tools", f"tool {number} is not of OpenAI's form", mend)
    return tools


def _call(found: Any) -> Call:
    name = found.get("name") if isinstance(found, dict) else None
    if not isinstance(name, str) or not name:
        raise RequestError("tool call", "names no tool")
    own = found.get("id")
    return Call(name, found.get("arguments", {}), own if isinstance(own, str) and own else None)


@cache
def _module_or_none(name: str) -> Any | None:
    from checkpoint.architecture.mlx_lm_models import defer_mlx_lm_init

    defer_mlx_lm_init()
    try:
        return importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    except ImportError:
        return None


def _module(name: str) -> Any:
    found = _module_or_none(name)
    if found is None:
        raise RequestError("tools", f"mlx-lm has no parser {name}", "install mlx-lm anew")
    return found
