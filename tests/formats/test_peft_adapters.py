"""PEFT's adapters: beside the weights and fused into them, they give the merged model's logits."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from checkpoint.architecture import explicit
from convert.cli import main
from inference.device import place
from inference.load import load, open_folder
from tests.architectures_table import TABLE, logits, sample_ids
from tests.factories_adapters import ALPHA, RANK, SCALE, factors, write_peft
from tests.factories_models import write_tokenizer
from tests.meaning_in_process import meaning_in_process

IDS = sample_ids()
CLOSE = 1e-3  # of the largest logit; GPT-NeoX's GELU is mlx-lm's approximation
BY_HAND = "convert the Hugging Face checkpoint with --fuse-adapter"


@dataclass(frozen=True)
class Case:
    """Which tensors of an architecture are adapted, and how.

    Attributes:
        name: Of the architecture.
        tensors: Those that this pattern finds.
        config: Of the adapter.
        beside: How many parameters are adapted beside the weight, of the folder as it is.
        from_mlx: Whether an MLX folder takes the adapter too.
        dora: Whether it has magnitudes.
        prefix: What the adapter's names have before the tensors', or lack.
    """

    name: str
    tensors: str
    beside: int
    config: dict[str, Any] = field(default_factory=dict)
    from_mlx: bool = True
    dora: bool = False
    prefix: str = ""


CASES = {
    "llama": Case("llama-biased", r"\.(q_proj|down_proj)\.weight", 6),
    "rslora": Case(
        "llama",
        r"\.(v_proj|up_proj)\.weight",
        6,
        {
            "use_rslora": True,
            "rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 3},
            "alpha_pattern": {r"^model\.layers\.0\.mlp\.up_proj": 9},
        },
    ),
    "dora": Case("llama-biased", r"\.(q_proj|down_proj)\.weight", 6, dora=True),
    "head": Case("mistral", r"^lm_head\.weight", 1),
    "fused projections": Case("phi3", r"\.(qkv_proj|gate_up_proj)\.weight", 6),
    "[in, out]": Case("gpt2", r"\.(c_attn|c_proj)\.weight", 6, {"fan_in_fan_out": True}),
    "renamed": Case("gpt-neox", r"\.(query_key_value|dense)\.weight", 6),
    "of the inner model": Case("qwen3", r"\.o_proj\.weight", 3, prefix="-model."),
    "experts": Case("mixtral", r"\.experts\.[02]\.w[12]\.weight|q_proj", 3, from_mlx=False),
    "parted": Case("deepseek-v3", r"\.(kv_b_proj|o_proj)\.weight", 3, from_mlx=False),
}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(explicit, "transformers_meaning", meaning_in_process)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with mx.stream(mx.cpu):
        yield


def ours(folder: Path, adapter: Path | None = None, **how: Any) -> np.ndarray:
    loaded = load(open_folder(folder, adapter=adapter, **how), place("cpu", "float32"))
    return np.array(loaded.model(mx.array([IDS]))[0])


def error(found: np.ndarray, expected: np.ndarray) -> float:
    columns = expected.shape[1]
    return float(np.abs(found[:, :columns] - expected).max() / np.abs(expected).max())


def own_values(case: Case, module: str) -> tuple[int, float]:
    """Rank and scale of a module, worked out by hand from the case's patterns."""
    if case.name != "llama":
        return RANK, SCALE
    rank = 2 if module.endswith("v_proj") else 3 if "layers.1." in module else RANK
    alpha = 9 if "layers.0.mlp" in module else ALPHA
    return rank, alpha / rank**0.5


def adapted(case: Case, source: Path, folder: Path) -> dict[str, np.ndarray]:
    """Write the adapter; give the merged tensors."""
    tensors, made = load_file(source / "model.safetensors"), {}
    for seed, name in enumerate(sorted(tensors)):
        if not re.search(case.tensors, name):
            continue
        module = name.removesuffix(".weight")
        rank, scale = own_values(case, module)
        weight = tensors[name]
        turned = bool(case.config.get("fan_in_fan_out"))
        a, b = factors(weight.T.shape if turned else weight.shape, seed, rank)
        module = module.removeprefix(case.prefix[1:]) if case.prefix else module
        made[f"{module}.lora_A.weight"], made[f"{module}.lora_B.weight"] = a, b
        delta = scale * (b @ a)
        merged = weight + (delta.T if turned else delta)
        if case.dora:
            length = np.random.default_rng(seed).uniform(0.5, 2, len(weight)).astype(np.float32)
            made[f"{module}.lora_magnitude_vector"] = length
            merged *= (length / np.linalg.norm(merged, axis=1))[:, None]
        tensors[name] = merged
    write_peft(folder, made, use_dora=case.dora, **case.config)
    return tensors


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_with_an_adapter_computes_what_the_merged_one_does(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, merged, adapter = (tmp_path / name for name in ("source", "merged", "adapter"))
    TABLE[case.name].build().save_pretrained(source)
    write_tokenizer(source)
    shutil.copytree(source, merged)
    tensors = adapted(case, source, adapter)
    save_file(tensors, merged / "model.safetensors", {"format": "pt"})
    expected = logits(transformers.AutoModelForCausalLM.from_pretrained(merged).eval(), IDS)

    opened = open_folder(source, adapter=adapter)
    assert len(opened.updates) == case.beside
    assert error(ours(source, adapter), expected) < CLOSE
    assert error(ours(source), expected) > 20 * CLOSE

    fused = ["--fuse-adapter", str(adapter), "--quiet"]
    out, mlx = str(tmp_path / "fused"), str(tmp_path / "mlx")
    assert main(["--hf-path", str(source), "--mlx-path", out, *fused]) == 0
    assert error(ours(Path(out)), expected) < CLOSE

    assert main(["--hf-path", str(source), "--mlx-path", mlx, "--quiet"]) == 0
    again = ["--hf-path", mlx, "--mlx-path", str(tmp_path / "again"), *fused]
    if case.from_mlx:
        assert error(ours(Path(mlx), adapter), expected) < CLOSE
        assert main(again) == 0
        assert error(ours(tmp_path / "again"), expected) < CLOSE
    else:
        capfd.readouterr()
        assert main(again) == 1
        assert BY_HAND in capfd.readouterr().err


def test_an_embedding_is_adapted_too(tmp_path: Path) -> None:
    source, merged = tmp_path / "source", tmp_path / "merged"
    TABLE["mistral"].build().save_pretrained(source)
    write_tokenizer(source)
    shutil.copytree(source, merged)
    tensors = load_file(source / "model.safetensors")
    name = "model.embed_tokens"
    a, b = factors(tensors[f"{name}.weight"].T.shape, 0)
    pair = {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
    adapter = write_peft(tmp_path / "adapter", pair)
    tensors[f"{name}.weight"] += SCALE * (b @ a).T
    save_file(tensors, merged / "model.safetensors", {"format": "pt"})
    expected = logits(transformers.AutoModelForCausalLM.from_pretrained(merged).eval(), IDS)
    assert error(ours(source, adapter), expected) < CLOSE
    assert error(ours(source), expected) > 20 * CLOSE
