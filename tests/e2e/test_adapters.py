"""An adapter trained by mlx_lm.lora on a folder that we converted, then used and fused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from mlx_lm.tuner.utils import load_adapters

from convert.cli import main as convert
from inference.cli import main as infer
from inference.device import place
from inference.load import load, open_folder
from tests.factories_models import tiny_model

TEXT = "the quick brown fox jumps"
IDS = [5, 3, 200, 7, 11, 250, 1, 90]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder that was converted, and the adapter."""
    root = tmp_path_factory.mktemp("training")
    source = tiny_model(root / "source", "llama", dtype=mx.float32)
    folder, adapter, data = root / "mlx", root / "adapter", root / "data"
    assert convert(["--hf-path", str(source), "--mlx-path", str(folder), "--quiet"]) == 0
    data.mkdir()
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text(4 * (json.dumps({"text": TEXT}) + "\n"))
    flags = {
        "--model": folder,
        "--data": data,
        "--adapter-path": adapter,
        "--iters": 12,
        "--batch-size": 2,
        "--num-layers": 2,
        "--learning-rate": 0.01,
        "--val-batches": 1,
        "--max-seq-length": 32,
    }
    given = [str(word) for pair in flags.items() for word in pair]
    command = [sys.executable, "-m", "mlx_lm", "lora", "--train", *given]
    subprocess.run(command, check=True, capture_output=True)
    return folder, adapter


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):
        yield


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert infer([*flags, "--json", "--quiet", "--device", "cpu"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_computes_what_mlx_lm_does_and_has_learned(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, adapter = trained
    model, _ = mlx_lm.utils.load_model(folder)
    load_adapters(model, str(adapter)).eval()
    expected = np.array(model(mx.array([IDS])))
    opened = open_folder(folder, adapter=adapter)
    found = np.array(load(opened, place("cpu", "float32")).model(mx.array([IDS])))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())

    score = ["--model", str(folder), "--score", "--prompt", TEXT]
    before, after = run(capsys, *score), run(capsys, *score, "--adapter", str(adapter))
    assert after["total_bits"] < before["total_bits"] / 2
    assert after["adapter"] == str(adapter)
    assert "adapter" not in before


def test_fused_it_scores_the_same(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, adapter = trained
    out = folder.parent / "fused"
    command = ["--hf-path", str(folder.parent / "source"), "--mlx-path", str(out), "--quiet"]
    assert convert([*command, "--fuse-adapter", str(adapter)]) == 0
    score = ["--score", "--prompt", TEXT]
    beside = run(capsys, "--model", str(folder), "--adapter", str(adapter), *score)
    found = run(capsys, "--model", str(out), *score)
    assert found["total_bits"] == pytest.approx(beside["total_bits"], rel=1e-4)


def test_a_checkpoint_as_it_is_takes_it(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, adapter = trained
    flags = ["--adapter", str(adapter), "--prompt", TEXT, "--raw", "--temperature", "0"]
    flags += ["--max-tokens", "8"]
    source = str(folder.parent / "source")
    answers = [run(capsys, "--model", name, *flags)["text"] for name in (source, str(folder))]
    assert answers[0] == answers[1]
    by_key = ["--set", f"model.adapter={adapter}", *flags[2:]]
    assert run(capsys, "--model", source, *by_key)["text"] == answers[0]
