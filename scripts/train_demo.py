"""Trains the demo model of configs/demo_model from the text in scripts/demo_corpus.

    pip install -e '.[test]'
    python scripts/train_demo.py --seed 0 --output configs/demo_model

A Qwen3 of 3.6 million parameters learns on one CPU core, in about an hour, to answer
questions about mlx-ferry in English and Chinese. The same seed on the same machine, with
the same versions of torch, tokenizers and transformers, gives the same bytes.

Half of the steps see weights rounded as MLX rounds them (affine, 4 bits, several group
sizes) while the gradient goes to the unrounded ones, so that the model answers as well
after `convert -q --bits 4`. At the end, held-out questions are counted whose whole
greedy answer is the right one, with and without that rounding.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_corpus import Corpus, Topic, read_corpus
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 2560
CONTEXT = 1024
LONGEST_TOKEN = 14  # bytes: an English word, or four Chinese characters
WORDS = r" ?[A-Za-z]+|\p{Han}+|\p{N}| ?[^\s\p{Han}A-Za-z\p{N}]+|\s+(?!\S)|\s+"
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """What decides the result, apart from the text and the seed."""

    steps: int
    batch_tokens: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: int = 100
    question_weight: float = 0.1
    noise: float = 0.03
    group_sizes: tuple[int | None, ...] = (None, 64, 32, 128)
    rounding_from: float = 0.4


@dataclass(frozen=True)
class Sample:
    """Token ids, and how much each counts in the loss."""

    ids: list[int]
    weights: list[float]


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text survives it unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 whose every matrix has rows that all of MLX's group sizes divide."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Samples:
    """Conversations drawn at random from the corpus, as token ids."""

    def __init__(
        self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
    ) -> None:
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._recipe = recipe
        self._rng = random.Random(seed)
        self._by_language: dict[str, list[Topic]] = {}
        for topic in corpus.topics:
            self._by_language.setdefault(topic.language, []).append(topic)

    def encode(self, text: str) -> list[int]:
        """The text's token ids."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def conversation(self, turns: list[tuple[str, str]], system: str = "") -> Sample:
        """What the chat template makes of it; the answers count fully, the rest a little."""
        ids: list[int] = []
        weights: list[float] = []

        def add(text: str, weight: float) -> None:
            piece = self.encode(text)
            ids.extend(piece)
            weights.extend([weight] * len(piece))

        if system:
            add(f"{START}system\n{system}{END}\n", 0.0)
        for question, answer in turns:
            add(f"{START}user\n{question}{END}\n{START}assistant\n", self._recipe.question_weight)
            add(answer + END, 1.0)
            add("\n", 0.0)
        return Sample(ids, weights)

    def _question(self, topic: Topic) -> str:
        question = self._rng.choice(topic.questions)
        return self._corpus.phrasings.vary(question, topic.language, self._rng)

    def draw(self) -> Sample:
        """One paragraph, dialogue, or conversation about random topics."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.04:
            ids = self.encode(rng.choice(self._corpus.prose) + END_OF_TEXT)
            return Sample(ids, [1.0] * len(ids))
        language = rng.choice(sorted(self._by_language))
        if kind < 0.10:
            dialogue = rng.choice(self._corpus.dialogues)
            language, turns = dialogue.language, list(dialogue.turns)
        else:
            count = rng.choices((1, 2, 3), (8, 2, 1))[0]
            topics = rng.choices(self._by_language[language], k=count)
            turns = [(self._question(topic), topic.answer) for topic in topics]
        systems = self._corpus.phrasings.systems(language)
        return self.conversation(turns, rng.choice(systems) if rng.random() < 0.15 else "")

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless pairs of ids and loss weights, [rows, length], of similar lengths."""
        while True:
            pool = sorted((self.draw() for _ in range(512)), key=lambda sample: len(sample.ids))
            batches: list[list[Sample]] = [[]]
            for sample in pool:
                if (len(batches[-1]) + 1) * len(sample.ids) > self._recipe.batch_tokens:
                    batches.append([])
                batches[-1].append(sample)
            self._rng.shuffle(batches)
            for batch in batches:
                yield padded(batch)


