"""`convert --diff A B`: equal folders, every way to differ, and the errors, from the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from convert.cli import main
from convert.diff_report import Sums
from tests.cli.test_convert import rewrite, weights_of
from tests.cli.test_verify import change_config, converted, save
from tests.e2e.test_convert_memory import BOUND, WIDE, sparse_checkpoint
from tests.factories_models import tiny_model

Capture = pytest.CaptureFixture[str]
DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"


def compared(one: Path, other: Path, capsys: Capture, code: int) -> dict[str, Any]:
    """What `--diff --json` prints, which must end with this exit code."""
    capsys.readouterr()
    assert main(["--diff", str(one), str(other), "--json"]) == code
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    assert found["equal"] == (code == 0)
    counts = [found[f"tensors_{state}"] for state in ("equal", "same_values", "differ")]
    assert sum(counts) == found["compared"] == len(found["tensors"])
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {tensor["name"]: tensor for tensor in found["tensors"]}


def moved(out: Path, name: str) -> Path:
    """The converted folder under another name."""
    return out.rename(out.parent / name)


def doubles(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def test_a_folder_and_itself(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    for folder in (llama, out):
        found = compared(folder, folder, capsys, 0)
        assert {each["state"] for each in found["tensors"]} == {"equal"}
        assert found["relative_error"] == 0 and found["worst"] is None
        assert found["config"] == found["files"] == found["notes"] == []
        assert all(each["largest_difference"] == 0 for each in found["tensors"])
        assert all(each["cosine"] == pytest.approx(1) for each in found["tensors"])
    capsys.readouterr()
    assert main(["--diff", str(out), str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"A: {out} (MLX, 4 bits, groups of 64, affine)\n")
    assert text.endswith("21 tensors compared: 21 equal, 0 differ. The weights are equal.\n")


def test_a_source_and_what_was_converted(llama: Path, capsys: Capture) -> None:
    """The figures are those of the formulas, worked out here from whole tensors."""
    out = converted(llama)
    found = compared(llama, out, capsys, 1)
    assert found["only_in_a"] == found["only_in_b"] == found["shapes_differ"] == []
    assert (found["tensors_equal"], found["tensors_differ"]) == (5, 16)
    source, packed = weights_of(llama), weights_of(out)
    for name, entry in by_name(found).items():
        if "norm" in name:
            assert (entry["state"], entry["relative_error"]) == ("equal", 0)
            continue
        module = name.removesuffix(".weight")
        codes = packed[f"{module}.weight"]
        scales, biases = (packed[f"{module}.{leaf}"] for leaf in ("scales", "biases"))
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        packed_values = mx.dequantize(codes, scales, biases, group_size=64, bits=4)
        plain = doubles(packed_values.astype(mx.bfloat16))  # rounded once
        exact = doubles(source[name])
        assert entry["a"] == "BF16" and entry["b"] == "4 bits, groups of 64, affine"
        assert entry["shape"] == list(exact.shape)
        norms = np.linalg.norm(exact), np.linalg.norm(plain)
        expected = np.linalg.norm(exact - plain) / norms[0]
        assert entry["relative_error"] == pytest.approx(expected, rel=1e-6)
        assert 0.05 < expected < 0.15
        largest = np.abs(exact - plain).max()
        assert entry["largest_difference"] == pytest.approx(largest, rel=1e-6)
        assert entry["cosine"] == pytest.approx((exact * plain).sum() / norms[0] / norms[1])
    worst = max(found["tensors"], key=lambda each: each["relative_error"])
    assert found["worst"] == worst["name"]
    changed = {change["name"]: change for change in found["config"]}
    assert changed["quantization"]["a"] is None
    assert json.loads(changed["quantization"]["b"])["bits"] == 4


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3_moe"])
def test_a_conversion_without_loss(kind: str, tmp_path: Path, capsys: Capture) -> None:
    source = tiny_model(tmp_path / kind, kind)
    out = moved(converted(source, "--max-shard-size", "5GB"), "plain")
    found = compared(source, out, capsys, 0)
    assert found["tensors_equal"] == found["compared"]
    wide = moved(converted(source, "--dtype", "float32"), "wide")
    found = compared(source, wide, capsys, 0)
    assert found["tensors_same_values"] == found["compared"]
    found = compared(wide, source, capsys, 0)
    assert {(each["a"], each["b"]) for each in found["tensors"]} == {("F32", "BF16")}


def test_experts_and_what_is_left_out(tmp_path: Path, capsys: Capture) -> None:
    source = tiny_model(tmp_path / "moe", "qwen3_moe")
    head = weights_of(source)["model.embed_tokens.weight"]
    rewrite(source, {"tie_word_embeddings": True}, lm_head__weight=head)
    found = compared(source, converted(source), capsys, 1)
    stack = by_name(found)["model.layers.1.mlp.switch_mlp.up_proj.weight"]
    assert stack["shape"] == [4, 64, 128] and 0.05 < stack["relative_error"] < 0.15
    assert "1 tensors: tied to the embeddings" in "\n".join(found["notes"])


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_two_recipes(mode: str, llama: Path, capsys: Capture) -> None:
    first = moved(converted(llama, "-q", "--bits", "8"), "first")
    second = moved(converted(llama, "-q", "--mode", mode), "second")
    entry = by_name(compared(first, second, capsys, 1))[DOWN]
    assert entry["a"] == "8 bits, groups of 64, affine" and entry["b"].endswith(mode)
    assert 0.01 < entry["relative_error"] < 0.2
    assert by_name(compared(second, second, capsys, 0))[DOWN]["state"] == "equal"


def test_one_code_that_differs(llama: Path, capsys: Capture) -> None:
    out = moved(converted(llama), "first")
    other = out.parent / "other"
    shutil.copytree(out, other)
    codes = weights_of(other)[DOWN]
    codes[100, 3] = codes[100, 3] ^ 1
    save(other, {DOWN: codes})
    found = compared(out, other, capsys, 1)
    entry = by_name(found)[DOWN]
    assert found["tensors_differ"] == 1 and entry["state"] == "differs"
    step = weights_of(out)[f"{DOWN.removesuffix('weight')}scales"][100, 0].item()
    assert entry["largest_difference"] == pytest.approx(step, rel=0.2)


def test_same_values_from_other_codes(llama: Path, capsys: Capture) -> None:
    """Codes that a scale of zero makes nothing of."""
    out = converted(llama)
    module = DOWN.removesuffix(".weight")
    scales = mx.zeros_like(weights_of(out)[f"{module}.scales"])
    save(out, {f"{module}.scales": scales})
    other = out.parent / "other"
    shutil.copytree(out, other)
    (out / "conversion.json").touch()
    save(out, {DOWN: weights_of(out)[DOWN] ^ 0xFF})
    found = compared(out, other, capsys, 0)
    assert by_name(found)[DOWN]["state"] == "same values"
    assert found["tensors_same_values"] == 1


def test_tensors_that_only_one_has_and_other_shapes(
    llama: Path, qwen2: Path, capsys: Capture
) -> None:
    rewrite(qwen2, model__norm__weight=mx.ones((64,)), lm_head__scales=mx.ones((2, 2)))
    found = compared(llama, qwen2, capsys, 1)
    assert found["only_in_a"] == ["lm_head.weight"]
    assert "lm_head.scales" in found["only_in_b"]
    assert "model.layers.0.self_attn.q_proj.bias" in found["only_in_b"]
    assert found["shapes_differ"] == [{"name": NORM, "a": [128], "b": [64]}]
    assert main(["--diff", str(llama), str(qwen2)]) == 1
    text = capsys.readouterr().out
    assert "only in A: 'lm_head.weight'\n" in text and "only in B: 'lm_head.scales'" in text
    assert f"shape differs: {NORM}: [128] -> [64]" in text
    assert 'config.json: model_type: "llama" -> "qwen2"' in text
    assert text.endswith("The weights are NOT equal.\n")


def test_scales_and_biases_belong_to_their_weight(llama: Path, capsys: Capture) -> None:
    out = moved(converted(llama), "packed")
    found = compared(out, converted(llama, "--max-shard-size", "5GB"), capsys, 1)
    assert found["only_in_a"] == found["only_in_b"] == []


def test_config_and_tokenizer(llama: Path, capsys: Capture) -> None:
    other = llama.parent / "other"
    shutil.copytree(llama, other)
    change_config(
        other,
        lambda config: config.update(
            rope_theta=2e4,
            rope_scaling={"factor": float("inf"), "on": True},
            vocab_size=320.0,
            long="x" * 1000,
        ),
    )
    change_config(llama, lambda config: config.update(rope_scaling={"factor": 2.0, "on": 1}))
    (other / "tokenizer.json").write_text("{}")
    (other / "vocab.json").write_text("{}\x1b")
    found = compared(llama, other, capsys, 0)
    assert {change["name"]: (change["a"], change["b"]) for change in found["config"]} == {
        "rope_theta": ("10000.0", "20000.0"),
        "rope_scaling.factor": ("2.0", '{"__float__": "Infinity"}'),
        "rope_scaling.on": ("1", "true"),
        "long": (None, '"' + "x" * 1000 + '"'),
    }
    files = {change["name"]: change for change in found["files"]}
    assert files.keys() == {"tokenizer.json", "vocab.json"} and files["vocab.json"]["a"] is None
    assert main(["--diff", str(llama), str(other)]) == 0
    text = capsys.readouterr().out
    assert "config.json: rope_theta: 10000.0 -> 20000.0" in text
    assert "x" * 100 not in text and "file differs: vocab.json: (absent) -> sha256" in text


def test_values_that_are_not_finite(llama: Path, capsys: Capture) -> None:
    other = llama.parent / "other"
    shutil.copytree(llama, other)
    norm = weights_of(llama)[NORM]
    norm[3] = float("nan")
    rewrite(llama, model__norm__weight=norm)
    found = compared(llama, other, capsys, 1)
    entry = by_name(found)[NORM]
    assert entry["state"] == "differs" and found["worst"] == NORM
    assert entry["relative_error"] is entry["largest_difference"] is entry["cosine"] is None
    assert by_name(compared(llama, llama, capsys, 0))[NORM]["state"] == "equal"


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_values_whose_squares_float32_can_not_hold(
    scale: float, llama: Path, capsys: Capture
) -> None:
    values = mx.random.normal((128,)) * scale
    rewrite(llama, model__norm__weight=values)
    other = llama.parent / "other"
    shutil.copytree(llama, other)
    rewrite(other, model__norm__weight=values * 1.5)
    entry = by_name(compared(llama, other, capsys, 1))[NORM]
    assert entry["relative_error"] == pytest.approx(0.5, rel=1e-5)
    assert entry["cosine"] == pytest.approx(1, rel=1e-5)
    rewrite(llama, model__norm__weight=mx.zeros((128,)))
    entry = by_name(compared(llama, other, capsys, 1))[NORM]
    assert entry["relative_error"] is entry["cosine"] is None
    assert entry["largest_difference"] == pytest.approx(mx.max(mx.abs(values)).item() * 1.5)


def test_dtypes_of_every_kind(llama: Path, capsys: Capture) -> None:
    """Integers that float32 can't tell apart, minus zero, booleans, scalars, empty ones."""
    kinds = {
        "int": (mx.array([2**24 + 1], mx.int32), mx.array([2**24], mx.int32), "differs"),
        "wide": (mx.array([2**24 + 1], mx.int64), mx.array([2**24 + 1], mx.int32), "same values"),
        "zero": (mx.array([0.0]), mx.array([-0.0]), "same values"),
        "bool": (mx.array([True]), mx.array([False]), "differs"),
        "scalar": (mx.array(2.0), mx.array(2.0), "equal"),
        "empty": (mx.zeros((0, 4)), mx.zeros((0, 4)), "equal"),
        "complex": (mx.array([1 + 2j]), mx.array([1 + 3j]), "differs"),
        "half": (mx.array([0.5], mx.float16), mx.array([0.5], mx.bfloat16), "same values"),
    }
    other = llama.parent / "other"
    shutil.copytree(llama, other)
    rewrite(llama, None, **{f"x__{name}": pair[0] for name, pair in kinds.items()})
    rewrite(other, None, **{f"x__{name}": pair[1] for name, pair in kinds.items()})
    found = by_name(compared(llama, other, capsys, 1))
    for name, (_, _, state) in kinds.items():
        assert (name, found[f"x.{name}"]["state"]) == (name, state)


