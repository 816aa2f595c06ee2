"""Weights seen in float32, and which of them mlx-lm computes in half precision."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Recipe, whole
from checkpoint.architecture.trace import Weights, copies, trace
from checkpoint.shards import read_catalog
from convert.proof.tensors import misfits
from convert.proof.values import half_dtypes, in_float32, is_computed

ODD = 1.0 + 2.0**-7  # to which bfloat16 can't add 1 exactly


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Recipe]:
    weights = {
        "norm": mx.full((4,), ODD, dtype=mx.bfloat16),
        "matrix": mx.arange(24).reshape(4, 6).astype(mx.bfloat16),
        "ids": mx.arange(4),
    }
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights, {"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    return copies(read_catalog(tmp_path))


def value(recipe: Recipe) -> mx.array:
    with TensorReader() as reader:
        return recipe.read(whole(recipe.shape), reader)


def test_what_sanitize_computes_is_computed_in_float32(sources: dict[str, Recipe]) -> None:
    def sanitize(weights: Weights) -> Weights:
        return {
            "norm": weights["norm"] + 1.0,
            "there and back": (weights["norm"].astype(mx.float32) + 1.0).astype(mx.bfloat16),
            "matrix": mx.concatenate([weights["matrix"][2:], weights["matrix"][:2]]).T,
            "ids": weights["ids"],
        }

    recipes = trace(sanitize, sources).recipes
    assert value(recipes["norm"])[0].item() == 2.0
    wide = {name: in_float32(recipe) for name, recipe in recipes.items()}
    assert {name: each.dtype for name, each in wide.items() if name != "ids"} == dict.fromkeys(
        ("norm", "there and back", "matrix"), mx.float32
    )
    assert value(wide["norm"]).tolist() == [1.0 + ODD] * 4
    assert value(wide["there and back"]).tolist() == [1.0 + ODD] * 4
    assert mx.array_equal(value(wide["matrix"]), value(recipes["matrix"]))
    assert mx.array_equal(value(wide["ids"]), mx.arange(4))
    assert not any(map(half_dtypes, recipes.values()))
    computed = {name for name, recipe in recipes.items() if is_computed(recipe)}
    assert computed == {"norm", "there and back"}


def test_what_is_computed_whole_stays_in_half(sources: dict[str, Recipe]) -> None:
    def sanitize(weights: Weights) -> Weights:
        return {"matrix": mx.cumsum(weights["matrix"], axis=0)}

    recipe = trace(sanitize, sources).recipes["matrix"]
    assert half_dtypes(recipe) == {mx.bfloat16}
    assert in_float32(recipe).dtype == mx.bfloat16


def test_parameters_that_cannot_be_compared(sources: dict[str, Recipe]) -> None:
    assert misfits(sources, sources) == ""
    fewer = {name: sources[name] for name in ("norm", "matrix")}
    assert misfits(sources, fewer) == "1 parameters are on one side alone (ids)"
    other = {**sources, "norm": sources["matrix"]}
    assert misfits(sources, other) == "norm is [4, 6] where the source has [4]"
