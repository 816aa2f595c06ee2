"""Tiny models of many architectures: transformers saves them, we convert, mlx-lm computes.

The logits of a converted folder, as stock mlx-lm loads it, are held against those of
transformers in float32, at once and token by token through mlx-lm's own cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
import transformers
from mlx_lm.models.cache import make_prompt_cache

from checkpoint.architecture import explicit
from checkpoint.architecture.config_values import untagged
from checkpoint.architecture.rotations import tune_rotations
from convert.cli import main
from tests.architectures_table import (
    ROPE,
    TABLE,
    UNTIED,
    Tiny,
    logits,
    longrope,
    sample_ids,
)
from tests.factories_models import write_tokenizer
from tests.meaning_in_process import meaning_in_process

TOLERANCE = 1e-3  # of the largest logit
IDS = sample_ids()
CACHED = 25  # positions read at once before the rest is read one by one


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(explicit, "transformers_meaning", meaning_in_process)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with mx.stream(mx.cpu):
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(model: Any, folder: Path, tokenizer: dict[str, bytes], **how: Any) -> Path:
    """As transformers saves it, in several shards, with a tokenizer beside."""
    model.save_pretrained(folder, max_shard_size="100KB", **how)
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)
    return folder


def converted(source: Path, out: Path) -> Any:
    """Convert with our command, load with stock mlx-lm."""
    assert main(["--hf-path", str(source), "--mlx-path", str(out), "--quiet"]) == 0
    model, _ = mlx_lm.utils.load_model(out)
    return model


def error(found: mx.array, expected: Any) -> float:
    """The largest difference, as a fraction of the largest logit."""
    array = np.array(found.astype(mx.float32))[:, : expected.shape[1]]
    return float(np.abs(array - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", TABLE)
def test_converted_model_computes_what_transformers_does(
    name: str, tmp_path: Path, tokenizer: dict[str, bytes]
) -> None:
    original = TABLE[name].build()
    expected = logits(original, IDS)
    model = converted(saved(original, tmp_path / "source", tokenizer), tmp_path / "out")

    assert error(model(mx.array([IDS]))[0], expected) < TOLERANCE
    cache = make_prompt_cache(model)
    steps = [model(mx.array([IDS[:CACHED]]), cache=cache)[0]]
    steps += [model(mx.array([[token]]), cache=cache)[0] for token in IDS[CACHED:]]
    assert error(mx.concatenate(steps), expected) < TOLERANCE

    # and transformers reads our config.json as it read the source's
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    reread = type(original.config)(**untagged(config))
    reread._attn_implementation = "eager"
    again = transformers.AutoModelForCausalLM.from_config(reread).eval().float()
    again.load_state_dict(original.state_dict())
    np.testing.assert_allclose(logits(again, IDS), expected, rtol=0, atol=1e-5)


# What stock mlx-lm can't be told: these convert with a note, and are exact once tuned.
TUNED = {
    "longrope, a short text": Tiny("Llama", {"rope_parameters": longrope(8, context=64)}),
    "yarn, not truncated": Tiny("GptOss", {"head_dim": 64, "num_local_experts": 4}),
}


@pytest.mark.parametrize("name", TUNED)
def test_tuned_rotations_are_exact(name: str, tmp_path: Path, tokenizer: dict[str, bytes]) -> None:
    original = TUNED[name].build()
    expected = logits(original, IDS)
    model = converted(saved(original, tmp_path / "source", tokenizer), tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert "rope" in json.dumps(receipt["notes"])
    assert error(model(mx.array([IDS]))[0], expected) > TOLERANCE

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tune_rotations(model, config, len(IDS))
    assert error(model(mx.array([IDS]))[0], expected) < TOLERANCE


HELD = (
    "afmoe deepseek-v2 deepseek-v3 dots1 glm4-moe gpt-oss granite-moe laguna lfm2-moe "
    "minimax-m2 mixtral olmoe phimoe qwen2-moe qwen3-moe qwen3-next"
)


@pytest.mark.parametrize("name", HELD.split())
def test_experts_saved_as_transformers_holds_them(
    name: str, tmp_path: Path, tokenizer: dict[str, bytes]
) -> None:
    original = TABLE[name].build()
    source = saved(original, tmp_path / "source", tokenizer, save_original_format=False)
    model = converted(source, tmp_path / "out")
    assert error(model(mx.array([IDS]))[0], logits(original, IDS)) < TOLERANCE


def test_stock_mlx_lm_misreads_the_source(tmp_path: Path, tokenizer: dict[str, bytes]) -> None:
    """Without this the tests above could pass on models that depend on nothing."""
    original = Tiny("Llama", {"rope_parameters": ROPE, **UNTIED}).build()
    source = saved(original, tmp_path / "source", tokenizer)
    model, _ = mlx_lm.utils.load_model(source)
    assert error(model(mx.array([IDS]))[0], logits(original, IDS)) > 100 * TOLERANCE
