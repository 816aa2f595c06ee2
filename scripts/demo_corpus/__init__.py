"""What the demo model is taught: questions, answers and prose, all written for it.

Owns the text (the TOML files beside this module) and the ways in which one question
can be put. Knows nothing of tokens, models or training.

A topic has one answer in each language, and questions of four kinds: `ask` holds whole
questions; `to` holds tasks ("convert a model"), `what` holds notions ("a shard") and
`flags` holds options, which `phrasings.toml` turns into questions. `held_out` questions
are never trained on: they measure whether the model understands or only remembers.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LANGUAGES = ("en", "zh")
_KINDS = ("to", "what", "flags")


@dataclass(frozen=True)
class Topic:
    """One thing the model can tell, in one language.

    Attributes:
        name: Its name in the TOML file, the same in both languages.
        language: `en` or `zh`.
        questions: All the ways of asking that are trained on.
        held_out: Ways of asking that are not.
        answer: The one answer to all of them.
    """

    name: str
    language: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str

    def __post_init__(self) -> None:
        if not self.questions or not self.answer:
            raise ValueError(f"topic {self.name} ({self.language}) lacks a question or the answer")
        seen = {question.lower() for question in self.questions}
        if leaked := [question for question in self.held_out if question.lower() in seen]:
            raise ValueError(f"topic {self.name} trains on held-out questions: {leaked}")


@dataclass(frozen=True)
class Dialogue:
    """A conversation whose later questions lean on the earlier ones.

    Attributes:
        language: `en` or `zh`.
        turns: Pairs of a question and its answer.
    """

    language: str
    turns: tuple[tuple[str, str], ...]


class Phrasings:
    """The ways of putting a question, for both languages."""

    def __init__(self, table: dict[str, dict[str, Any]]) -> None:
        self._table = table

    def systems(self, language: str) -> list[str]:
        """System messages that change nothing about the answers."""
        return list(self._table[language]["systems"])

    def expand(self, language: str, kind: str, subject: str) -> list[str]:
        """The questions about a task, a notion or a flag."""
        return [pattern.replace("{}", subject) for pattern in self._table[language][kind]]

    def vary(self, question: str, language: str, rng: random.Random) -> str:
        """The same question as another hand might type it."""
        table = self._table[language]
        for words in table["swaps"]:
            found = next((word for word in words if word in question), None)
            if found and rng.random() < 0.4:
                question = question.replace(found, rng.choice(words), 1)
        if rng.random() < 0.4:
            question = question.rstrip("?.!？。！")
        if rng.random() < 0.12:
            question = rng.choice(table["openings"]) + question
        if rng.random() < 0.08:
            question = question.rstrip("?.!？。！") + rng.choice(table["endings"])
        if rng.random() < 0.3:
            question = question.lower()
        if language == "zh" and rng.random() < 0.3:
            question = question.replace(" ", "")
        if rng.random() < 0.08:
            question = _mistype(question, rng)
        return question


def _mistype(text: str, rng: random.Random) -> str:
    """Drops, doubles or swaps one character."""
    at = rng.randrange(max(1, len(text) - 1))
    pair = text[at : at + 2]
    return text[:at] + rng.choice((pair[1:], pair[:1] + pair, pair[::-1])) + text[at + 2 :]


@dataclass(frozen=True)
class Corpus:
    """All of it.

    Attributes:
        phrasings: The ways of putting a question.
        topics: Both languages' topics.
        dialogues: Conversations of several turns.
        prose: Paragraphs about the toolkit.
        texts: Every string as it was written, for training a tokenizer.
    """

    phrasings: Phrasings
    topics: tuple[Topic, ...]
    dialogues: tuple[Dialogue, ...]
    prose: tuple[str, ...]
    texts: tuple[str, ...]


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))


def _strings(value: Any) -> Iterator[str]:
    """All strings within a TOML value; keys and held-out questions are not text to learn."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "held_out":
                yield from _strings(item)


def _refuse_ambiguous(topics: list[Topic]) -> None:
    """A question that two topics answer differently teaches nothing."""
    owners: dict[str, Topic] = {}
    for topic in topics:
        for question in topic.questions:
            owner = owners.setdefault(question.lower(), topic)
            if owner.answer != topic.answer and owner.language == topic.language:
                raise ValueError(f"{question!r} is asked by both {owner.name} and {topic.name}")


def _topic(entry: dict[str, Any], language: str, phrasings: Phrasings) -> Topic:
    table = {"flags": entry.get("flags", []), **entry[language]}
    questions = list(table.get("ask", []))
    for kind in _KINDS:
        for subject in table.get(kind, []):
            questions += phrasings.expand(language, kind, subject)
    return Topic(
        name=entry["name"],
        language=language,
        questions=tuple(dict.fromkeys(questions)),
        held_out=tuple(table.get("held_out", [])),
        answer=table["answer"],
    )


def read_corpus() -> Corpus:
    """Reads all TOML files of this folder, in the order of their names."""
    tables = {path.name: _toml(path.name) for path in sorted(FOLDER.glob("*.toml"))}
    texts = tuple(_strings(tables))
    phrasings = Phrasings(tables.pop("phrasings.toml"))
    dialogues = tables.pop("dialogues.toml")["dialogue"]
    prose = tables.pop("prose.toml")
    entries = [entry for table in tables.values() for entry in table["topic"]]
    topics = [_topic(entry, language, phrasings) for entry in entries for language in LANGUAGES]
    _refuse_ambiguous(topics)
    return Corpus(
        phrasings=phrasings,
        topics=tuple(topics),
        dialogues=tuple(
            Dialogue(entry["language"], tuple((turn[0], turn[1]) for turn in entry["turns"]))
            for entry in dialogues
        ),
        prose=tuple(text for language in LANGUAGES for text in prose[language]),
        texts=texts,
    )
