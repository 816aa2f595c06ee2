"""Trains the demo model of configs/demo_model from the text in scripts/demo_corpus.

    pip install -e '.[test]'
    python scripts/train_demo.py --seed 0 --output configs/demo_model

A Qwen3 of 3.6 million parameters learns on one CPU core, in less than an hour, to answer
questions about mlx-ferry in English and Chinese. The same seed on the same machine, with
the same versions of torch, tokenizers and transformers, gives the same bytes.

The later steps see weights rounded as MLX rounds them (affine, 4 bits, several group
sizes) while the gradient goes to the unrounded ones, so that the model answers as well
after `convert -q --bits 4`. At the end, held-out questions are counted whose whole
greedy answer is not the right one, with and without that rounding.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_corpus import FOLDER, Topic, read_corpus
from demo_corpus.samples import END, END_OF_TEXT, START, Samples
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import Parameter
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

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


@dataclass(frozen=True)
class Recipe:
    """What decides the result, apart from the text and the seed.

    Attributes:
        steps: Optimizer steps.
        batch_tokens: Tokens of a batch, with padding.
        matrix_rate: Peak learning rate of Muon, for the layers' matrices.
        other_rate: Peak learning rate of AdamW, for embeddings and norms.
        weight_decay: Of the layers' matrices.
        warmup: Steps until the peak; a cosine to zero follows.
        noise: Share of the questions' tokens replaced at random.
        rounding_from: Share of the steps after which weights are rounded.
        group_sizes: Drawn from at each of those steps; None leaves the weights as they are.
    """

    steps: int
    batch_tokens: int = 2048
    matrix_rate: float = 5e-3
    other_rate: float = 4e-3
    weight_decay: float = 0.1
    warmup: int = 40
    noise: float = 0.02
    rounding_from: float = 0.5
    group_sizes: tuple[int | None, ...] = (None, 64, 32, 128)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text survives it unchanged."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 whose rows all of MLX's group sizes divide."""
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


def rounded(weight: Tensor, group_size: int, bits: int = 4) -> Tensor:
    """What a matrix becomes by MLX's affine quantization and back: code * scale + bias.

    The extreme value of a group that lies farthest from zero is kept, and zero stays
    zero; scales and biases are bfloat16, as in the saved model.
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
    """Within, the matrices are rounded; gradients made within go to the ones put back."""
    matrices = [p for p in model.parameters() if p.ndim == 2] if group_size else []
    kept = [matrix.detach().clone() for matrix in matrices]
    for matrix in matrices:
        matrix.data.copy_(rounded(matrix.detach(), group_size or 0))
    yield
    for matrix, original in zip(matrices, kept, strict=True):
        matrix.data.copy_(original)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized (Jordan 2024, https://kellerjordan.github.io/posts/muon).

    Updates are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982). torch's
    own Muon computes in bfloat16, which is slow on most CPUs; this one stays in float32.
    """

    def __init__(self, params: list[Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every matrix."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                momentum = state.setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 0.05)
                update = orthogonalized(matrix.grad.lerp(momentum, 0.95))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values near 1, by five Newton-Schulz steps."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def optimizers(model: Qwen3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim == 1 or "embed" in name]
    return [
        Muon(matrices, recipe.matrix_rate, recipe.weight_decay),
        torch.optim.AdamW(others, recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(model: Qwen3ForCausalLM, samples: Samples, recipe: Recipe, seed: int) -> None:
    """Runs the recipe, printing the loss now and then."""

    def rate(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        return min((step + 1) / recipe.warmup, cosine)

    steppers = optimizers(model, recipe)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(stepper, rate) for stepper in steppers]
    rng = random.Random(seed)
    started, losses = time.monotonic(), []
    batches = itertools.islice(samples.batches(), recipe.steps)
    for step, (ids, weights) in enumerate(batches, start=1):
        rounding = step > recipe.rounding_from * recipe.steps
        group_size = rng.choice(recipe.group_sizes) if rounding else None
        noisy = (torch.rand(ids.shape) < recipe.noise) & (weights < 1.0) & (ids > 2)
        inputs = torch.where(noisy, torch.randint(3, VOCABULARY, ids.shape), ids)
        with rounded_weights(model, group_size):
            logits = model(input_ids=inputs[:, :-1]).logits
            by_token = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), ids[:, 1:], reduction="none"
            )
            loss = (by_token * weights[:, 1:]).sum() / weights[:, 1:].sum()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper, scheduler in zip(steppers, schedulers, strict=True):
            stepper.step()
            scheduler.step()
        model.zero_grad()
        losses.append(loss.item())
        if step % 25 == 0:
            mean, minutes = sum(losses[-25:]) / 25, (time.monotonic() - started) / 60
            print(f"step {step} of {recipe.steps}: loss {mean:.4f}, {minutes:.1f} min", flush=True)


@torch.no_grad()
def wrong_answers(
    model: Qwen3ForCausalLM, samples: Samples, questions: Iterable[tuple[str, Topic]]
) -> list[str]:
    """The questions whose greedy answer is not the topic's, word for word.

    Greedy decoding gives exactly the right answer if and only if every token of it is the
    likeliest one after the right tokens before it: one forward pass tells.
    """
    wrong = []
    for question, topic in questions:
        sample = samples.conversation([(question, topic.answer)])
        ids = torch.tensor([sample.ids])
        likeliest = model(input_ids=ids).logits[0, :-1].argmax(-1)
        answer = torch.tensor(sample.weights[1:]) == 1.0
        if not torch.equal(likeliest[answer], ids[0, 1:][answer]):
            wrong.append(question)
    return wrong


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """The folder as transformers writes it, in small shards, with the model card."""
    output.mkdir(parents=True, exist_ok=True)
    for stale in output.glob("model*.safetensors*"):
        stale.unlink()
    ends = tokenizer.convert_tokens_to_ids([END, END_OF_TEXT])  # of an answer, of prose
    # A model this small rambles at the usual temperatures.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.2, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(output, max_shard_size="2MB")
    tokenizer.save_pretrained(output)
    shutil.copyfile(FOLDER / "MODEL_CARD.md", output / "README.md")


def main() -> None:
    """Trains, saves and measures."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--steps", type=int, default=900, help="default: 900")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    recipe = Recipe(steps=args.steps)
    corpus = read_corpus()
    tokenizer = train_tokenizer(corpus.texts)
    model = build_model(tokenizer)
    samples = Samples(corpus, tokenizer.encode, recipe.batch_tokens, args.seed)
    train(model, samples, recipe, args.seed)
    model.bfloat16()
    save(model, tokenizer, args.output)

    model.float()
    questions = [(question, topic) for topic in corpus.topics for question in topic.held_out]
    for group_size in (None, 64, 32):
        with rounded_weights(model, group_size):
            wrong = wrong_answers(model, samples, questions)
        form = f"at 4 bits in groups of {group_size}" if group_size else "in bfloat16"
        print(f"{len(wrong)} of {len(questions)} held-out questions answered wrong {form}")
        print("".join(f"  {question}\n" for question in wrong), end="")


if __name__ == "__main__":
    main()
