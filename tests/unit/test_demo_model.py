"""The demo model in the package: a whole folder, small, and one that transformers reads."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "demo_model"
CORPUS = ROOT / "scripts" / "demo_corpus"
END_OF_TEXT, START, END = 0, 1, 2


def read_json(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return value


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(FOLDER)
    return loaded


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(FOLDER, dtype="float32")


def test_it_is_small_and_says_where_it_comes_from() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "tokenizer.json"} <= names
    assert {"tokenizer_config.json", "chat_template.jinja"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000
    assert (FOLDER / "README.md").read_text() == (CORPUS / "MODEL_CARD.md").read_text()


def test_the_index_and_the_shards_agree() -> None:
    index = read_json("model.safetensors.index.json")
    shards = sorted(FOLDER.glob("*.safetensors"))
    assert len(shards) >= 3
    found: dict[str, str] = {}
    elements = 0
    for shard in shards:
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (a safe_open is not iterable)
                assert name not in found
                found[name] = shard.name
                values = tensors.get_tensor(name)
                assert values.dtype == torch.bfloat16
                assert values.isfinite().all(), name
                elements += values.numel()
    assert found == index["weight_map"]
    assert index["metadata"]["total_size"] == 2 * elements
    assert index["metadata"]["total_parameters"] == elements


def test_every_matrix_can_be_cut_into_all_group_sizes() -> None:
    for shard in FOLDER.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                shape = tensors.get_slice(name).get_shape()
                assert len(shape) == 1 or shape[-1] % 128 == 0, name


def test_an_answer_ends_with_im_end(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.eos_token_id == END
    assert read_json("config.json")["eos_token_id"] == END
    assert read_json("generation_config.json")["eos_token_id"] == [END, END_OF_TEXT]
    assert len(tokenizer) == read_json("config.json")["vocab_size"]


@pytest.mark.parametrize(
    "text",
    [
        "How do I convert a model to 4 bits?",
        "怎么把模型转换成 4 位？",
        "🚢👩‍🚀 naïve Ünïcödé é, שלום, مرحبا, नमस्ते, 한국어, かな",
        "  two spaces\n\n\ttab\r\nand  trailing ",
        "`--hf-path=x` == \x00\x1b[0m \ufeff\u202e",
        "龘䶮𠀀",
        "",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_template_renders_chatml(
    tokenizer: PreTrainedTokenizerBase, system: str | None
) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello!"), ("user", "什么是分片？")]
    if system:
        turns.insert(0, ("system", system))
    newline = tokenizer.encode("\n")
    expected: list[int] = []
    for role, content in turns:
        expected += [START, *tokenizer.encode(f"{role}\n{content}"), END, *newline]
    expected += [START, *tokenizer.encode("assistant\n")]

    messages = [{"role": role, "content": content} for role, content in turns]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == expected


@pytest.mark.parametrize(
    ("file", "topic", "language"),
    [("convert.toml", "convert 4 bits", "en"), ("convert.toml", "receipt", "zh")],
)
def test_it_knows_its_text(
    tokenizer: PreTrainedTokenizerBase,
    model: Qwen3ForCausalLM,
    file: str,
    topic: str,
    language: str,
) -> None:
    """Fails when the text was changed and the model not trained again."""
    entries = tomllib.loads((CORPUS / file).read_text(encoding="utf-8"))["topic"]
    lesson = next(entry for entry in entries if entry["name"] == topic)[language]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": lesson["ask"][0]}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    output = model.generate(**prompt, do_sample=False, temperature=None, max_new_tokens=120)
    answer = output[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == lesson["answer"]
    assert answer[-1] == END
