"""`--calibrate self`: the model writes its text, always the same, and is calibrated on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from convert.calibration import beginnings, own
from convert.cli import main
from inference.tokenizer import load_tokenizer
from tests.e2e.test_calibrated import interrupted_at, log_probabilities, receipt
from tests.factories_models import VOCABULARY, tiny_model

ROWS, WINDOW = 128, 32


@pytest.fixture(autouse=True)
def short_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as fit into a tiny model's rows."""
    monkeypatch.setattr(beginnings, "PROMPTS", ("fox", "the fox"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small(tmp_path / "source", "llama")


def small(folder: Path, kind: str) -> Path:
    return tiny_model(
        folder,
        kind,
        hidden_size=64,
        intermediate_size=64,
        head_dim=16,
        max_position_embeddings=WINDOW,
    )


def flags(source: Path, out: Path, *more: str) -> list[str]:
    given = ["--hf-path", str(source), "--mlx-path", str(out), "-q", "--bits", "3"]
    return [*given, "--group-size", "32", "--method", "calibrated", "--calibrate", "self", *more]


def test_it_loses_less_than_search(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(source, tmp_path / "calibrated")) == 0
    error = capsys.readouterr().err
    about = f"the model writes {ROWS * WINDOW:,} tokens in {ROWS} rows, {ROWS // 2} of them answers"
    assert about in error
    assert "written in" in error
    plain = ["--hf-path", str(source), "--mlx-path", str(tmp_path / "search"), "-q", "--bits", "3"]
    assert main([*plain, "--group-size", "32"]) == 0
    ids = mx.random.randint(0, VOCABULARY, (8, WINDOW), key=mx.random.key(1))
    exact = log_probabilities(source, ids)
    lost = {
        name: mx.mean(
            mx.sum(mx.exp(exact) * (exact - log_probabilities(tmp_path / name, ids)), -1)
        ).item()
        for name in ("calibrated", "search")
    }
    assert lost["calibrated"] < 0.8 * lost["search"]
    entry = receipt(tmp_path / "calibrated")["calibration"]
    assert (entry["name"], entry["tokens"]) == ("self", ROWS * WINDOW)
    told = entry["text"]["written_by_the_model"]
    assert (told["rows"], told["positions"]) == (ROWS, WINDOW)
    assert (told["chats"], told["bits"]) == (ROWS // 2, None)
    assert len(entry["text"]["sketch"]) == 256
    assert main(["--verify", str(tmp_path / "calibrated")]) == 0


def test_interrupted_it_goes_on_and_is_not_measured_on_what_it_wrote(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(source, tmp_path / "whole")) == 0
    with monkeypatch.context() as patched:
        patched.setattr("convert.progress.progress_bar", interrupted_at("layers.1.self_attn"))
        assert main(flags(source, tmp_path / "out")) == 130
    (file,) = tmp_path.glob(".out*/calibration/self.json")
    ids = json.loads(file.read_text())
    assert [len(row) for row in ids] == [WINDOW] * ROWS
    tokenizer = load_tokenizer(source, json.loads((source / "config.json").read_text()))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tokenizer.decode(row) for row in ids), "utf-8")
    capsys.readouterr()
    assert main(flags(source, tmp_path / "out")) == 0
    error = capsys.readouterr().err
    assert "resuming" in error
    assert "the model writes" not in error
    weights = "model.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "out" / weights).read_bytes()
    assert receipt(tmp_path / "out") == receipt(tmp_path / "whole")
    quality = ["--quality", str(tmp_path / "out"), "--reference", str(source)]
    assert main([*quality, "--text", str(text)]) == 2
    assert "the text that the model was calibrated on" in capsys.readouterr().err


def test_where_memory_is_short_fewer_bits_write(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row, layers = 2 * 2 * 256 * 2 * 16 * 4, 2  # of a KV cache: keys and values, float32
    whole = 4 * (2 * VOCABULARY * 64 + layers * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 64))
    most = whole // 2 + 100 * row

    def left(placement: Any, weight_bytes: int, limit: int | None) -> int:
        return most - weight_bytes - 96 * row

    monkeypatch.setattr(own, "kv_budget", left)
    assert main(flags(source, tmp_path / "out")) == 0
    assert "its weights at 8 bits to fit memory" in capsys.readouterr().err
    told = receipt(tmp_path / "out")["calibration"]["text"]["written_by_the_model"]
    assert told["bits"] == 8
    most = 100 * row
    assert main(flags(source, tmp_path / "none")) == 1
    error = capsys.readouterr().err
    assert "does not fit into memory to write, not even at 4 bits" in error
    assert "name a text with --calibrate" in error
    assert not (tmp_path / "none").exists()


def test_a_file_of_that_name_is_a_path(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = flags(source, tmp_path / "out")
    given[given.index("self")] = "./self"
    assert main(given) == 1
    assert "self: " in capsys.readouterr().err
    assert main([*given, "--show-config"]) == 0
    shown = capsys.readouterr().out
    assert 'calibrate = "./self"' in shown
    (tmp_path / "model.toml").write_text('[convert]\nmethod = "calibrated"\ncalibrate = "self"\n')
    assert main(["--config", "model.toml", "--show-config"]) == 0
    assert 'calibrate = "self"' in capsys.readouterr().out


def test_it_is_refused_where_the_source_goes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(source, tmp_path / "out", "--consume-source")) == 2
    assert "needs the whole source" in capsys.readouterr().err
