"""Tiny models that were taught what to say, and a tokenizer with marks of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from tokenizers import AddedToken, Tokenizer

from configs.resolve import Layers
from inference.request import GenerationOptions, Message, Request
from inference.session import open_session
from tests.factories_inference import save, tiny_config, tiny_network
from tests.factories_models import write_tokenizer

ROWS = 384  # of the embedding: more than there are tokens

# ChatML with thinking and tools, as the templates of Qwen3 have them.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "call with <tool_call>{{ '{' }}tool_call.name{{ '}' }}</tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def write_talker(
    folder: Path,
    lessons: Sequence[tuple[str | Sequence[Message], Mapping[str, Any], str]] = (),
    *,
    template: str = TEMPLATE,
    marks: Sequence[str] = MARKS,
    special: Sequence[str] = (),
    steps: int = 150,
    **changes: Any,
) -> Path:
    """An MLX folder of a model that gives each lesson's answer, greedily.

    Args:
        folder: Where to write it.
        lessons: A prompt or messages, options of the request, and the answer to it.
        template: The chat template.
        marks: More tokens of the vocabulary.
        special: Those among more tokens that are special.
        steps: Of training.
        changes: Config values other than the tiny ones.
    """
    config = tiny_config(
        "llama", **{"vocab_size": ROWS, "max_position_embeddings": 1024, **changes}
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_network(config)
    save(folder, dict(tree_flatten(model.parameters())), config)
    write_tokenizer(folder)
    add_tokens(folder, marks, special)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": template}))
    if lessons:
        _teach(model, [_sequence(folder, *lesson) for lesson in lessons], steps)
        save(folder, dict(tree_flatten(model.parameters())), config)
    return folder


def add_tokens(folder: Path, marks: Sequence[str], special: Sequence[str] = ()) -> None:
    """Give a folder's tokenizer more tokens."""
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in special])
    tokenizer.save(path)


def _sequence(
    folder: Path, prompt: str | Sequence[Message], options: Mapping[str, Any], answer: str
) -> tuple[list[int], int]:
    """Ids of prompt and answer, and where the answer begins."""
    session = open_session(folder, Layers().resolve())
    messages = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    request = Request("0", messages, options=GenerationOptions(**options))
    ids = list(session.tokenize(request).prompt)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    return [*ids, *tokenizer.encode(answer, add_special_tokens=False).ids, end], len(ids)


def _teach(model: nn.Module, sequences: Sequence[tuple[list[int], int]], steps: int) -> None:
    def loss(model: nn.Module) -> mx.array:
        total = mx.array(0.0)
        for ids, begin in sequences:
            logits = model(mx.array([ids[:-1]]))[0, begin - 1 :]
            total = total + nn.losses.cross_entropy(logits, mx.array(ids[begin:]), reduction="mean")
        return total

    step = nn.value_and_grad(model, loss)
    optimizer = optim.Adam(learning_rate=2e-3)
    for _ in range(steps):
        value, gradients = step(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if float(value) < 0.01 * len(sequences):
            return
    raise RuntimeError(f"the tiny model did not learn its lessons: loss {float(value):.3f}")
