"""Times single answers, batches and batches that share a beginning, beside mlx-lm in one run.

    python benchmarks/batch_against_mlx_lm.py --repeats 5
    python benchmarks/batch_against_mlx_lm.py --hidden 1024 --layers 12 --bits 4

The model is made up: Llama's form with random weights, 22 million of them if nothing is
said. Both answer the same uneven prompts greedily, in turn, in one process: a single prompt
by `generate_step` (the loop under `mlx_lm.stream_generate`), several by
`mlx_lm.batch_generate`. Prints each one's median tokens a second, prompts included, and the
median of the pairwise ratios, by the clock and in CPU seconds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import batch_generate, generate_step
from mlx_lm.models.llama import Model, ModelArgs

from inference.engine import Engine
from inference.events import Delta
from inference.request import GenerationOptions, SamplingOptions, TokenRequest

VOCABULARY = 8_000


@dataclass(frozen=True)
class Case:
    """What both are asked.

    Attributes:
        name: Of it.
        prompts: How many.
        shared: Tokens that all of them begin with.
        own: Fewest and most tokens that each has of its own.
    """

    name: str
    prompts: int
    shared: int = 0
    own: tuple[int, int] = (8, 40)


CASES = (
    Case("single", 1, own=(32, 33)),
    Case("batch of 8", 8),
    Case("batch of 32", 32),
    Case("batch of 8 that share 128 tokens", 8, 128),
    Case("batch of 32 that share 128 tokens", 32, 128),
)


def make_model(hidden: int, layers: int, bits: int | None, dtype: mx.Dtype) -> nn.Module:
    """A model of random weights."""
    arguments = ModelArgs(
        model_type="llama",
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=hidden * 11 // 4,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
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

    guides = stopped = False

    def allowed(self) -> None:
        """Any token may come."""

    def asides(self) -> tuple[()]:
        """Nothing is said beside the answer."""
        return ()

    def push(self, token: int) -> str:
        return f"{token} "

    def flush(self) -> str:
        return ""


class NoTokenizer:
    """What `batch_generate` asks of a tokenizer."""

    eos_token_ids: tuple[int, ...] = ()

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{token} " for token in ids)


def ours(engine: Engine, prompts: list[list[int]], tokens: int) -> list[str]:
    """By the engine."""
    options = GenerationOptions(SamplingOptions(temperature=0.0), tokens)
    requests = [TokenRequest(str(n), tuple(p), options) for n, p in enumerate(prompts)]
    texts = [""] * len(prompts)
    for event in engine.run(requests):
        if isinstance(event, Delta):
            texts[int(event.request)] += event.text
    return texts


def theirs(model: nn.Module, prompts: list[list[int]], tokens: int, rows: int) -> list[str]:
    """By mlx-lm."""
    if len(prompts) == 1:
        said = generate_step(mx.array(prompts[0]), model, max_tokens=tokens)
        return ["".join(f"{token} " for token, _ in said)]
    found: Any = batch_generate(
        model, NoTokenizer(), prompts, max_tokens=tokens, completion_batch_size=rows
    )
    texts: list[str] = found.texts
    return texts


def compare(case: Case, model: nn.Module, tokens: int, repeats: int) -> None:
    """Run both in turn and print."""
    numbers = random.Random(case.name)

    def ids(count: int) -> list[int]:
        return [numbers.randrange(VOCABULARY) for _ in range(count)]

    header = ids(case.shared)
    prompts = [header + ids(numbers.randrange(*case.own)) for _ in range(case.prompts)]
    texts: dict[str, list[str]] = {}
    wall: dict[str, list[float]] = {"infer": [], "mlx_lm": []}
    cpu: dict[str, list[float]] = {"infer": [], "mlx_lm": []}
    # The engine is one for all repeats, as in a run: it finds out once what a model can do.
    engine = Engine(model, lambda _: IdReader(), max_rows=case.prompts)
    ways: dict[str, Callable[[list[list[int]], int], list[str]]] = {
        "infer": lambda prompts, tokens: ours(engine, prompts, tokens),
        "mlx_lm": lambda prompts, tokens: theirs(model, prompts, tokens, case.prompts),
    }
    for way in ways.values():  # not counted
        way(prompts[:2], 2)
    for _ in range(repeats):
        for name, way in ways.items():
            began, used = time.perf_counter(), time.process_time()
            texts[name] = way(prompts, tokens)
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - used)
    speed = {name: case.prompts * tokens / statistics.median(found) for name, found in wall.items()}
    ratios = [
        statistics.median(b / a for a, b in zip(taken["infer"], taken["mlx_lm"], strict=True))
        for taken in (wall, cpu)
    ]
    same = sum(a == b for a, b in zip(texts["infer"], texts["mlx_lm"], strict=True))
    print(
        f"{case.name}: infer {speed['infer']:.1f} tokens/s, mlx_lm {speed['mlx_lm']:.1f}; "
        f"{ratios[0]:.2f} times as fast by the clock, {ratios[1]:.2f} in CPU seconds; "
        f"{same} of {case.prompts} answers alike",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--hidden", type=int, default=512)
    arguments.add_argument("--layers", type=int, default=6)
    arguments.add_argument("--bits", type=int, default=0, help="0: not quantized")
    arguments.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    arguments.add_argument("--tokens", type=int, default=32)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--only", default="", help="cases whose name has this in it")
    chosen = arguments.parse_args()
    dtype = getattr(mx, chosen.dtype)
    model = make_model(chosen.hidden, chosen.layers, chosen.bits or None, dtype)
    for case in CASES:
        if chosen.only in case.name:
            compare(case, model, chosen.tokens, chosen.repeats)


if __name__ == "__main__":
    main()
