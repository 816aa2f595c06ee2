"""`convert --fuse-adapter` together with what else a conversion may be asked for."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import close_session

from checkpoint import transfer
from convert.cli import main
from tests.factories_adapters import factors, write_peft
from tests.factories_models import tiny_model
from tests.hub_server import Answer, point_library_at, serving

REPO = "org/tiny"
MODULES = {f"model.layers.{layer}.mlp.up_proj": (256, 128) for layer in (0, 1)}


def adapter(folder: Path, seed: int = 0) -> str:
    tensors = {}
    for number, (module, shape) in enumerate(MODULES.items()):
        a, b = factors(shape, seed + number)
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    return str(write_peft(folder, tensors))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_source_that_is_consumed_and_another_adapter_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tiny_model(tmp_path / "made", "llama")
    files = bytes_of(made)
    last = sorted(name for name in files if name.endswith(".safetensors"))[-1]
    first, second = adapter(tmp_path / "first"), adapter(tmp_path / "second", seed=7)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transfer, "WAITS", (0.0,))
    command = ["--hf-path", REPO, "-q", "--consume-source", "--mlx-path", "out"]
    with serving() as hub:
        point_library_at(hub, str(tmp_path / "cache"), monkeypatch)
        hub.add(REPO, files)
        hub.faults[last] = [Answer(200, body=files[last]), *[Answer(503)] * 20]
        assert main([*command, "--fuse-adapter", first]) == 1
        hub.faults.clear()
        capsys.readouterr()
        assert main([*command, "--fuse-adapter", second]) == 0
        assert "adapter" in capsys.readouterr().err
        close_session()
    for name, flags in (("whole", ["--fuse-adapter", second]), ("plain", [])):
        assert main(["--hf-path", str(made), "-q", "--mlx-path", name, "--quiet", *flags]) == 0
    file = "model.safetensors"
    found, whole, plain = (mx.load(f"{name}/{file}") for name in ("out", "whole", "plain"))
    assert isinstance(found, dict) and isinstance(whole, dict) and isinstance(plain, dict)
    assert all(mx.array_equal(found[name], whole[name]) for name in whole)
    changed = {name for name in plain if not mx.array_equal(plain[name], whole[name])}
    assert {name.rpartition(".")[0] for name in changed} == set(MODULES)


def test_an_adapter_alone_is_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--hf-path", adapter(tmp_path / "alone"), "--mlx-path", str(tmp_path / "x")]) == 1
    assert "convert that with --fuse-adapter" in capsys.readouterr().err


def test_a_dry_run_reads_the_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(tiny_model(tmp_path / "source", "llama"))
    command = ["--hf-path", source, "--mlx-path", str(tmp_path / "x"), "--dry-run"]
    assert main([*command, "--fuse-adapter", adapter(tmp_path / "adapter")]) == 0
    assert main([*command, "--fuse-adapter", str(tmp_path / "nothing")]) == 1
    assert "is not a folder" in capsys.readouterr().err
