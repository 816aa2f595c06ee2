"""Conversations drawn at random from the corpus, as token ids and loss weights.

Owns the mixture (how often prose, dialogues, several turns, a system message) and the
batching. Knows nothing of the model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demo_corpus import Corpus, Topic

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PROSE, DIALOGUE, SYSTEM = 0.04, 0.06, 0.15  # shares of all samples
TURNS = (8, 2, 1)  # odds of one, two and three questions
QUESTION_WEIGHT = 0.1
POOL = 512  # samples among which similar lengths are put together


@dataclass(frozen=True)
class Sample:
    """Token ids, and how much each counts in the loss."""

    ids: list[int]
    weights: list[float]


class Samples:
    """An endless, seeded source of batches.

    Args:
        corpus: What to draw from.
        encode: Text to token ids, special tokens recognised.
        batch_tokens: Tokens of a batch at most, padding included.
        seed: Decides every draw.
    """

    def __init__(
        self, corpus: Corpus, encode: Callable[[str], list[int]], batch_tokens: int, seed: int
    ) -> None:
        self._corpus = corpus
        self._encode = encode
        self._batch_tokens = batch_tokens
        self._rng = random.Random(seed)
        self._topics: dict[str, list[Topic]] = {}
        for topic in corpus.topics:
            self._topics.setdefault(topic.language, []).append(topic)

    def conversation(self, turns: Sequence[tuple[str, str]], system: str = "") -> Sample:
        """As the chat template renders it; answers count fully, questions a little."""
        ids: list[int] = []
        weights: list[float] = []

        def add(text: str, weight: float) -> None:
            piece = self._encode(text)
            ids.extend(piece)
            weights.extend([weight] * len(piece))

        if system:
            add(f"{START}system\n{system}{END}\n", 0.0)
        for question, answer in turns:
            add(f"{START}user\n{question}{END}\n{START}assistant\n", QUESTION_WEIGHT)
            add(answer + END, 1.0)
            add("\n", 0.0)
        return Sample(ids, weights)

    def draw(self) -> Sample:
        """One paragraph, dialogue, or conversation about random topics."""
        rng, phrasings = self._rng, self._corpus.phrasings
        kind = rng.random()
        if kind < PROSE:
            ids = self._encode(rng.choice(self._corpus.prose) + END_OF_TEXT)
            return Sample(ids, [1.0] * len(ids))
        if kind < PROSE + DIALOGUE:
            dialogue = rng.choice(self._corpus.dialogues)
            language, turns = dialogue.language, list(dialogue.turns)
        else:
            language = rng.choice(sorted(self._topics))
            count = rng.choices((1, 2, 3), TURNS)[0]
            turns = [
                (phrasings.vary(rng.choice(topic.questions), language, rng), topic.answer)
                for topic in rng.choices(self._topics[language], k=count)
            ]
        system = rng.choice(phrasings.systems(language)) if rng.random() < SYSTEM else ""
        return self.conversation(turns, system)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids and loss weights, [rows, length], of samples of similar lengths."""
        while True:
            pool = sorted((self.draw() for _ in range(POOL)), key=lambda sample: len(sample.ids))
            batches: list[list[Sample]] = [[]]
            for sample in pool:
                if (len(batches[-1]) + 1) * len(sample.ids) > self._batch_tokens:
                    batches.append([])
                batches[-1].append(sample)
            self._rng.shuffle(batches)
            yield from map(padded, batches)


def padded(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Ids and weights as [rows, longest]; padding comes last and counts nothing."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    weights = torch.zeros(len(samples), length)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        weights[row, : len(sample.ids)] = torch.tensor(sample.weights)
    return ids, weights
