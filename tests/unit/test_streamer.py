"""A model run block by block computes exactly what the whole model computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import transformers
from mlx.utils import tree_flatten

from checkpoint.architecture import explicit
from checkpoint.architecture.mapping import ModelMap, map_model
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import whole
from checkpoint.architecture.streamer import Block, LayerStream
from checkpoint.shards import read_catalog
from configs.errors import ArchitectureError
from inference.plain import fill_by_recipes
from tests.architectures_table import TABLE, VOCAB
from tests.meaning_in_process import meaning_in_process

ROWS, POSITIONS, PIECE = 3, 24, 2 * 24  # so that a block runs two rows, and then one
EXACT = [
    "llama",
    "qwen3",
    "gemma2",
    "gemma3",
    "olmo3",
    "gpt-oss",
    "llama4-text",
    "qwen3-moe",
    "deepseek-v3",
    "gpt2",
    "mamba2",
    "lfm2",
    "jamba",
    "falcon-h1",
    "qwen3-next",
    "granite-hybrid",
]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(explicit, "transformers_meaning", meaning_in_process)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with mx.stream(mx.cpu):
        yield


@pytest.fixture
def reader() -> Iterator[TensorReader]:
    with TensorReader() as made:
        yield made


def mapped(folder: Path) -> ModelMap:
    return map_model(json.loads((folder / "config.json").read_text()), read_catalog(folder))


def saved(name: str, folder: Path) -> Path:
    TABLE[name].build().save_pretrained(folder, max_shard_size="100KB")
    return folder


class Reading:
    """What is read, one weight after the other."""

    def __init__(self, model: ModelMap, reader: TensorReader) -> None:
        self.names: list[str] = []
        self._model, self._reader = model, reader

    def __call__(self, name: str) -> mx.array:
        self.names.append(name)
        recipe = self._model.recipes[name]
        value = recipe.read(whole(recipe.shape), self._reader)
        mx.eval(value)
        recipe.release()
        return value


def ids() -> mx.array:
    return mx.array(np.random.default_rng(1).integers(3, VOCAB, (ROWS, POSITIONS)), mx.int32)


def in_parts(stream: LayerStream, tokens: mx.array, hidden: mx.array) -> mx.array:
    """The logits, five positions of a row at a time."""
    rows: list[mx.array] = []
    for row in range(ROWS):
        parts = [
            stream.logits(
                tokens[row : row + 1, low : low + 5], hidden[row : row + 1, low : low + 5]
            )
            for low in range(0, POSITIONS, 5)
        ]
        rows.append(mx.concatenate(parts, axis=1))
    return mx.concatenate(rows)


@pytest.mark.parametrize("name", EXACT)
def test_streamed_logits_are_the_whole_models(
    name: str, tmp_path: Path, reader: TensorReader
) -> None:
    folder = saved(name, tmp_path / "source")
    model: Any = fill_by_recipes(mapped(folder))
    expected = model(ids()).astype(mx.float32)
    streamed = mapped(folder)
    reading = Reading(streamed, reader)
    stream = LayerStream(streamed.model, reading, piece_tokens=PIECE)
    found = in_parts(stream, ids(), stream.run(ids()))
    np.testing.assert_allclose(
        np.array(found),
        np.array(expected),
        rtol=0,
        atol=1e-5 * float(mx.abs(expected).max().item()),
    )
    of_blocks = [name for name in reading.names if ".layers." in name or ".h." in name]
    assert sorted(of_blocks) == sorted(set(of_blocks))  # each is read once


def test_a_visit_may_change_a_block_and_run_it_again(tmp_path: Path, reader: TensorReader) -> None:
    source = mapped(saved("qwen3", tmp_path / "source"))
    stream = LayerStream(source.model, Reading(source, reader), piece_tokens=PIECE)
    plain = stream.run(ids())
    seen = []

    def without_mlp(block: Block, hidden: mx.array) -> mx.array:
        before = block(hidden)
        name = next(each for each in sorted(block.names) if each.endswith("down_proj.weight"))
        block.replace(name, mx.zeros_like(block.weight(name)))
        after = block(hidden)
        assert mx.abs(before - after).max().item() > 1e-3
        seen.append((block.number, len(block.names)))
        return before if block.number else after

    changed = stream.run(ids(), without_mlp)
    assert [number for number, _ in seen] == [0, 1, 2] and {count for _, count in seen} == {11}
    assert mx.abs(changed - plain).max().item() > 1e-3
    assert mx.array_equal(stream.run(ids()), plain)  # nothing of it stays
    with pytest.raises(ValueError, match="shape"):
        stream.run(
            ids(), lambda block, hidden: block.replace(min(block.names), mx.zeros(3)) or hidden
        )


class Toy(nn.Module):
    """Two linear layers; what it does around them is for the tests to choose."""

    def __init__(self, tail: str = "", order: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 8)
        self.layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
        self.head = nn.Linear(8, VOCAB)
        self._tail, self._order = tail, order

    def __call__(self, ids: mx.array) -> mx.array:
        hidden = first = self.embed(ids)
        if self._tail == "many":
            hidden = mx.stack([hidden, hidden])
        for number in self._order:
            hidden = self.layers[number](hidden)
        return self.head(hidden + first if self._tail == "first" else hidden)


@pytest.mark.parametrize(
    ("toy", "what"),
    [
        (Toy("first"), "more than its last layer's output"),
        (Toy("many"), r"its layers take \[2, 3, 24, 8\]"),
        (Toy(order=(1, 0)), "once and in order"),
        (Toy(order=(0, 1, 0)), None),
        (Toy(order=(0,)), "every layer once"),
    ],
)
def test_a_model_that_is_no_row_of_blocks_is_refused_by_name(toy: Toy, what: str | None) -> None:
    weights = dict(tree_flatten(toy.parameters()))
    mx.eval(weights)
    stream = LayerStream(toy, lambda name: weights[name])
    if what is None:  # what comes after the last layer is seen when logits are asked for
        hidden = stream.run(ids())
        with pytest.raises(ArchitectureError, match="once and in order"):
            stream.logits(ids(), hidden)
        return
    with pytest.raises(ArchitectureError, match=what) as refusal:
        stream.logits(ids(), stream.run(ids()))
    assert "test_streamer" in refusal.value.what