def padded(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Ids and weights as [rows, longest]; padding counts nothing and nobody attends to it."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    weights = torch.zeros(len(samples), length)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        weights[row, : len(sample.ids)] = torch.tensor(sample.weights)
    return ids, weights


def rounded(weight: Tensor, group_size: int, bits: int = 4) -> Tensor:
    """What a matrix becomes by MLX's affine quantization and back: code * scale + bias.

    The scale is chosen so that the group's extreme value farthest from zero is kept
    exactly and zero stays zero; scales and biases are bfloat16, as in the saved model.
    """
    top = 2**bits - 1
    groups = weight.bfloat16().float().view(-1, group_size)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    from_low = low.abs() > high.abs()
    scale = ((high - low) / top).clamp(min=1e-7)
    scale = torch.where(from_low, scale, -scale)
    edge = torch.where(from_low, low, high)
    zero = (edge / scale).round()
    scale = torch.where(zero != 0, edge / zero, scale)
    bias = torch.where(zero != 0, edge, torch.zeros_like(edge))
    codes = ((groups - bias) / scale).round().clamp(0, top)
    return (codes * scale.bfloat16().float() + bias.bfloat16().float()).view_as(weight)


@contextmanager
def rounded_weights(model: Qwen3ForCausalLM, group_size: int | None) -> Iterator[None]:
    """Inside, the matrices are rounded; gradients made inside fit the ones put back after."""
    matrices = [] if group_size is None else [p for p in model.parameters() if p.ndim == 2]
    kept = [matrix.detach().clone() for matrix in matrices]
    for matrix in matrices:
        matrix.data.copy_(rounded(matrix.detach(), group_size or 0))
    yield
    for matrix, original in zip(matrices, kept, strict=True):
        matrix.data.copy_(original)


def train(model: Qwen3ForCausalLM, samples: Samples, recipe: Recipe, seed: int) -> None:
    """AdamW with a cosine schedule; rounding sets in after `recipe.rounding_from`."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
    )

    def schedule(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        return min((step + 1) / recipe.warmup, cosine)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    rng = random.Random(seed)
    started = time.monotonic()
    average = 0.0
    for step, (ids, weights) in zip(range(recipe.steps), samples.batches(), strict=False):
        rounding = step >= recipe.rounding_from * recipe.steps
        group_size = rng.choice(recipe.group_sizes) if rounding else None
        noisy = (torch.rand(ids.shape) < recipe.noise) & (weights < 1.0) & (ids > 2)
        inputs = torch.where(noisy, torch.randint(3, VOCABULARY, ids.shape), ids)
        with rounded_weights(model, group_size):
            logits = model(input_ids=inputs[:, :-1]).logits
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
            counted = weights[:, 1:].flatten()
            loss = (losses * counted).sum() / counted.sum()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        average += (loss.item() - average) / min(step + 1, 50)
        if step % 50 == 49:
            minutes = (time.monotonic() - started) / 60
            print(f"step {step + 1}: loss {average:.4f}, {minutes:.1f} min", flush=True)


@torch.no_grad()
def wrong_answers(
    model: Qwen3ForCausalLM, samples: Samples, topics: tuple[Topic, ...]
) -> tuple[list[str], int]:
    """The held-out questions whose greedy answer is not the topic's, and how many there are.

    Greedy decoding gives exactly the right answer if and only if every token of it is the
    likeliest one after the right tokens before it: one forward pass tells.
    """
    pairs = [(question, topic.answer) for topic in topics for question in topic.held_out]
    wrong = []
    for question, answer in pairs:
        sample = samples.conversation([(question, answer)])
        ids = torch.tensor([sample.ids])
        best = model(input_ids=ids).logits[0, :-1].argmax(-1)
        answered = torch.tensor(sample.weights[1:]) == 1.0
        if not torch.equal(best[answered], ids[0, 1:][answered]):
            wrong.append(question)
    return wrong, len(pairs)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """The folder as transformers writes it, in bfloat16 and small shards."""
    output.mkdir(parents=True, exist_ok=True)
    for stale in output.glob("model*.safetensors*"):
        stale.unlink()
    model.generation_config.max_length = None
    model.save_pretrained(output, max_shard_size="2MB")
    tokenizer.save_pretrained(output)
    shutil.copyfile(Path(__file__).parent / "demo_corpus" / "MODEL_CARD.md", output / "README.md")


def main() -> None:
    """Trains, measures and saves."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=Path("configs/demo_model"))
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    recipe = Recipe(steps=args.steps)
    corpus = read_corpus()
    tokenizer = train_tokenizer(corpus)
    model = build_model(tokenizer)
    samples = Samples(corpus, tokenizer, recipe, args.seed)
    train(model, samples, recipe, args.seed)

    model.bfloat16()
    save(model, tokenizer, args.output)
    model.float()
    for group_size in (None, 64, 32):
        with rounded_weights(model, group_size):
            wrong, asked = wrong_answers(model, samples, corpus.topics)
        name = "bfloat16" if group_size is None else f"4 bits, groups of {group_size}"
        print(f"{name}: {asked - len(wrong)} of {asked} held-out questions answered right")
        print("".join(f"  not: {question}\n" for question in wrong), end="")


if __name__ == "__main__":
    main()
