"""Mixed bits end to end: stock mlx-lm loads them, a text measures them, a kill changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate
from mlx_lm.utils import load, load_model

from checkpoint.architecture.mapping import map_model
from checkpoint.recognise import Choices, open_source
from configs.quantization import ConvertTable
from convert import blocks
from convert.cli import main as convert
from convert.mixed.fisher import Fisher, windows_of
from convert.mixed.layers import layers_of
from convert.proof.prove import form_in_words, open_written
from convert.quantize import round_to_nearest
from inference.cli import main as infer
from tests.cli.test_convert import receipt_of
from tests.factories_models import tiny_model
from tests.faults.conversion import files_of
from tests.faults.faulty import Interrupting, below_disk

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    words = ["def", "main", "print", "hello", "world", "the", "quick", "brown", "fox", "ferry"]
    path.write_text(" ".join(np.random.default_rng(0).choice(words, 500)), "utf-8")
    return path


def make(source: Path, out: Path, *flags: str) -> int:
    return convert(["--hf-path", str(source), "--mlx-path", str(out), "-q", *flags])


def test_mlx_lm_and_infer_run_it(llama: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert make(llama, out, "--target-size", "230KB", "--method", "rtn") == 0
    assert sum(path.stat().st_size for path in out.glob("*.safetensors")) <= 230_000
    quantization = json.loads((out / "config.json").read_text())["quantization"]
    own = [value for value in quantization.values() if isinstance(value, dict)]
    assert own
    model, tokenizer = load(str(out))
    assert generate(model, tokenizer, "def main", max_tokens=4) is not None
    forms = receipt_of(out)["mixture"]["layers"]
    modules = dict(model.named_modules())
    assert {path: modules[path].bits for path in forms} == {
        path: form["bits"] for path, form in forms.items()
    }
    config, carried = open_written(out)
    bits = {form["bits"] for form in forms.values()}
    told = form_in_words(config, carried.recipes)
    assert told == f"mixed bits, {min(bits)} to {max(bits)}"
    capsys.readouterr()
    assert convert(["--verify", str(out)]) == 0
    assert infer(["--model", str(out), "--prompt", "def", "--max-tokens", "3", "--raw"]) == 0


def test_an_interrupted_one_is_gone_on_with(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20_000)
    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ("--target-bpw", "4", "--method", "rtn", "--max-shard-size", "100KB")
    assert make(llama, whole, *flags) == 0
    with below_disk(Interrupting("pwrite", 100, KeyboardInterrupt())):
        assert make(llama, out, *flags) == 130
    capsys.readouterr()
    assert make(llama, out, *flags) == 0
    assert "resuming" in capsys.readouterr().err
    assert files_of(out) == files_of(whole)


def test_a_text_says_what_counts(llama: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert make(llama, out, "--target-bpw", "4", "--calibrate", str(text)) == 0
    receipt = receipt_of(out)
    assert receipt["bits_per_weight"] <= 4
    assert receipt["mixture"]["measured_on"] == "text.txt"
    assert 0 < receipt["mixture"]["estimated_kl_nats"] < 10
    assert len(receipt["calibration"]["text"]["sha256"]) == 64
    capsys.readouterr()
    flags = ["--quality", str(out), "--text", str(text)]
    assert convert(flags) == 2
    assert "calibrated on" in capsys.readouterr().err


def test_calibrated_packs_what_was_chosen(llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--method", "calibrated", "--calibrate", str(text))
    assert make(llama, out, "--target-bpw", "4", *flags) == 0
    layers = receipt_of(out)["mixture"]["layers"].values()
    assert {layer["mode"] for layer in layers} == {"affine"}
    assert len({layer["group_size"] for layer in layers}) > 1
    load_model(out)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3_moe"])
def test_the_estimate_is_what_layers_lose(kind: str, text: Path, tmp_path: Path) -> None:
    """Each layer alone at 4 bits: KL as it is, beside KL as it was estimated."""
    source = tiny_model(tmp_path / "source", kind, dtype=mx.float32)
    opened = open_source(source, Choices(), None)
    mapped = map_model(opened.config, opened.catalog)
    layers = [
        replace(layer, forms=tuple(form for form in layer.forms if form.bits == 4)[:1])
        for layer in layers_of(mapped.model, ConvertTable())
    ]
    ids = mx.random.randint(0, 320, (12, 32), key=mx.random.key(1))
    found = Fisher(mapped.model, mapped.recipes, layers, lambda *_: None).errors(
        ids, round_to_nearest
    )
    assert found.keys() == {layer.path for layer in layers}
    model, _ = load_model(source)
    exact = _log_probabilities(model, ids)
    ratios = []
    for layer in layers:
        (form,) = layer.forms
        module = dict(model.named_modules())[layer.path]
        before = module.weight
        module.weight = mx.dequantize(
            *mx.quantize(before, form.group_size, form.bits), form.group_size, form.bits
        )
        changed = _log_probabilities(model, ids)
        module.weight = before
        lost = mx.mean(mx.sum(mx.exp(exact) * (exact - changed), -1)).item()
        ratios.append(found[layer.path][0] / float(np.array(lost)))
    assert 0.6 < np.median(ratios) < 1.6
    assert np.all((np.array(ratios) > 0.25) & (np.array(ratios) < 4))


def _log_probabilities(model: Any, ids: mx.array) -> mx.array:
    logits = model(ids)
    return logits - mx.logsumexp(logits, -1, keepdims=True)


def test_windows_are_spread_and_few_where_states_are_large() -> None:
    ids = mx.arange(64)[:, None] * mx.ones((1, 8), mx.int32)
    assert windows_of(ids, 8, 256)[:, 0].tolist() == list(range(2, 64, 4))
    assert windows_of(ids, 1000, 1 << 20).shape[0] == 4
