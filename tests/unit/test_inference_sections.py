"""Answers told apart into thoughts, text and calls, however they are cut into tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inference.reader import TextReader
from inference.sections import SectionReader, Sections
from inference.thinking import MARKERS, find_markers, switch_variables
from inference.tokenizer import Tokenizer, load_tokenizer
from inference.tools import CallParser
from tests.factories_models import write_tokenizer
from tests.factories_talk import add_tokens

CALL = CallParser("json_tools", "<tool_call>", "</tool_call>", "[]")
MISTRAL = CallParser("mistral", "[TOOL_CALLS]", "", "[]")
HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")


def tokenizer(
    folder: Path, marks: tuple[str, ...] = (), special: tuple[str, ...] = ()
) -> Tokenizer:
    write_tokenizer(folder)
    add_tokens(folder, marks, special)
    return load_tokenizer(folder, {})


def markers(start: str) -> Any:
    return next(each for each in MARKERS if each.start == start)


def read(made: Tokenizer, pieces: list[str], **sections: Any) -> dict[str, Any]:
    """What a reader makes of an answer; each piece is encoded by itself."""
    stops = sections.pop("stops", ())
    reader = SectionReader(made.decode_all, Sections(made.added, **sections), stops)
    said, asides = "", []
    for token in (id_ for piece in pieces for id_ in made.encode_plain(piece)):
        said += reader.push(token)
        asides += reader.asides()
    said += reader.flush()
    asides += reader.asides()
    return {
        "said": said,
        "thought": "".join(text for kind, text in asides if kind == "thinking"),
        "calls": [text for kind, text in asides if kind == "call"],
    }


THINK = "<think>\nWhat, 好?\n</think>\n\nhello 🙂 <b>"
CALLS = 'I call <tool_call>\n{"a": "<b>"}\n</tool_call>\n<tool_call>{}</tool_call> so'


@pytest.mark.parametrize("marks", [("<think>", "</think>", "<tool_call>", "</tool_call>"), ()])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_sections_are_told_apart_however_they_are_cut(
    tmp_path: Path, marks: tuple[str, ...], size: int
) -> None:
    made = tokenizer(tmp_path, marks)
    for text, expected in (
        (THINK, {"said": "hello 🙂 <b>", "thought": "What, 好?\n", "calls": []}),
        (
            CALLS,
            {
                "said": "I call so",
                "thought": "",
                "calls": ['<tool_call>\n{"a": "<b>"}\n</tool_call>', "<tool_call>{}</tool_call>"],
            },
        ),
    ):
        whole = [text] if marks else [text[at : at + size] for at in range(0, len(text), size)]
        assert read(made, whole, thinking=markers("<think>"), calls=CALL) == expected


def test_a_text_that_spells_a_marker_is_text_where_the_marker_is_a_token(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, ("<think>", "</think>"))
    assert read(made, ["a ", "<thi", "nk>", " b"], thinking=markers("<think>")) == {
        "said": "a <think> b",
        "thought": "",
        "calls": [],
    }


def test_a_section_that_the_prompt_opened_and_one_that_never_ends(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, ("<think>", "</think>"))
    thinking = markers("<think>")
    found = read(made, ["so it is</think>\n", "yes"], thinking=thinking, opened=True)
    assert (found["thought"], found["said"]) == ("so it is", "yes")
    found = read(made, ["so it </thi"], thinking=thinking, opened=True)
    assert (found["thought"], found["said"]) == ("so it </thi", "")
    found = read(made, ["yes</think> or no"], thinking=thinking)
    assert found["said"] == "yesor no"  # an end that nothing began is no text


def test_a_call_that_never_ends_is_kept_and_one_without_an_end_goes_to_the_last(
    tmp_path: Path,
) -> None:
    made = tokenizer(tmp_path, (), ("[TOOL_CALLS]",))
    assert read(made, ['a <tool_call>{"n'], calls=CALL)["calls"] == ['<tool_call>{"n']
    found = read(made, ["well", '[TOOL_CALLS][{"name": "f"}]'], calls=MISTRAL)
    assert found == {
        "said": "well",
        "thought": "",
        "calls": ['[TOOL_CALLS][{"name": "f"}]'],
    }


def test_special_tokens_are_no_text_as_without_sections(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, ("<think>", "</think>"), ("<pad>",))
    ids = made.encode_plain("a<pad> b <think>é<pad>x</think>c<pad>")
    reader = SectionReader(made.decode_all, Sections(made.added, markers("<think>")))
    plain = TextReader(made.decode, ())
    said = "".join(map(reader.push, ids)) + reader.flush()
    assert said == "a b c"
    assert "".join(text for _, text in reader.asides()) == "éx"
    assert "".join(map(plain.push, ids)) + plain.flush() == "a b <think>éx</think>c"


def test_stop_strings_are_looked_for_in_the_answer_alone(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, ("<think>", "</think>"))
    found = read(
        made, ["<think>a END b</think>c EN", "D d"], thinking=markers("<think>"), stops=("END",)
    )
    assert (found["thought"], found["said"]) == ("a END b", "c ")


def test_the_channels_of_harmony(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, (), HARMONY)
    found = read(
        made,
        [
            "<|channel|>analysis<|message|>hm <|end|><|start|>assistant",
            "<|channel|>final<|message|>The final word",
        ],
        thinking=markers("<|channel|>analysis<|message|>"),
    )
    assert (found["thought"], found["said"]) == ("hm ", "The final word")
    found = read(
        made, ["<|channel|>final<|message|>Hi"], thinking=markers("<|channel|>analysis<|message|>")
    )
    assert (found["thought"], found["said"]) == ("", "Hi")


@pytest.mark.parametrize(
    ("tokens", "template", "start"),
    [
        ({"<think>", "</think>"}, "", "<think>"),
        (set(), "{% if x %}<think>\n\n</think>{% endif %}", "<think>"),
        (set(), "{{ content.split('</think>')[-1] }}", None),
        (set(HARMONY), "", "<|channel|>analysis<|message|>"),
        ({"[THINK]", "[/THINK]"}, "", "[THINK]"),
        ({"<|channel>", "<channel|>"}, "", "<|channel>thought"),
        ({"<|im_start|>"}, "", None),
    ],
)
def test_a_model_s_markers_are_found(tokens: set[str], template: str, start: str | None) -> None:
    found = find_markers(tokens.__contains__, template)
    assert (None if found is None else found.start) == start


def test_the_template_s_own_switch_is_used() -> None:
    both = frozenset({"thinking", "enable_thinking", "messages"})
    assert switch_variables("off", both) == {"enable_thinking": False}
    assert switch_variables("hide", frozenset({"thinking"})) == {"thinking": True}
    assert switch_variables(None, both) == {}
    assert switch_variables("fold", frozenset()) == {}


def test_mlx_lm_s_markers_are_among_ours() -> None:
    """By mlx-lm's own function, on vocabularies that have each pair that it names."""
    from mlx_lm import tokenizer_utils

    class Stand:
        def __init__(self, tokens: tuple[str, ...]) -> None:
            self.tokens = tokens

        def get_vocab(self) -> dict[str, int]:
            return {token: id_ for id_, token in enumerate(self.tokens)}

        def encode(self, text: str, **_: Any) -> list[int]:
            return [0]

    checked = 0
    for each in MARKERS:
        tokens = each.tokens or (each.start, each.end)
        start, end, *_ = tokenizer_utils._infer_thinking(Stand(tokens))
        if start is not None:
            assert (start, end) == (each.start, each.end)
            checked += 1
    assert checked == 5
