"""`--context`, `--kv-bits` and `--memory-limit`: limits that hold for every kind of model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.cli import main
from tests.factories_inference import KINDS, write_mlx


def infer(folder: Path, *flags: str) -> int:
    asked = ["--model", str(folder), "--raw", "--prompt", "x" * 20, "--temperature", "0"]
    return main([*asked, "--ignore-eos", "--quiet", "--json", *flags])


@pytest.mark.parametrize("kind", KINDS)
def test_context_is_honoured_by_every_architecture(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_mlx(tmp_path, kind)
    assert infer(folder, "--context", "30", "--max-tokens", "10") == 0
    made = json.loads(capfd.readouterr().out)
    assert (made["usage"]["prompt_tokens"], made["usage"]["completion_tokens"]) == (20, 10)
    # one token more does not fit, and a default gives way
    assert infer(folder, "--context", "30", "--max-tokens", "11") == 2
    told = "20 prompt tokens and max_tokens 11 are beyond the context of 30"
    assert told in capfd.readouterr().err
    assert infer(folder, "--context", "30") == 0
    made = json.loads(capfd.readouterr().out)
    assert made["finish_reason"] == "length" and made["usage"]["completion_tokens"] == 10
    assert infer(folder, "--context", "20") == 2
    assert "are beyond the context of 20; shorten it" in capfd.readouterr().err


def test_learned_positions_have_an_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Beyond the table of positions there is nothing to read, whatever the config says."""
    folder = write_mlx(tmp_path, "gpt2")
    assert infer(folder, "--context", "257") == 2
    assert "--context: 257 tokens are beyond the 256 positions" in capfd.readouterr().err
    assert infer(folder, "--max-tokens", "237") == 2
    assert "beyond the context of 256" in capfd.readouterr().err
    config = json.loads((folder / "config.json").read_text())
    for name in ("max_position_embeddings", "n_ctx"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    assert infer(folder, "--max-tokens", "237") == 2
    assert "beyond the context of 256" in capfd.readouterr().err


def test_flags_of_memory_are_keys_of_memory(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_mlx(tmp_path)
    assert infer(folder, "--memory-limit", "1KB") == 2
    assert "--memory-limit: 1,000 bytes can't hold the weights" in capfd.readouterr().err
    assert infer(folder, "--kv-bits", "5") == 2
    assert "--kv-bits" in capfd.readouterr().err
    assert infer(folder, "--kv-bits", "8", "--max-tokens", "4") == 0
    by_flag = json.loads(capfd.readouterr().out)["text"]
    assert infer(folder, "--set", "memory.kv_bits=8", "--max-tokens", "4") == 0
    assert json.loads(capfd.readouterr().out)["text"] == by_flag


def test_load_statistics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_mlx(tmp_path)
    assert infer(folder, "--max-tokens", "2") == 0
    made = json.loads(capfd.readouterr().out)
    load = made["load"]
    assert load["seconds"] == made["timings"]["load_seconds"] > 0
    size = (folder / "model.safetensors").stat().st_size
    assert 0.9 * size < load["bytes"] < size
    assert load["gb_per_second"] == pytest.approx(load["bytes"] / 1e9 / load["seconds"], rel=1e-2)
    asked = ["--model", str(folder), "--raw", "--prompt", "x", "--max-tokens", "2", "--verbose"]
    assert main(asked) == 0
    err = capfd.readouterr().err
    assert "loaded" in err and "GB/s" in err and "cpu, float32" in err
