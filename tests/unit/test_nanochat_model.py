"""nanochat's model in MLX against the numpy reference of every era, by every way of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map_with_path
from numpy.typing import NDArray

from inference.cache import KvForm, SequenceCache, check_kv_bits
from inference.selfcheck import batching_of
from tests.factories_nanochat import (
    REFERENCES,
    SHARED,
    Weights,
    config_of,
    model_of,
    read_reference,
    sizes_of,
)
from tests.nanochat_reference import ERAS, logits, random_weights

OFF = 1e-3
LATER = [era for era in ERAS if era != "E0"]
IDS = [int(value) for value in np.random.default_rng(5).integers(0, 300, 150)]
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/nanochat is not here")


def tiny(era: str, **changed: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    sizes = sizes_of(era, **changed)
    return random_weights(era, sizes), sizes  # type: ignore[return-value]


def run(model: nn.Module, ids: list[int], piece: int, cache: SequenceCache) -> NDArray[Any]:
    """Logits, [n, vocabulary], of tokens read in pieces."""
    found = []
    for at in range(0, len(ids), piece):
        some = ids[at : at + piece]
        found.append(np.array(model(mx.array([some]), cache=cache.layers)[0].astype(mx.float32)))
        cache.advance(len(some))
    return np.concatenate(found)


def off(model: nn.Module, ids: list[int], expected: NDArray[Any], piece: int = 1000) -> float:
    return float(np.abs(run(model, ids, piece, SequenceCache(model)) - expected).max())


@pytest.mark.parametrize("piece", [1000, 1, 7, 64])
@pytest.mark.parametrize("era", ERAS)
def test_logits_are_the_references(era: str, piece: int) -> None:
    weights, sizes = tiny(era)
    expected = logits(weights, sizes, ERAS[era], IDS)

    assert off(model_of(config_of(weights, sizes), weights), IDS, expected, piece) < OFF


@needs_shared
@pytest.mark.parametrize("piece", [1000, 1, 7, 64])
@pytest.mark.parametrize("name", REFERENCES)
def test_logits_are_nanochats(name: str, piece: int) -> None:
    weights, sizes, told = read_reference(name)

    model = model_of(config_of(weights, sizes), weights)

    assert off(model, told["ids"], told["logits"], piece) < OFF


@needs_shared
@pytest.mark.parametrize("name", REFERENCES)
def test_goes_on_as_nanochat_does(name: str) -> None:
    weights, sizes, told = read_reference(name)
    model = model_of(config_of(weights, sizes), weights)
    cache = SequenceCache(model)

    found, read = [], told["ids"][:40]
    for _ in told["greedy"]:
        found.append(int(run(model, read, 1000, cache)[-1].argmax()))
        read = found[-1:]

    assert found == told["greedy"]


def test_without_a_cache_it_is_the_same() -> None:
    weights, sizes = tiny("E4")
    model = model_of(config_of(weights, sizes), weights)

    found = np.array(model(mx.array([IDS]))[0])

    assert np.abs(found - logits(weights, sizes, ERAS["E4"], IDS)).max() < OFF


def _windows(by: int) -> Any:
    def change(config: dict[str, Any]) -> dict[str, Any]:
        last = config["max_position_embeddings"]
        seen = [window if window == last else window + by for window in config["attention_windows"]]
        return {"attention_windows": seen}

    return change


MUTATIONS = {
    "a window of one more": _windows(1),
    "a window of one less": _windows(-1),
    "softcap 20": lambda config: {"final_logit_softcapping": 20.0},
    "no q/k scale": lambda config: {"qk_scale": 1.0},
    "gate 2 for 3": lambda config: {"value_gate_scale": 2.0},
    "no smear": lambda config: {"smear_gate_width": 0},
    "no backout": lambda config: {"backout_layer": None},
    "theta of 2025": lambda config: {"rope_theta": 1e4},
}


def mutated(config: dict[str, Any], weights: Weights, name: str) -> nn.Module:
    changed = {**config, **MUTATIONS[name](config)}
    assert changed != config
    gone = {"no smear": "smear", "no backout": "backout"}.get(name, "nothing")
    return model_of(changed, {key: v for key, v in weights.items() if not key.startswith(gone)})


@pytest.mark.parametrize("name", MUTATIONS)
def test_any_other_constant_is_seen(name: str) -> None:
    weights, sizes = tiny("E4")
    expected = logits(weights, sizes, ERAS["E4"], IDS)

    assert off(mutated(config_of(weights, sizes), weights, name), IDS, expected) > OFF


@needs_shared
@pytest.mark.parametrize("name", MUTATIONS)
def test_any_other_constant_is_seen_against_nanochat(name: str) -> None:
    weights, sizes, told = read_reference("92d63d4")

    model = mutated(config_of(weights, sizes), weights, name)

    assert off(model, told["ids"], told["logits"]) > OFF


@needs_shared
@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("reference", ["2e17723", "6ed7d1d"])
def test_other_windows_are_seen_against_nanochat(reference: str, by: int) -> None:
    weights, sizes, told = read_reference(reference)
    config = config_of(weights, sizes)

    model = model_of({**config, **_windows(by)(config)}, weights)

    assert off(model, told["ids"], told["logits"]) > OFF


def test_the_whole_context_is_a_window_too() -> None:
    weights, sizes = tiny("E4", sequence_len=100)
    expected = logits(weights, sizes, ERAS["E4"], IDS)
    model = model_of(config_of(weights, sizes), weights)

    assert off(model, IDS, expected, 7) < OFF
    assert np.abs(logits(weights, sizes, ERAS["E4"], IDS, [1000] * 5) - expected).max() > OFF


@pytest.mark.parametrize("era", LATER)
def test_a_trimmed_cache_goes_on_as_a_new_one(era: str) -> None:
    weights, sizes = tiny(era)
    model = model_of(config_of(weights, sizes), weights)
    cache = SequenceCache(model)
    run(model, IDS[:60], 60, cache)

    assert cache.trim(25)

    for ids in (IDS[70:90], IDS[100:103]):  # and once more, further back
        expected = logits(weights, sizes, ERAS[era], IDS[: cache.length] + ids)[cache.length :]
        assert np.abs(run(model, ids, 1, cache) - expected).max() < OFF
        cache.trim(1)


def test_copies_go_their_own_ways() -> None:
    weights, sizes = tiny("E4")
    model = model_of(config_of(weights, sizes), weights)
    cache = SequenceCache(model)
    run(model, IDS[:10], 10, cache)
    copy = cache.copy()
    run(model, IDS[10:20], 10, cache)

    expected = logits(weights, sizes, ERAS["E4"], IDS[:10] + IDS[30:40])[10:]

    assert np.abs(run(model, IDS[30:40], 3, copy) - expected).max() < OFF


def test_a_saved_cache_goes_on(tmp_path: Path) -> None:
    from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

    weights, sizes = tiny("E4")
    model = model_of(config_of(weights, sizes), weights)
    cache = SequenceCache(model)
    run(model, IDS[:10], 10, cache)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache.layers)
    layers = load_prompt_cache(str(tmp_path / "cache.safetensors"))

    found = run(model, IDS[10:20], 4, SequenceCache.of(layers, 10))

    assert np.abs(found - logits(weights, sizes, ERAS["E4"], IDS[:20])[10:]).max() < OFF


@pytest.mark.parametrize("era", ERAS)
def test_sequences_decode_together(era: str) -> None:
    weights, sizes = tiny(era)

    assert batching_of(model_of(config_of(weights, sizes), weights)).refused is None


def test_only_keys_and_values_are_quantized_in_the_cache() -> None:
    weights, sizes = tiny("E4", n_embd=128)
    model = model_of(config_of(weights, sizes), weights)
    check_kv_bits(model, 8)
    plain, packed = SequenceCache(model), SequenceCache(model, KvForm(8))

    one, other = run(model, IDS[:40], 8, plain), run(model, IDS[:40], 8, packed)

    kinds = [type(layer).__name__ for layer in packed.layers]
    assert kinds == ["QuantizedKVCache"] * 5 + ["CacheList"]
    assert 0 < np.abs(one - other).max() < 0.05 * np.ptp(one)


def test_half_precision_stays_half() -> None:
    weights, sizes = tiny("E4")
    model = model_of(config_of(weights, sizes), weights)

    def half(path: str, value: mx.array) -> mx.array:
        return value.astype(mx.bfloat16) if model.cast_predicate(path) else value

    model.update(tree_map_with_path(half, model.parameters()))
    cache = SequenceCache(model)
    found = run(model, IDS[:20], 20, cache)

    assert {layer.keys.dtype for layer in cache.layers[:-1]} == {mx.bfloat16}
    assert {layer.values.dtype for layer in cache.layers[:-1]} == {mx.bfloat16}
    assert model.transformer.resid_lambdas.dtype == mx.float32
    expected = logits(weights, sizes, ERAS["E4"], IDS[:20])
    assert np.abs(found - expected).max() < 0.1 * np.ptp(expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attention_windows": [1]},
        {"attention_windows": [-1] * 5},
        {"value_embedding_layers": [9]},
        {"backout_layer": 5},
        {"smear_gate_width": 65},
        {"num_attention_heads": 3},
        {"final_logit_softcapping": 0.0},
    ],
)
def test_a_config_that_can_not_be_is_refused(wrong: dict[str, Any]) -> None:
    weights, sizes = tiny("E4")

    with pytest.raises(ValueError):
        model_of({**config_of(weights, sizes), **wrong}, weights)
