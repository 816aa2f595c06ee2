"""`--method calibrated`: better than search on text unseen, resumed to the same bytes, refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

from convert.calibration.block import BlockCalibration
from convert.cli import main
from tests.factories_models import TEXT, tiny_model

WORDS = [*TEXT.split(), "river", "ferry", "0", "42", "()", "# note"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(words(450, seed=0), "utf-8")
    return path


def words(count: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "source", "llama", intermediate_size=128)


def flags(source: Path, out: Path, text: Path | None, *more: str) -> list[str]:
    given = ["--hf-path", str(source), "--mlx-path", str(out), "-q", "--bits", "3"]
    calibrated = ["--method", "calibrated", "--calibrate", str(text)] if text else []
    return [*given, "--group-size", "32", *calibrated, *more]


def receipt(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "conversion.json").read_text("utf-8"))
    return found


def log_probabilities(folder: Path, ids: mx.array) -> mx.array:
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    logits = model(ids)
    return logits - mx.logsumexp(logits, -1, keepdims=True)


def test_it_loses_less_than_search(source: Path, text: Path, tmp_path: Path) -> None:
    assert main(flags(source, tmp_path / "calibrated", text)) == 0
    assert main(flags(source, tmp_path / "search", None)) == 0
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    ids = mx.array(tokenizer.encode(words(200, seed=1)).ids[:256]).reshape(4, 64)
    exact = log_probabilities(source, ids)
    lost = {
        name: mx.mean(
            mx.sum(mx.exp(exact) * (exact - log_probabilities(tmp_path / name, ids)), -1)
        ).item()
        for name in ("calibrated", "search")
    }
    assert lost["calibrated"] < 0.8 * lost["search"]
    told = receipt(tmp_path / "calibrated")
    assert told["options"]["method"] == "calibrated"
    entry = told["calibration"]
    assert entry["name"] == "text.txt"
    assert entry["tokens"] >= 256
    assert len(entry["text"]["sha256"]) == 64
    layers = [name for name in entry["layers"] if ".layers." in name]
    assert len(layers) == 14
    assert entry["layers"].keys() - layers == {"lm_head.weight", "model.embed_tokens.weight"}
    ours, theirs = (
        (tmp_path / name / "model.safetensors").stat().st_size for name in ("calibrated", "search")
    )
    assert ours == theirs
    assert main(["--verify", str(tmp_path / "calibrated")]) == 0


def interrupted_at(part: str) -> Callable[..., Any]:
    """A progress bar that is interrupted when a parameter is written."""

    @contextmanager
    def bar(total: int, *, quiet: bool) -> Iterator[Callable[[str, int], None]]:
        def tell(name: str, nbytes: int) -> None:
            if part in name:
                raise KeyboardInterrupt

        yield tell

    return bar


def test_interrupted_it_goes_on(
    source: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(source, tmp_path / "whole", text)) == 0
    ran: list[int] = []
    run = BlockCalibration.run

    def counted(self: BlockCalibration, *given: Any, **named: Any) -> None:
        ran.append(self._block.number)
        run(self, *given, **named)

    monkeypatch.setattr(BlockCalibration, "run", counted)
    # Three interruptions of the same conversion, each where more is done.
    parts = {"layers.0.mlp": [0], "layers.1.self_attn": [0, 1], "lm_head": [1], "": []}
    for part, blocks in parts.items():
        ran.clear()
        capsys.readouterr()
        with monkeypatch.context() as patched:
            if part:
                patched.setattr("convert.progress.progress_bar", interrupted_at(part))
            assert main(flags(source, tmp_path / "out", text)) == (130 if part else 0)
        assert ran == blocks
        assert (tmp_path / "out").exists() == (not part)
    assert "resuming" in capsys.readouterr().err
    for file in (tmp_path / "whole").iterdir():
        if file.name not in ("README.md", "conversion.json"):
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    assert receipt(tmp_path / "out") == receipt(tmp_path / "whole")
    assert not list(tmp_path.glob(".out*"))


def lost(folder: Path, source: Path) -> float:
    """Nats for a token, on text that the calibration has not seen."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    ids = mx.array(tokenizer.encode(words(400, seed=1)).ids[:512]).reshape(8, 64)
    exact = log_probabilities(source, ids)
    apart = mx.exp(exact) * (exact - log_probabilities(folder, ids))
    return float(mx.mean(mx.sum(apart, -1)).item())


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen2"])
def test_experts_and_tied_embeddings(tmp_path: Path, text: Path, kind: str) -> None:
    folder = tiny_model(tmp_path / "source", kind)
    assert main(flags(folder, tmp_path / "out", text)) == 0
    assert main(flags(folder, tmp_path / "search", None)) == 0
    assert lost(tmp_path / "out", folder) < 0.9 * lost(tmp_path / "search", folder)
    layers = receipt(tmp_path / "out")["calibration"]["layers"]
    assert len([name for name in layers if "self_attn" in name]) == 8
    assert all(each["ratio"] is not None for each in layers.values())
    if kind == "qwen3_moe":
        experts = {name: each for name, each in layers.items() if "switch_mlp" in name}
        assert len(experts) == 6
        for each in experts.values():
            assert each["method"] == "calibrated" and each["ratio"] < 1
            assert sum(each["experts"].values()) == 4
    else:
        assert layers["model.embed_tokens.weight"]["method"] == "calibrated"
    assert main(["--verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["-q", "--method", "calibrated"], 2, "needs a text to calibrate on"),
        (["-q", "--calibrate", "text.txt"], 2, "means nothing with method search"),
        (["--calibrate", "text.txt", "--method", "calibrated"], 2, "without --quantize"),
        (
            ["-q", "--method", "calibrated", "--calibrate", "text.txt", "--mode", "mxfp4"],
            2,
            "can't calibrate mode mxfp4",
        ),
        (["-q", "--method", "calibrated", "--calibrate", "short.txt"], 2, "the least to calibrate"),
        (["-q", "--method", "calibrated", "--calibrate", "latin.txt"], 1, "is not UTF-8"),
        (["-q", "--method", "calibrated", "--calibrate", "none.txt"], 1, "none.txt"),
        (
            ["-q", "--method", "calibrated", "--calibrate", "text.txt", "--consume-source"],
            2,
            "needs the whole source",
        ),
    ],
)
def test_what_is_refused(
    llama: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    told: str,
) -> None:
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 2000)
    monkeypatch.chdir(tmp_path)
    assert main(["--hf-path", str(llama), "--mlx-path", "out", *more]) == code
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
def test_tied_and_mixed_models_go_on_too(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tiny_model(tmp_path / "source", kind)
    assert main(flags(folder, tmp_path / "whole", text)) == 0
    for part in ("embed", "layers.1.mlp"):
        with monkeypatch.context() as patched:
            patched.setattr("convert.progress.progress_bar", interrupted_at(part))
            assert main(flags(folder, tmp_path / "out", text)) == 130
    assert main(flags(folder, tmp_path / "out", text)) == 0
    assert receipt(tmp_path / "out") == receipt(tmp_path / "whole")
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
