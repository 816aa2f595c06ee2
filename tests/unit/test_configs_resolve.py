"""Precedence, origins, the model's own generation_config.json, and --show-config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli

from configs.errors import ConfigError, ModelConfigError
from configs.keys import KEYS
from configs.loader import load_toml
from configs.resolve import Layer, Layers, Setting
from configs.schema import TABLES, LayerRule

FILE = Path("model/generation_config.json")


def layer(origin: str, settings: Mapping[str, object]) -> Layer:
    return {key: Setting(KEYS[key].check(value), origin) for key, value in settings.items()}


def given(**values: object) -> Layers:
    """Layers where each source says the same of the temperature: its own value."""
    layers = {name: layer(name, {"generate.temperature": value}) for name, value in values.items()}
    return Layers(**layers)


SOURCES = ("generation_config", "toml", "sets", "flags")


@pytest.mark.parametrize("count", range(len(SOURCES) + 1))
def test_each_source_wins_over_those_before_it(count: int) -> None:
    resolved = given(**{name: float(i) for i, name in enumerate(SOURCES[:count])}).resolve()
    expected = (count - 1.0, SOURCES[count - 1]) if count else (0.7, "default")
    found = (resolved.generate.temperature, resolved.origin("generate.temperature"))
    assert found == expected
    assert resolved.given("generate.temperature") == bool(count)


def test_sources_that_say_different_things_all_hold() -> None:
    resolved = Layers(
        toml=layer("a.toml:1", {"generate.seed": 1, "generate.top_k": 2}),
        flags=layer("--top-k", {"generate.top_k": 3}),
    ).resolve()
    assert (resolved.generate.seed, resolved.generate.top_k) == (1, 3)
    assert resolved.origin("generate.seed") == "a.toml:1"
    assert resolved.origin("generate.top_k") == "--top-k"
    assert resolved.origin("generate.top_p") == "default"


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"),
    [("affine", 4, 64), ("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)],
)
def test_bits_and_group_size_follow_the_mode(mode: str, bits: int, group_size: int) -> None:
    resolved = Layers(flags=layer("--mode", {"convert.mode": mode})).resolve()
    assert (resolved.convert.bits, resolved.convert.group_size) == (bits, group_size)
    assert not resolved.given("convert.bits")


def test_another_mode_hides_the_bits_that_were_said_for_the_first() -> None:
    toml = layer("a.toml:1", {"convert.mode": "affine", "convert.bits": 6})
    other = Layers(toml=toml, flags=layer("--mode", {"convert.mode": "mxfp8"})).resolve()
    assert (other.convert.bits, other.origin("convert.bits")) == (8, "default")
    same = Layers(toml=toml, flags=layer("--mode", {"convert.mode": "affine"})).resolve()
    assert (same.convert.bits, same.origin("convert.bits")) == (6, "a.toml:1")


def test_another_source_hides_what_was_said_of_the_first() -> None:
    toml = layer(
        "a.toml:1",
        {"model.source": "a/b", "model.name": "b", "model.revision": "v1", "generate.top_k": 5},
    )
    other = Layers(toml=toml, flags=layer("--hf-path", {"model.source": "c/d"})).resolve()
    assert (other.model.name, other.model.revision) == (None, None)
    assert other.generate.top_k == 5
    same = Layers(toml=toml, flags=layer("--hf-path", {"model.source": "a/b"})).resolve()
    assert (same.model.name, same.model.revision) == ("b", "v1")


def test_values_that_do_not_go_together_are_refused_at_the_weaker_ones_place() -> None:
    layers = Layers(
        toml=layer("a.toml:3", {"convert.mode": "nvfp4"}),
        flags=layer("--bits", {"convert.bits": 8}),
    )
    with pytest.raises(ConfigError) as caught:
        layers.resolve()
    assert str(caught.value) == "--bits: 8 does not go with mode nvfp4; nvfp4 takes 4"


def test_a_rule_that_does_not_go_with_the_mode_is_refused_at_the_rules() -> None:
    rules = [{"pattern": "a", "keep": True}, {"pattern": "b", "bits": 6}]
    layers = Layers(
        toml=layer("a.toml:3", {"convert.layers": rules, "convert.mode": "mxfp4"}),
    )
    with pytest.raises(ConfigError) as caught:
        layers.resolve()
    assert str(caught.value).startswith("a.toml:3: convert.layers[1].bits: 6 does not go with")


@pytest.mark.parametrize(
    ("mapping", "key", "value"),
    [
        ({"temperature": 0.6, "do_sample": True}, "generate.temperature", 0.6),
        ({"temperature": 1}, "generate.temperature", 1.0),
        ({"temperature": 0.6, "do_sample": False}, "generate.temperature", 0.0),
        ({"do_sample": False}, "generate.temperature", 0.0),
        ({"top_p": 0.8}, "generate.top_p", 0.8),
        ({"top_k": 20}, "generate.top_k", 20),
        ({"min_p": 0.1}, "generate.min_p", 0.1),
        ({"repetition_penalty": 1.05}, "generate.repetition_penalty", 1.05),
        ({"repetition_penalty": 1.05}, "generate.repetition_context", 0),
        ({"max_new_tokens": 2048}, "generate.max_tokens", 2048),
        ({"min_new_tokens": 20}, "generate.min_tokens", 20),
        ({"stop_strings": "END"}, "generate.stop", ("END",)),
        ({"stop_strings": ["END", "###"]}, "generate.stop", ("END", "###")),
    ],
)
def test_the_models_own_recommendations(mapping: dict[str, Any], key: str, value: object) -> None:
    resolved = Layers().with_generation_config(mapping, FILE).resolve()
    table, name = key.split(".")
    assert getattr(getattr(resolved, table), name) == value
    assert resolved.origin(key) == "generation_config.json"


def test_keys_of_generation_config_that_mean_nothing_here_are_passed_over() -> None:
    mapping = {
        "temperature": None,
        "eos_token_id": [1],
        "max_length": 20,
        "do_sample": None,
        "x": 1,
    }
    assert not Layers().with_generation_config(mapping, FILE).generation_config


NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "typical_p": 1.0,
    "penalty_alpha": 0.0,
    "guidance_scale": 1,
    "min_length": 0,
    "bad_words_ids": [],
    "sequence_bias": {},
    "forced_eos_token_id": None,
    "token_healing": False,
    "num_return_sequences": 4,
    "max_length": 20,
    "use_cache": True,
}


def test_what_would_change_an_answer_and_cant_be_honoured_is_named() -> None:
    assert not Layers().with_generation_config(NEUTRAL, FILE).resolve().warnings
    mapping = {"typical_p": 0.9, "num_beams": 4, "bad_words_ids": [[5]], "forced_bos_token_id": 0}
    (warning,) = Layers().with_generation_config(mapping, FILE).resolve().warnings
    assert str(FILE) in warning and all(name in warning for name in mapping)


@pytest.mark.parametrize(
    ("layers", "context"),
    [
        (given(), 0),
        (Layers(flags=layer("--x", {"generate.repetition_penalty": 1.2})), 20),
        (Layers(toml=layer("a.toml:1", {"generate.repetition_context": 5})), 5),
        (
            Layers(
                toml=layer("a.toml:1", {"generate.repetition_context": 5}),
                flags=layer("--x", {"generate.repetition_penalty": 1.2}),
            ),
            5,
        ),
    ],
)
def test_the_window_of_a_model_s_own_penalty_goes_with_it(layers: Layers, context: int) -> None:
    resolved = layers.with_generation_config({"repetition_penalty": 1.05}, FILE).resolve()
    assert resolved.generate.repetition_context == context


@pytest.mark.parametrize(
    "mapping",
    [
        {"temperature": "0.6"},
        {"min_new_tokens": -1},
        {"stop_strings": [5]},
        {"temperature": float("nan")},
        {"temperature": True},
        {"top_p": 0},
        {"top_k": 1.5},
        {"max_new_tokens": 0},
        {"do_sample": "no"},
        {"do_sample": 0},
    ],
    ids=str,
)
def test_wrong_values_in_generation_config_name_the_file(mapping: dict[str, Any]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        Layers().with_generation_config(mapping, FILE)
    assert caught.value.where == str(FILE)
    assert next(iter(mapping)) in caught.value.what


def test_the_generation_config_takes_its_place_below_the_toml_file() -> None:
    layers = given(toml=0.1).with_generation_config({"temperature": 0.9, "top_k": 7}, FILE)
    resolved = layers.resolve()
    assert (resolved.generate.temperature, resolved.generate.top_k) == (0.1, 7)


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        ({"model.source": "Qwen/Qwen3-8B", "convert.quantize": True}, "mlx_models/Qwen3-8B-4bit"),
        ({"model.source": "Qwen/Qwen3-8B"}, "mlx_models/Qwen3-8B-bfloat16"),
        ({"model.source": "/a/b/", "model.name": "c"}, "mlx_models/c-bfloat16"),
        ({"model.source": "/a/b/"}, "mlx_models/b-bfloat16"),
    ],
)
def test_default_folder(settings: dict[str, Any], folder: str) -> None:
    resolved = Layers(flags=layer("flag", settings)).resolve()
    assert resolved.default_folder("bfloat16") == Path(folder)


@pytest.mark.parametrize("source", [None, "/", "..", "a/..", "a/b\x1b"])
def test_no_default_folder_without_a_plain_name(source: str | None) -> None:
    settings = {} if source is None else {"model.source": source}
    with pytest.raises(ConfigError):
        Layers(flags=layer("flag", settings)).resolve().default_folder("float16")


def test_show_is_toml_that_says_the_same_again(tmp_path: Path) -> None:
    everything: dict[str, Any] = {
        "model.name": "n",
        "model.source": 'a"\\\n\t\u202e🚀',
        "model.path": "/tmp/x y",
        "convert.quantize": True,
        "convert.bits": 3,
        "convert.max_shard_size": "1GiB",
        "convert.layers": [
            {"pattern": "*.v_proj", "bits": 6},
            {"pattern": "lm_head", "keep": True},
        ],
        "tokenizer.eos_tokens": ["<|im_end|>", "\x7f"],
        "generate.temperature": 1e-6,
        "generate.stop": [],
        "generate.stop_token": ["7", 7, "<end>"],
        "generate.logit_bias": {"8": 1, "5": -1.5},
        "generate.seed": 2**64 - 1,
        "memory.kv_bits": 8,
    }
    resolved = Layers(flags=layer("x\ny # \x1b", everything)).resolve()
    text = resolved.show()
    tomli.loads(text)
    file = tmp_path / "shown.toml"
    file.write_text(text, encoding="utf-8")
    again = Layers(toml=load_toml(str(file))).resolve()
    for name in TABLES:
        assert getattr(again, name) == getattr(resolved, name)
    assert all(line.isprintable() for line in text.splitlines())


def test_show_names_every_key_and_its_origin() -> None:
    toml = layer("a.toml:7", {"generate.top_k": 9})
    lines = Layers(toml=toml).resolve().show().splitlines()
    assert "top_k = 9  # a.toml:7" in lines
    assert "top_p = 0.95  # default" in lines
    assert "# seed is not set" in lines
    shown = {line.removeprefix("# ").split(" ")[0] for line in lines if line and line[0] != "["}
    assert shown == {key.split(".")[1] for key in KEYS}


def test_show_writes_rules_with_only_what_they_say() -> None:
    rules = layer("x", {"convert.layers": [LayerRule("a", bits=6), LayerRule("b", keep=True)]})
    text = Layers(flags=rules).resolve().show()
    assert 'layers = [{ pattern = "a", bits = 6 }, { pattern = "b", keep = true }]  # x' in text


def test_what_is_resolved_is_frozen() -> None:
    resolved = Layers().resolve()
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolved.model = resolved.model  # type: ignore[misc]
