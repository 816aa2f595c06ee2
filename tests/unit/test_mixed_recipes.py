"""Recipes choose as mlx-lm does where the names are the same, and as they say elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.convert import QUANT_RECIPES, mixed_quant_predicate_builder
from mlx_lm.models import llama

from configs.errors import UsageError
from configs.mixtures import RECIPES
from configs.quantization import ConvertTable
from convert.mixed.layers import layers_of
from convert.mixed.recipes import from_recipe


def model(blocks: int, *, tied: bool = False) -> Any:
    return llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=64,
            num_hidden_layers=blocks,
            intermediate_size=64,
            num_attention_heads=1,
            rms_norm_eps=1e-6,
            vocab_size=64,
            tie_word_embeddings=tied,
        )
    )


@pytest.mark.parametrize("blocks", [3, 8, 19])
@pytest.mark.parametrize("name", QUANT_RECIPES)
def test_mlx_lms_own(name: str, blocks: int) -> None:
    made = model(blocks)
    ours = from_recipe(name, layers_of(made, ConvertTable()), blocks, 32)
    decide = mixed_quant_predicate_builder(name, made, 32)
    theirs = {
        path: decide(path, module)
        for path, module in made.named_modules()
        if hasattr(module, "to_quantized")
    }
    assert {path: form.as_config() for path, form in ours.items()} == theirs


def test_ends_have_their_own_bits() -> None:
    for tied in (False, True):
        chosen = from_recipe("ends_3_6", layers_of(model(2, tied=tied), ConvertTable()), 2, 64)
        high = {path for path, form in chosen.items() if form.bits == 6}
        assert high == {"model.embed_tokens"} | (set() if tied else {"lm_head"})
        assert {form.bits for path, form in chosen.items() if path not in high} == {3}


def test_after_llama_cpp() -> None:
    layers = layers_of(model(16), ConvertTable())
    bits = {path: form.bits for path, form in from_recipe("q3_k_m", layers, 16, 64).items()}
    assert bits["lm_head"] == 6
    assert bits["model.layers.0.mlp.down_proj"] == 5
    assert bits["model.layers.1.mlp.down_proj"] == 4
    assert bits["model.layers.9.self_attn.v_proj"] == 4
    assert bits["model.layers.9.self_attn.q_proj"] == 3


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_stands_for_every_layer(name: str) -> None:
    layers = layers_of(model(4), ConvertTable())
    chosen = from_recipe(name, layers, 4, 64)
    assert chosen.keys() == {layer.path for layer in layers}
    assert len({form.bits for form in chosen.values()}) > 1


def test_a_model_with_other_names_is_refused() -> None:
    layers = [layer for layer in layers_of(model(2), ConvertTable()) if "down" not in layer.path]
    with pytest.raises(UsageError, match="goes by names that this model's layers do not have"):
        from_recipe("q4_k_m", layers, 2, 64)