def test_a_long_model_is_summed_up(tmp_path: Path, capsys: Capture) -> None:
    source = tiny_model(tmp_path / "long", "llama", num_hidden_layers=4)
    out = converted(source)
    assert main(["--diff", str(source), str(out)]) == 1
    text = capsys.readouterr().out
    assert "... and 10 more, all in --json" in text
    (line,) = [line for line in text.splitlines() if line.startswith("down_proj.weight ")]
    assert line.split()[1] == "4"


def test_an_architecture_that_mlx_lm_has_not(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    change_config(llama, lambda config: config.update(model_type="lamma"))
    found = compared(llama, out, capsys, 1)
    assert "names are compared as they are: model_type 'lamma'" in found["notes"][0]
    assert by_name(found)[DOWN]["relative_error"] > 0.01


def test_no_config_at_all(llama: Path, capsys: Capture) -> None:
    other = llama.parent / "other"
    shutil.copytree(llama, other)
    (other / "config.json").unlink()
    assert compared(llama, other, capsys, 0)["config"]


def test_folders_that_can_not_be_read(llama: Path, capsys: Capture) -> None:
    out = moved(converted(llama), "packed")
    change_config(out, lambda config: config["quantization"].update(bits=8))
    cut = llama.parent / "cut"
    shutil.copytree(llama, cut)
    (cut / "model-00001-of-00003.safetensors").write_bytes(b"")
    staging = llama.parent / ".x.ferry-staging"
    shutil.copytree(llama, staging)
    capsys.readouterr()
    for folder, words in (
        (out, "lm_head': has scales [320, 2]"),
        (cut, "truncated"),
        (staging, "never finished"),
        (llama.parent / "absent", "there is no such folder"),
    ):
        for pair in ((llama, folder), (folder, llama)):
            assert main(["--diff", *map(str, pair)]) == 1
            text, err = capsys.readouterr()
            assert text == "" and err.count("\n") == 1
            assert err.startswith(f"error: {folder}") and words in err


def test_flags_that_mean_nothing_here(llama: Path, capsys: Capture) -> None:
    assert main(["--diff", str(llama), str(llama), "-q"]) == 2
    assert "means nothing with --diff" in capsys.readouterr().err


def test_sums_of_nothing() -> None:
    assert Sums().relative_error == 0 and Sums().cosine is None
    assert Sums(1.0, 0.0, 1.0).relative_error is None
    assert Sums(2.0, 1.0, 1.0).cosine == 0


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Sparse files of zeros, larger than the bound, in one tensor."""
    assert sparse_checkpoint(tmp_path / "wide", WIDE) > BOUND
    shutil.copytree(tmp_path / "wide", tmp_path / "other")
    script = (
        "import sys; from convert.diff import diff; from convert.receipt import peak_memory_bytes"
        "; from pathlib import Path; found = diff(*map(Path, sys.argv[1:]))\n"
        "print(peak_memory_bytes(), found.equal)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "wide"), str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    peak, equal = done.stdout.split()
    assert int(peak) <= BOUND and equal == "True"
    shutil.rmtree(tmp_path)
