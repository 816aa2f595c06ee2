"""What the tests of source formats share: conversions through the command, and their logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from convert.cli import main as convert
from inference.device import parameters, place
from inference.load import load, open_folder

TOKENS = mx.array([[5, 3, 200, 7, 11, 250, 1, 90]])


class Converted(NamedTuple):
    """What `convert` made."""

    config: dict[str, Any]
    receipt: dict[str, Any]
    folder: Path


def converted(source: Path, *flags: str) -> Converted:
    """Convert, and read what says how it came out."""
    out = source.parent / "-".join((source.name, "mlx", *flags))
    assert convert(["--hf-path", str(source), "--mlx-path", str(out), "--quiet", *flags]) == 0
    config = json.loads((out / "config.json").read_text())
    return Converted(config, json.loads((out / "conversion.json").read_text()), out)


def logits(folder: Path) -> mx.array:
    """Float32 logits on a few tokens."""
    return load(open_folder(folder), place("cpu", "float32")).model(TOKENS)


def distance(one: Path, other: Path) -> float:
    """The largest difference of two folders' logits, relative to the largest logit."""
    first, second = logits(one), logits(other)
    return (mx.abs(first - second).max() / mx.abs(second).max()).item()


def held(folder: Path) -> dict[str, mx.array]:
    """The tensors of a folder of one shard."""
    loaded = mx.load(str(folder / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def weights(folder: Path) -> dict[str, mx.array]:
    """A folder's parameters as `infer` holds them."""
    return parameters(load(open_folder(folder), place("cpu", "float32")).model)


def refusal(source: Path, errors: Any) -> str:
    """What `convert` says as it refuses a source; nothing is left behind."""
    errors.readouterr()
    out = source.parent / "refused"
    assert convert(["--hf-path", str(source), "--mlx-path", str(out)]) == 1
    assert not out.exists()
    return str(errors.readouterr().err)
