"""Times a batch here beside one prompt after the other, and beside `mlx_lm.batch_generate`.

    python benchmarks/batch_against_mlx_lm.py --bits 4 --repeats 5

The model is made up: Llama's form with random weights, about 100 MB at 4 bits. All three
answer the same uneven prompts greedily, in turn, in one process. Prints each figure's median
and the median of the pairwise ratios.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import batch_generate
from mlx_lm.models.llama import Model, ModelArgs

from inference.engine import Engine
from inference.events import Delta
from inference.request import GenerationOptions, SamplingOptions, TokenRequest

VOCABULARY = 32_000


def make_model(bits: int | None, dtype: mx.Dtype) -> nn.Module:
    """A model of about 170 million weights."""
    arguments = ModelArgs(
        model_type="llama",
        hidden_size=1024,
        num_hidden_layers=12,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        rms_norm_eps=1e-6,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    mx.random.seed(0)
    model = Model(arguments)
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, bits=bits)
    mx.eval(model.parameters())
    return model


class IdReader:
    """Text that names the tokens."""

    stopped = False

    def push(self, token: int) -> str:
        return f"{token} "

    def flush(self) -> str:
        return ""


class NoTokenizer:
    """What `batch_generate` asks of a tokenizer."""

    eos_token_ids: tuple[int, ...] = ()

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{token} " for token in ids)


def ours(model: nn.Module, prompts: list[list[int]], tokens: int, rows: int) -> list[str]:
    """By the engine."""
    options = GenerationOptions(SamplingOptions(temperature=0.0), tokens)
    requests = [TokenRequest(str(n), tuple(p), options) for n, p in enumerate(prompts)]
    engine = Engine(model, lambda _: IdReader(), max_rows=rows)
    texts = [""] * len(prompts)
    for event in engine.run(requests):
        if isinstance(event, Delta):
            texts[int(event.request)] += event.text
    return texts


def theirs(model: nn.Module, prompts: list[list[int]], tokens: int, rows: int) -> list[str]:
    """By mlx-lm."""
    found: Any = batch_generate(
        model, NoTokenizer(), prompts, max_tokens=tokens, completion_batch_size=rows
    )
    texts: list[str] = found.texts
    return texts


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--bits", type=int, default=0, help="0: not quantized")
    arguments.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    arguments.add_argument("--prompts", type=int, default=16)
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--shared", type=int, default=0, help="tokens that all prompts share")
    arguments.add_argument("--repeats", type=int, default=5)
    chosen = arguments.parse_args()
    model = make_model(chosen.bits or None, getattr(mx, chosen.dtype))
    numbers = random.Random(0)

    def ids(count: int) -> list[int]:
        return [numbers.randrange(VOCABULARY) for _ in range(count)]

    header = ids(chosen.shared)
    prompts = [header + ids(numbers.randrange(8, 120)) for _ in range(chosen.prompts)]
    ways: dict[str, Callable[[], list[str]]] = {
        "batch": lambda: ours(model, prompts, chosen.tokens, chosen.prompts),
        "one by one": lambda: ours(model, prompts, chosen.tokens, 1),
        "mlx_lm": lambda: theirs(model, prompts, chosen.tokens, chosen.prompts),
    }
    texts: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(chosen.repeats + 1):  # the first is not counted
        for name, way in ways.items():
            began = time.perf_counter()
            texts[name] = way()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    count = chosen.prompts * chosen.tokens
    for name, found in seconds.items():
        median = statistics.median(found)
        same = sum(a == b for a, b in zip(texts[name], texts["one by one"], strict=True))
        print(
            f"{name:>12}: {median:6.2f} s, {count / median:7.1f} tokens/s, "
            f"{same} of {len(prompts)} answers as one by one"
        )
    for name in ("one by one", "mlx_lm"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["batch"], strict=True)]
        print(f"batch is {statistics.median(ratios):.2f} times as fast as {name}")


if __name__ == "__main__":
    main()
