"""The TOML files in the package: each against the schema, and what the trainer finds in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomli

import configs
from configs.loader import load_toml, shipped
from configs.resolve import Layers

FOLDER = Path(configs.__file__).parent

NAMES = [
    "demo",
    "gemma3_4b",
    "gpt_oss_20b",
    "llama3_2_3b",
    "logics_parsing",
    "mistral_7b",
    "nanochat_d32",
    "nanochat_grpo",
    "phi4_mini",
    "prod",
    "qwen2_5_7b",
    "qwen3_30b_a3b",
    "qwen3_8b",
    "smoke_test",
]

TRAINER: dict[str, dict[str, Any]] = {
    "prod": {
        "learning_rate": 1e-6,
        "batch_size": 1,
        "num_generations": 16,
        "max_train_samples": 2000,
        "max_new_tokens": 256,
        "temperature": 0.7,
    },
    "smoke_test": {
        "max_train_samples": 50,
        "num_generations": 2,
        "max_new_tokens": 32,
        "eval_steps": 5,
    },
    "nanochat_d32": {
        "learning_rate": 3e-6,
        "num_generations": 4,
        "max_new_tokens": 128,
        "temperature": 0.8,
        "kl_coeff": 0.02,
        "quantize_for_rollouts": False,
    },
    "nanochat_grpo": {
        "learning_rate": 5e-6,
        "num_generations": 4,
        "max_new_tokens": 64,
        "temperature": 0.8,
        "kl_coeff": 0.01,
    },
}


def document(name: str) -> dict[str, Any]:
    return tomli.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def test_these_are_shipped() -> None:
    assert shipped() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_describes_a_model_as_the_schema_allows(name: str) -> None:
    resolved = Layers(toml=load_toml(name)).resolve()
    assert resolved.model.source
    assert resolved.model.name
    assert resolved.given("convert.quantize")
    assert resolved.default_folder("bfloat16").name.startswith(resolved.model.name)
    if name != "demo":
        assert re.fullmatch(r"[\w-]+/[\w.-]+", resolved.model.source)
        assert resolved.memory.context
        assert resolved.generate.max_tokens < resolved.memory.context


@pytest.mark.parametrize("name", NAMES)
def test_each_begins_with_two_lines_that_say_what_it_is(name: str) -> None:
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    assert [line[:2] for line in lines[:2]] == ["# ", "# "]
    assert lines[2] == ""
    assert max(len(line) for line in lines) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_the_trainers_table_is_where_it_should_be(name: str) -> None:
    table = document(name).get("mlx_grpo")
    if name not in TRAINER:
        assert table is None
        return
    assert table is not None
    more = {key for key in table if key not in TRAINER[name]}
    assert more == {"model_name", "output_dir"}
    assert {key: table[key] for key in TRAINER[name]} == TRAINER[name]
    for key, value in TRAINER[name].items():
        assert type(table[key]) is type(value)


@pytest.mark.parametrize("name", ["nanochat_d32", "nanochat_grpo"])
def test_the_trainer_reads_the_folder_that_convert_writes(name: str) -> None:
    resolved = Layers(toml=load_toml(name)).resolve()
    assert resolved.convert.dtype
    folder = resolved.default_folder(resolved.convert.dtype)
    assert document(name)["mlx_grpo"]["model_name"] == str(folder)
