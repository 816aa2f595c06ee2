"""`infer` on a Hugging Face folder as it is: what `convert` would make of it, in memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from convert.cli import main as convert
from inference.cli import main as infer
from inference.device import parameters, place
from inference.load import load, open_folder
from tests.factories_models import tiny_model

KINDS = ("llama", "qwen2", "qwen3_moe")


def made(folder: Path, *flags: str) -> Path:
    out = folder.parent / "-".join(("mlx", folder.name, *flags))
    assert convert(["--hf-path", str(folder), "--mlx-path", str(out), "--quiet", *flags]) == 0
    return out


def weights(folder: Path, load_bits: int | None = None) -> dict[str, mx.array]:
    return parameters(load(open_folder(folder, load_bits), place("cpu", "float32")).model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_folder_is_what_convert_makes_of_it(kind: str, tmp_path: Path) -> None:
    source = tiny_model(tmp_path / kind, kind)
    expected, found = weights(made(source)), weights(source)
    assert expected.keys() == found.keys()
    assert all(mx.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_load_bits_are_the_bits_of_convert(kind: str, bits: int, tmp_path: Path) -> None:
    source = tiny_model(tmp_path / kind, kind)
    expected = weights(made(source, "-q", "--bits", str(bits), "--method", "rtn"))
    for folder in (source, made(source)):
        found = weights(folder, bits)
        assert expected.keys() == found.keys()
        assert all(mx.array_equal(expected[name], found[name]) for name in expected)


def answer(folder: Path, capfd: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    capfd.readouterr()
    asked = ["--model", str(folder), "--prompt", "hello", "--max-tokens", "8", "--temperature", "0"]
    assert infer([*asked, "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_the_command_runs_it(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in llama.iterdir()}
    assert answer(llama, capfd)["text"] == answer(made(llama), capfd)["text"]
    packed = made(llama, "-q", "--bits", "8", "--method", "rtn")
    assert answer(llama, capfd, "--load-bits", "8")["text"] == answer(packed, capfd)["text"]
    assert {path.name: path.read_bytes() for path in llama.iterdir()} == before


def test_what_is_quantized_is_not_quantized_again(
    llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packed = made(llama, "-q")
    capfd.readouterr()
    assert infer(["--model", str(packed), "--prompt", "x", "--load-bits", "8"]) == 2
    assert "--load-bits: the weights are quantized already" in capfd.readouterr().err


def test_a_config_that_mlx_can_not_honour_is_refused_as_by_convert(
    llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = llama / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))
    assert infer(["--model", str(llama), "--prompt", "x"]) == 1
    assert "hidden_act" in capfd.readouterr().err


@pytest.mark.parametrize(("variable", "value"), [("DEVICE", "tpu"), ("DTYPE", "int8")])
def test_the_environment_is_checked(
    variable: str,
    value: str,
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"MLX_FERRY_{variable}", value)
    assert infer(["--model", str(llama), "--prompt", "x"]) == 2
    assert f"MLX_FERRY_{variable}: '{value}'" in capfd.readouterr().err
    assert os.environ[f"MLX_FERRY_{variable}"] == value


def test_the_environment_chooses_where_no_flag_does(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLX_FERRY_DTYPE", "float16")
    assert answer(llama, capfd)["dtype"] == "float16"
    assert answer(llama, capfd, "--dtype", "float32")["dtype"] == "float32"
    answer(llama, capfd, "--dtype", "bfloat16")


def test_what_a_device_does_badly_is_said(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", str(llama), "--prompt", "x", "--max-tokens", "1"]
    assert infer([*asked, "--dtype", "bfloat16", "--device", "cpu"]) == 0
    assert "warning: the CPU computes many times slower in bfloat16" in capfd.readouterr().err
    assert infer([*asked, "--device", "cpu"]) == 0
    assert "warning" not in capfd.readouterr().err
