"""GPT-2 as people have saved it again: one model, whichever names, masks and heads it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.cli import main
from inference.device import place
from inference.load import load, open_folder
from tests.architectures_table import TABLE, logits, sample_ids
from tests.factories_models import write_tokenizer

Tensors = dict[str, torch.Tensor]
IDS = sample_ids()
CLOSE = 2e-4
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def gpt2() -> tuple[dict[str, Any], Tensors, Any]:
    """Its config, its tensors as transformers names them, and transformers' logits."""
    model = TABLE["gpt2"].build()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return model.config.to_dict(), tensors, logits(model, IDS)


def headless(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def unprefixed(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def masked(tensors: Tensors) -> Tensors:
    """With the buffers that transformers saved before version 4.30."""
    made = dict(tensors)
    for name in tensors:
        if name.endswith("attn.c_attn.weight"):
            attention = name.removesuffix("c_attn.weight")
            made[f"{attention}bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
            made[f"{attention}masked_bias"] = torch.tensor(-1e4)
    return made


def own_head(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: tensors[HEAD].clone()}


PACKS: dict[str, Callable[[Tensors], Tensors]] = {
    "as transformers saves it": headless,
    "as openai-community/gpt2": lambda tensors: masked(unprefixed(headless(tensors))),
    "prefixed with masks": lambda tensors: masked(headless(tensors)),
    "with its head": own_head,
    "its head in place of its embeddings": lambda tensors: {
        name: tensor for name, tensor in own_head(tensors).items() if "wte" not in name
    },
    "unprefixed with its head and masks": lambda tensors: masked(unprefixed(own_head(tensors))),
}


def write(folder: Path, config: dict[str, Any], tensors: Tensors, name: str) -> Path:
    folder.mkdir()
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def ours(folder: Path) -> Any:
    model = load(open_folder(folder), place("cpu", "float32")).model
    return np.array(model(mx.array([IDS]))[0].astype(mx.float32))


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_logits_are_those_of_transformers(
    gpt2: tuple[dict[str, Any], Tensors, Any], pack: str, name: str, tmp_path: Path
) -> None:
    config, tensors, expected = gpt2
    assert "n_ctx" not in config
    source = write(tmp_path / "source", config, PACKS[pack](tensors), name)
    assert np.abs(ours(source) - expected).max() < CLOSE
    out = tmp_path / "out"
    assert main(["--hf-path", str(source), "--mlx-path", str(out), "--dtype", "float32"]) == 0
    assert np.abs(ours(out) - expected).max() < CLOSE
    assert json.loads((out / "config.json").read_text())["n_ctx"] == config["n_positions"]
    receipt = json.loads((out / "conversion.json").read_text())
    used = {dropped["name"] for dropped in receipt["dropped"]}
    spare = HEAD if "in place" not in pack else None
    left = {n for n in PACKS[pack](tensors) if n == spare or n.endswith((".attn.bias", "ked_bias"))}
    assert used == left


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({HEAD: torch.ones(1, 1)}, "ties the head to the embeddings, but lm_head.weight is"),
        ({"transformer.h.0.attn.bias": torch.ones(96)}, "and the shape [96] of none"),
        ({"transformer.h.0.attn.extra": torch.ones(1)}, "have no parameter in gpt2"),
        ({"score.weight": torch.ones(2, 64)}, "have no parameter in gpt2"),
        ({"transformer.wpe.weight": None}, "have no tensor: model.wpe.weight"),
    ],
)
def test_nothing_is_loaded_loosely(
    gpt2: tuple[dict[str, Any], Tensors, Any],
    change: dict[str, torch.Tensor | None],
    reason: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config, tensors, _ = gpt2
    changed: dict[str, torch.Tensor | None] = {**headless(tensors), **change}
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    source = write(tmp_path / "source", config, kept, "pytorch_model.bin")
    assert main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out")]) == 1
    assert reason in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
