"""The schema: what each key takes, what it refuses, and which values go together."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from configs.checks import InvalidValue, dotted, shown
from configs.keys import KEYS, MODES
from configs.schema import TABLES, ConvertTable, GenerateTable, LayerRule, MemoryTable

HUGE = 10**400

ALLOWED: list[tuple[str, Any, Any]] = [
    ("model.name", "Qwen3-8B", "Qwen3-8B"),
    ("model.source", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
    ("model.path", "mlx_models/x", Path("mlx_models/x")),
    ("convert.quantize", True, True),
    ("convert.bits", 2, 2),
    ("convert.bits", 8, 8),
    ("convert.max_shard_size", "5GB", 5 * 10**9),
    ("convert.max_shard_size", "500 mb", 500 * 10**6),
    ("convert.max_shard_size", "4GiB", 4 * 2**30),
    ("convert.max_shard_size", "1.5kB", 1500),
    ("convert.max_shard_size", "123", 123),
    ("convert.max_shard_size", "7B", 7),
    ("convert.max_shard_size", 123, 123),
    ("tokenizer.eos_tokens", ["<|end|>", "</s>"], ("<|end|>", "</s>")),
    ("generate.temperature", 0, 0.0),
    ("generate.temperature", 1.5, 1.5),
    ("generate.top_p", 1, 1.0),
    ("generate.top_k", 0, 0),
    ("generate.min_p", 1, 1.0),
    ("generate.repetition_penalty", 1e-9, 1e-9),
    ("generate.max_tokens", 1, 1),
    ("generate.stop", "###", ("###",)),
    ("generate.stop", [], ()),
    ("generate.repetition_context", 0, 0),
    ("generate.logit_bias", {"7": 1, "03": -2.5}, ((3, -2.5), (7, 1.0))),
    ("generate.logit_bias", [[7, 1], [3, 2], [7, 5]], ((3, 2.0), (7, 5.0))),
    ("generate.logit_bias", {}, ()),
    ("generate.stop_token", "<end>", ("<end>",)),
    ("generate.stop_token", 5, (5,)),
    ("generate.stop_token", ["7", 7], ("7", 7)),
    ("generate.seed", 2**64 - 1, 2**64 - 1),
    ("generate.thinking", "fold", "fold"),
    ("generate.thinking_budget", 0, 0),
    ("generate.tools", [{"é": 1}], '[{"é": 1}]'),
    ("generate.json_schema", '{"type":"null"}', '{"type": "null"}'),
    ("generate.json_schema", {"a": [1.5, None]}, '{"a": [1.5, null]}'),
    ("generate.choice", ["a", "b"], ("a", "b")),
    ("generate.system", "", ""),
    ("memory.kv_bits", 4, 4),
    ("memory.limit", "12GB", 12 * 10**9),
    ("memory.context", 1, 1),
]

REFUSED: list[tuple[str, Any]] = [
    ("model.name", ""),
    ("model.name", "a/b"),
    ("model.name", ".."),
    ("model.name", "a\x1bb"),
    ("model.name", "x" * 201),
    ("model.source", ""),
    ("model.source", 5),
    ("model.source", "a\ud800b"),
    ("model.path", ""),
    ("model.path", "a\0b"),
    ("convert.quantize", 1),
    ("convert.quantize", "yes"),
    ("convert.bits", 7),
    ("convert.bits", 4.0),
    ("convert.bits", True),
    ("convert.bits", "4"),
    ("convert.group_size", 0),
    ("convert.group_size", -64),
    ("convert.mode", "int4"),
    ("convert.method", "best"),
    ("convert.dtype", "float64"),
    ("convert.max_shard_size", 0),
    ("convert.max_shard_size", "0GB"),
    ("convert.max_shard_size", "-1GB"),
    ("convert.max_shard_size", "5XB"),
    ("convert.max_shard_size", "5 iB"),
    ("convert.max_shard_size", "GB"),
    ("convert.max_shard_size", "9" * 19 + "TB"),
    ("convert.max_shard_size", "9" * 5000),
    ("convert.max_shard_size", 5.5),
    ("convert.layers", "model.*"),
    ("tokenizer.eos_tokens", [1]),
    ("tokenizer.eos_tokens", [""]),
    ("tokenizer.trust_remote_code", "false"),
    ("generate.temperature", -0.1),
    ("generate.temperature", math.nan),
    ("generate.temperature", math.inf),
    ("generate.temperature", HUGE),
    ("generate.temperature", False),
    ("generate.temperature", "hot"),
    ("generate.top_p", 0),
    ("generate.top_p", 1.1),
    ("generate.top_p", math.nan),
    ("generate.top_k", -1),
    ("generate.top_k", 1.0),
    ("generate.top_k", 2**31),
    ("generate.min_p", -0.1),
    ("generate.min_p", 1.1),
    ("generate.repetition_penalty", 0),
    ("generate.repetition_penalty", math.inf),
    ("generate.repetition_context", -1),
    ("generate.temperature", 100.5),
    ("generate.xtc_threshold", 0.51),
    ("generate.presence_penalty", 100.5),
    ("generate.logit_bias", {"x": 1}),
    ("generate.logit_bias", {"1": "x"}),
    ("generate.logit_bias", {"1": 101}),
    ("generate.logit_bias", {"1": HUGE}),
    ("generate.logit_bias", {"9" * 5000: 1}),
    ("generate.logit_bias", {str(2**31): 1}),
    ("generate.logit_bias", [1, 2]),
    ("generate.logit_bias", [[1, 2, 3]]),
    ("generate.logit_bias", [[True, 2]]),
    ("generate.logit_bias", 7),
    ("generate.min_tokens", -1),
    ("generate.thinking", "loud"),
    ("generate.thinking_budget", -1),
    ("generate.tools", "{}"),
    ("generate.tools", {}),
    ("generate.json_schema", "[]"),
    ("generate.json_schema", 1),
    ("generate.json_schema", "{"),
    ("generate.json_schema", {"a": math.nan}),
    ("generate.regex", ""),
    ("generate.choice", [""]),
    ("generate.stop_token", [""]),
    ("generate.stop_token", [True]),
    ("generate.stop_token", [-1]),
    ("generate.stop_token", 2**31),
    ("generate.stop_token", ["\ud800"]),
    ("generate.ignore_eos", 1),
    ("generate.logprobs", 21),
    ("generate.n", 0),
    ("generate.n", 129),
    ("generate.max_tokens", 0),
    ("generate.max_tokens", -5),
    ("generate.max_tokens", True),
    ("generate.stop", ["a", ""]),
    ("generate.stop", {"a": 1}),
    ("generate.seed", -1),
    ("generate.seed", 2**64),
    ("generate.system", ["x"]),
    ("memory.context", 0),
    ("memory.kv_bits", 6),
    ("memory.limit", "lots"),
]


@pytest.mark.parametrize(("key", "value", "kept"), ALLOWED)
def test_allowed_values_are_kept_in_one_form(key: str, value: Any, kept: Any) -> None:
    found = KEYS[key].check(value)
    assert found == kept
    assert type(found) is type(kept) or isinstance(kept, Path)


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=str)
def test_refused_values_say_what_is_allowed(key: str, value: Any) -> None:
    with pytest.raises(InvalidValue) as caught:
        KEYS[key].check(value)
    assert caught.value.mend
    assert len(str(caught.value)) < 300


def test_every_field_has_a_check_and_every_default_passes_it() -> None:
    for name, table in TABLES.items():
        assert [field.name for field in dataclasses.fields(table)] == list(table.checks), name  # type: ignore[arg-type]
        table()


def test_tables_are_frozen_and_normalise() -> None:
    table = GenerateTable(temperature=1, stop=["a"])  # type: ignore[arg-type]
    assert table.stop == ("a",)
    assert isinstance(table.temperature, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.temperature = 2.0  # type: ignore[misc]


def test_a_table_names_the_field_that_is_wrong() -> None:
    with pytest.raises(InvalidValue) as caught:
        GenerateTable(top_p=0.0)
    assert caught.value.path == ("top_p",)


def test_none_is_allowed_only_as_a_default() -> None:
    assert MemoryTable(context=None).context is None
    with pytest.raises(InvalidValue):
        GenerateTable(temperature=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"),
    [("affine", bits, group_size) for bits in (2, 3, 4, 5, 6, 8) for group_size in (32, 64, 128)]
    + [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)],
)
def test_modes_take_their_bits_and_group_sizes(mode: str, bits: int, group_size: int) -> None:
    table = ConvertTable(mode=mode, bits=bits, group_size=group_size)
    assert (table.bits, table.group_size) == (bits, group_size)


@pytest.mark.parametrize(
    ("mode", "bits", "group_size", "fault", "takes"),
    [
        ("affine", 4, 16, "group_size", "32, 64, 128"),
        ("mxfp4", 8, 32, "bits", "4"),
        ("mxfp4", 4, 64, "group_size", "32"),
        ("nvfp4", 4, 32, "group_size", "16"),
        ("mxfp8", 4, 32, "bits", "8"),
    ],
)
def test_modes_refuse_others(mode: str, bits: int, group_size: int, fault: str, takes: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        ConvertTable(mode=mode, bits=bits, group_size=group_size)
    assert caught.value.path == (fault,)
    assert caught.value.mend == f"{mode} takes {takes}"


def test_modes_defaults() -> None:
    found = {name: (mode.bits[0], mode.group_sizes[0]) for name, mode in MODES.items()}
    assert found == {"affine": (4, 64), "mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}


RULES = (
    LayerRule("*.down_proj", bits=6),
    LayerRule("model.layers.0.*", keep=True),
    LayerRule("model.layers.1.*", mode="mxfp8"),
    LayerRule("lm_head", group_size=32),
)


@pytest.mark.parametrize(
    ("module", "choice"),
    [
        ("model.layers.5.mlp.down_proj", (False, 6, 64, "affine")),
        ("model.layers.0.mlp.down_proj", (False, 6, 64, "affine")),  # the first rule decides
        ("model.layers.0.mlp.up_proj", (True, 4, 64, "affine")),
        ("model.layers.1.mlp.up_proj", (False, 8, 32, "mxfp8")),
        ("lm_head", (False, 4, 32, "affine")),
        ("model.lm_head", None),
        ("Lm_Head", None),
    ],
)
def test_the_first_rule_that_matches_decides(module: str, choice: tuple[Any, ...] | None) -> None:
    assert ConvertTable(layers=RULES).rule_for(module) == choice


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        (5, (0,)),
        ({"bits": 4}, (0,)),
        ({"pattern": "a"}, (0,)),
        ({"pattern": "a", "bitz": 4}, (0, "bitz")),
        ({"pattern": "a", "bits": 7}, (0, "bits")),
        ({"pattern": "", "bits": 4}, (0, "pattern")),
        ({"pattern": "a", "bits": 4, "keep": True}, (0, "bits")),
        ({"pattern": "a", "keep": "yes"}, (0, "keep")),
    ],
)
def test_rules_that_are_wrong_are_refused_where_they_are(rule: Any, path: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidValue) as caught:
        KEYS["convert.layers"].check([rule])
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("mode", "rule", "path"),
    [
        ("affine", LayerRule("a", mode="nvfp4", bits=8), ("layers", 0, "bits")),
        ("mxfp4", LayerRule("a", bits=6), ("layers", 0, "bits")),
        ("affine", LayerRule("a", group_size=16), ("layers", 0, "group_size")),
    ],
)
def test_rules_must_go_with_their_mode(mode: str, rule: LayerRule, path: tuple[Any, ...]) -> None:
    defaults = MODES[mode]
    with pytest.raises(InvalidValue) as caught:
        ConvertTable(
            mode=mode, bits=defaults.bits[0], group_size=defaults.group_sizes[0], layers=(rule,)
        )
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "true"),
        ("x", '"x"'),
        ({}, "a table"),
        ([1], "a list"),
        (HUGE, "so large a number"),
        (0.5, "0.5"),
    ],
)
def test_values_are_shown_in_tomls_words(value: object, words: str) -> None:
    assert shown(value) == words


def test_long_values_are_shown_short() -> None:
    assert len(shown("x" * 10_000)) < 70


def test_key_paths_are_shown_as_written() -> None:
    assert dotted(("convert", "layers", 2, "bits")) == "convert.layers[2].bits"
