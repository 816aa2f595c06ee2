"""Answers held to a form: which tokens may come next, whatever the vocabulary."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from configs.errors import GenerationError, RequestError
from inference.forms import grammar_of
from inference.guide import GuidedReader
from inference.request import GenerationOptions, SamplingOptions
from inference.sampler import Sampler
from inference.sections import SectionReader, Sections
from inference.structured import Vocabulary
from inference.thinking import MARKERS
from inference.tokenizer import Tokenizer, load_tokenizer
from tests.factories_models import write_tokenizer
from tests.factories_talk import add_tokens

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["né🙂", "b"]},
        "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}


def form(**asked: Any) -> str:
    found = grammar_of(
        json.dumps(asked["json_schema"]) if "json_schema" in asked else None,
        asked.get("regex"),
        tuple(asked.get("choice", ())),
    )
    assert found is not None
    return found[1]


def byte_level(folder: Path) -> Tokenizer:
    write_tokenizer(folder)
    add_tokens(folder, ("<think>", "</think>"))
    return load_tokenizer(folder, {"eos_token_id": [2, 0]})


def sentencepiece(folder: Path, *, bytes_too: bool = True) -> Tokenizer:
    """As Llama 2 and Gemma have them: `▁` for a space, and tokens for single bytes."""
    pieces = ["<unk>", "<s>", "</s>"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)] if bytes_too else []
    pieces += ["▁", *map(chr, range(0x21, 0x7F)), "▁yes", "é", '":', '▁"', "▁{", "true", "[]"]
    vocabulary = {piece: id_ for id_, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=bytes_too))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder, {"eos_token_id": 2})


TOKENIZERS = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece,
    "without bytes": lambda folder: sentencepiece(folder, bytes_too=False),
}


def allowed(reader: GuidedReader) -> set[int]:
    mask = reader.allowed()
    assert mask is not None
    return {id_ for id_, yes in enumerate(mask.tolist()) if yes}  # type: ignore[arg-type]


def walk(made: Tokenizer, grammar: str, seed: int, size: int = 400, most: int = 300) -> str | None:
    """A random answer of the form; None if it is not whole after so many tokens."""
    vocabulary = Vocabulary(made, size, made.special(), made.eos_ids)
    nothing = Sections(made.added)
    reader = GuidedReader(
        SectionReader(made.decode_all, nothing),
        nothing,
        size,
        grammar=vocabulary.grammar(grammar),
    )
    draw, said = random.Random(seed), ""
    for _ in range(most):
        ids = allowed(reader)
        assert ids and max(ids) <= made.highest_id
        token = draw.choice(sorted(ids))
        if token in made.eos_ids:
            return said + reader.flush()
        said += reader.push(token)
        if reader.stopped:
            return said + reader.flush()
    return None


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_way_through_a_schema_validates(kind: str, tmp_path: Path) -> None:
    made, whole, schema = TOKENIZERS[kind](tmp_path), 0, SCHEMA
    if kind == "without bytes":  # which can't spell every character
        letters = {"type": "string", "pattern": "^[a-z]{1,8}$"}
        properties = {**SCHEMA["properties"], "name": letters, "kind": {"enum": ["né", "b"]}}
        schema = {**SCHEMA, "properties": properties}
    for seed in range(20):
        said = walk(made, form(json_schema=schema), seed)
        if said is not None:
            jsonschema.validate(json.loads(said), schema)
            whole += 1
    assert whole >= 6


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_regex_and_choice_hold_the_whole_text(kind: str, tmp_path: Path) -> None:
    made = TOKENIZERS[kind](tmp_path)
    for seed in range(20):
        said = walk(made, form(regex=" ?yes{1,2} [a-c]{2}é?"), seed)
        assert said is not None and re.fullmatch(" ?yes{1,2} [a-c]{2}é?", said)
    texts = ("a", "ab", 'q"\n', " yes", "<s>", "é/{[")
    if kind == "without bytes":
        texts = ("a", "ab", 'q"', " yes", "<s>", "é/{[")
    found = {walk(made, form(choice=texts), seed) for seed in range(60)}
    assert found == set(texts)


def test_an_answer_ends_where_its_form_may_and_by_any_end_of_the_model(tmp_path: Path) -> None:
    made = byte_level(tmp_path)
    vocabulary = Vocabulary(made, 400, made.special(), made.eos_ids)
    grammar = vocabulary.grammar(form(regex="ab?"))
    first = made.encode_plain("a")[0]
    assert made.eos_ids == {0, 2}

    def ids() -> set[int]:
        return {id_ for id_, yes in enumerate(grammar.allowed().tolist()) if yes}  # type: ignore[arg-type]

    assert ids() == {first}
    assert grammar.push(first) == b"a" and not grammar.complete
    assert ids() == {0, 2, made.encode_plain("b")[0]}
    grammar.push(made.encode_plain("b")[0])
    assert grammar.complete
    with pytest.raises(GenerationError, match="can't go on in the form"):
        grammar.push(first)


def test_a_model_without_an_end_stops_where_nothing_can_follow(tmp_path: Path) -> None:
    made = sentencepiece(tmp_path)
    made.eos_ids = frozenset()
    assert walk(made, form(choice=["yes"]), 1) == "yes"
    grammar = Vocabulary(made, 400, made.special(), ()).grammar(form(regex="a+"))
    a = made.id_of("a")
    assert a is not None and made.highest_id < 399
    grammar.push(a)
    yes = grammar.allowed().tolist()
    assert [id_ for id_ in range(400) if yes[id_]] == [made.id_of("<0x61>"), a]  # type: ignore[index]


def test_what_no_token_can_spell_is_an_error(tmp_path: Path) -> None:
    made = sentencepiece(tmp_path, bytes_too=False)
    vocabulary = Vocabulary(made, 400, made.special(), made.eos_ids)
    with pytest.raises((GenerationError, RequestError)):
        vocabulary.grammar(form(choice=["好"])).allowed()


def test_one_grammar_serves_many_answers(tmp_path: Path) -> None:
    made = byte_level(tmp_path)
    vocabulary = Vocabulary(made, 400, made.special(), made.eos_ids)
    source = form(regex="a+")
    one, other = vocabulary.grammar(source), vocabulary.grammar(source)
    one.push(made.encode_plain("a")[0])
    assert other.allowed().tolist()[0] is False and one.allowed().tolist()[0] is True


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"json_schema": {"type": "foo"}}, "json_schema: Invalid type: foo"),
        ({"json_schema": {"uniqueItems": True, "type": "array"}}, "Unimplemented keys"),
        ({"json_schema": {"$ref": "http://127.0.0.1/x"}}, "json_schema: Resource"),
        ({"json_schema": {"enum": []}}, "Unsatisfiable schema"),
        ({"regex": "("}, "regex: unclosed group"),
        ({"regex": "a(?=b)"}, "look-ahead"),
        ({"regex": "a", "choice": ["b"]}, "choice: does not go with regex"),
    ],
)
def test_a_form_that_can_t_be_held_is_refused_with_the_reason(
    asked: dict[str, Any], what: str
) -> None:
    with pytest.raises(RequestError) as caught:
        form(**asked)
    assert what in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        {"stop": ("x",)},
        {"stop_token": (1,)},
        {"min_tokens": 2},
        {"ignore_eos": True},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
)
def test_what_contradicts_a_form_is_refused_by_name(other: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        GenerationOptions(regex="a+", **other)
    assert caught.value.where in other and "does not go with regex" in str(caught.value)


def test_the_sampler_draws_only_what_is_allowed_and_knows_wider_heads() -> None:
    sampler = Sampler(SamplingOptions(temperature=1.0, top_k=2, seed=3), [0])
    mask = mx.array([False, True, False, True])
    sampler.allowed = mask
    drawn = {int(sampler(mx.array([9.0, 1.0, 8.0, 1.5, 30.0]))) for _ in range(40)}
    assert drawn == {1, 3}
    greedy = Sampler(SamplingOptions(temperature=0.0, seed=3), [0])
    assert greedy.plain
    greedy.allowed = mask
    assert not greedy.plain and int(greedy(mx.array([9.0, 1.0, 8.0]))) == 1


class Guided:
    """A guided reader of a model that thinks, fed by text."""

    def __init__(self, made: Tokenizer, **options: Any) -> None:
        self.made = made
        start = options.pop("start", "<think>")
        thinking = next(each for each in MARKERS if each.start == start)
        sections = Sections(
            made.added,
            thinking,
            options.pop("opened", False),
            start_ids=tuple(made.encode_plain(thinking.start)),
            close_ids=tuple(made.encode_plain(thinking.close)),
            after_ids=tuple(made.encode_plain(thinking.after)) if thinking.after else (),
            begins=options.pop("begins", False),
        )
        vocabulary = Vocabulary(made, 400, made.control_tokens("<think></think>"), made.eos_ids)
        source = options.pop("form", None)
        left_out = made.eos_ids
        self.reader = GuidedReader(
            SectionReader(made.decode_all, sections),
            sections,
            400,
            grammar=None if source is None else vocabulary.grammar(source),
            thoughts=lambda: vocabulary.others(left_out),
            **options,
        )
        self.said = self.thought = ""

    def push(self, text: str) -> None:
        for token in self.made.encode_plain(text):
            self.take(token)

    def take(self, token: int) -> None:
        mask = self.reader.allowed()
        assert mask is None or mask.tolist()[token], self.made.piece(token)  # type: ignore[index]
        self.said += self.reader.push(token)
        self.thought += "".join(text for _, text in self.reader.asides())

    def forced(self) -> str:
        """What the reader has the model say, as long as there is one way on."""
        made = ""
        while self.reader.allowed() is not None and len(ids := allowed(self.reader)) == 1:
            token = ids.pop()
            made += self.made.decode_all([token])
            self.take(token)
            if self.reader.stopped:
                break
        return made


def test_a_thought_before_the_form_is_free_and_can_t_end_the_answer(tmp_path: Path) -> None:
    made = byte_level(tmp_path)
    guided = Guided(made, form=form(choice=["yes"]), begins=True)
    start, y = made.encode_plain("<think>")[0], made.encode_plain("y")[0]
    assert allowed(guided.reader) == {start, y}
    guided.push("<think>well, 好")
    assert not made.eos_ids & allowed(guided.reader) and len(allowed(guided.reader)) > 300
    guided.push("</think>")
    assert allowed(guided.reader) == {y}  # and no second thought
    assert guided.forced() == "yes" and guided.reader.stopped
    assert (guided.thought, guided.said) == ("well, 好", "yes")


def test_a_form_may_begin_without_a_thought(tmp_path: Path) -> None:
    guided = Guided(byte_level(tmp_path), form=form(choice=["yes"]), begins=True)
    guided.push("y")
    assert guided.forced() == "es" and (guided.thought, guided.said) == ("", "yes")


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_a_budget_ends_the_thought(tmp_path: Path, budget: int) -> None:
    guided = Guided(byte_level(tmp_path), budget=budget, opened=True)
    guided.push("abc"[:budget])
    assert guided.forced() == "</think>"
    assert guided.reader.allowed() is None
    guided.push("hello")
    assert (guided.thought, guided.said) == ("abc"[:budget], "hello")


def test_a_budget_counts_from_the_model_s_own_beginning(tmp_path: Path) -> None:
    guided = Guided(byte_level(tmp_path), budget=2)
    guided.push("so: <think>ab")
    assert guided.forced() == "</think>"
    guided.push("c<think>xz")
    assert guided.forced() == "</think>"
    assert (guided.said, guided.thought) == ("so: c", "abxz")


def test_markers_that_are_no_tokens_are_spelt_out(tmp_path: Path) -> None:
    made = byte_level(tmp_path)
    guided = Guided(made, start="<reasoning>", budget=2, opened=True, form=form(regex="[xy]+"))
    guided.push("ab")
    assert guided.forced() == "</reasoning>"
    guided.push("xx")
    assert (guided.thought, guided.said) == ("ab", "xx")


def test_harmony_s_heads_are_said_before_a_form(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    add_tokens(tmp_path, (), ("<|channel|>", "<|message|>", "<|start|>", "<|end|>"))
    made = load_tokenizer(tmp_path, {"eos_token_id": 2})
    start = "<|channel|>analysis<|message|>"
    head = "<|start|>assistant<|channel|>final<|message|>"
    for budget, ended in ((None, "hm<|end|>"), (2, "")):
        guided = Guided(made, start=start, budget=budget, form=form(regex="[xy]+"))
        assert guided.forced() == start
        guided.push(ended or "hm")
        assert guided.forced() == (head if ended else f"<|end|>{head}")
        guided.push("xx")
        assert (guided.thought, guided.said) == ("hm", "xx")
