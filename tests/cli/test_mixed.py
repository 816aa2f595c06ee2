"""Mixed bits as the command takes them: the plan, what is refused, what wins, and in TOML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from configs.errors import ArchitectureError
from convert.cli import main
from tests.cli.test_convert import receipt_of, rewrite, weights_of
from tests.factories_models import TEXT, tiny_model

Capture = pytest.CaptureFixture[str]


def plan(capsys: Capture, source: Path, *flags: str) -> dict[str, Any]:
    assert main(["--hf-path", str(source), "-q", "--dry-run", "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: Capture, *flags: str) -> str:
    assert main(list(flags)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_bits_per_weight_are_met_from_below(llama: Path, capsys: Capture) -> None:
    found = plan(capsys, llama, "--target-bpw", "4.5", "--method", "rtn")
    assert 4.45 < found["bits_per_weight"] <= 4.5
    layers = found["mixture"]["layers"]
    assert len(layers) == 16
    assert len({layer["bits"] for layer in layers.values()}) > 1
    assert found["mixture"]["measured_on"] == "weights"
    assert all(layer["error"] > 0 for layer in layers.values())


def test_the_size_counts_headers(llama: Path, capsys: Capture) -> None:
    for target in (200_000, 200_001, 250_000):
        found = plan(capsys, llama, "--target-size", str(target), "--method", "rtn")
        assert 0.98 * target < found["output_bytes"] <= target


def test_the_plan_is_a_table_too(llama: Path, capsys: Capture) -> None:
    assert main(["--hf-path", str(llama), "-q", "--dry-run", "--target-bpw", "5"]) == 0
    out = capsys.readouterr().out
    assert "at most 5 bits per weight, all tensors counted, chosen by the weights" in out
    assert "q_proj" in out and "lm_head" in out


def test_a_machine_leaves_room_for_its_cache(llama: Path, capsys: Capture) -> None:
    flags = ("--fit", "700KB", "--method", "rtn")
    near = plan(capsys, llama, *flags, "--context", "1")
    far = plan(capsys, llama, *flags, "--context", "512")
    assert "2/3, 0.5 MB" in near["mixture"]["told"]
    assert "of KV cache for 512 tokens" in far["mixture"]["told"]
    # Two layers of two heads of 32, keys and values, in bfloat16; caches grow by 256 tokens.
    gap = 2 * 2 * 2 * 32 * 2 * 256
    assert abs(near["output_bytes"] - far["output_bytes"] - gap) < 4_000
    assert far["output_bytes"] < 0.9 * 700_000 * 2 / 3 - 2 * gap + 8_000


def test_a_machine_with_room_enough_has_the_best(llama: Path, capsys: Capture) -> None:
    found = plan(capsys, llama, "--fit", "16GB", "--method", "rtn")
    assert {layer["bits"] for layer in found["mixture"]["layers"].values()} == {8}


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (("--target-bpw", "2"), "the least that this model can be quantized to is"),
        (("--target-size", "10KB"), "the least that this model can be quantized to is"),
        (("--fit", "100KB"), "the least that this model can be quantized to is"),
        (("--target-bpw", "12"), "the most that this model can be quantized to is"),
        (("--target-size", "1GB"), "the most that this model can be quantized to is"),
    ],
)
def test_a_target_out_of_reach_is_refused(
    llama: Path, capsys: Capture, target: tuple[str, str], told: str
) -> None:
    flags = ["--hf-path", str(llama), "-q", "--dry-run", "--method", "rtn", *target]
    error = refusal(capsys, *flags)
    assert error.startswith(f"error: {target[0]}: ")
    assert told in error


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--target-bpw", "4", "--bits", "4"), "error: --bits: goes against target_bpw"),
        (("--target-size", "1MB", "--group-size", "32"), "error: --group-size: goes against"),
        (("--fit", "1MB", "--mode", "mxfp4"), "error: --mode: goes against fit"),
        (("--recipe", "q4_k_m", "--bits", "3"), "error: --bits: goes against recipe"),
        (("--target-bpw", "4", "--fit", "8GB"), "error: --fit: goes against target_bpw"),
        (("--target-bpw", "4", "--recipe", "q4_k_m"), "error: --recipe: goes against target_bpw"),
        (("--recipe", "q9"), 'error: --recipe: "q9" is not allowed'),
        (("--target-bpw", "4", "--context", "9"), "error: --context: means nothing without --fit"),
        (("--target-bpw", "4", "--consume-source"), "error: --consume-source: can't measure"),
        (("--recipe", "q4_k_m", "--calibrate", "x.txt"), "error: --calibrate: means nothing"),
        (
            ("--target-bpw", "4", "--calibrate", "self"),
            "error: --calibrate: means nothing with method search; choose method calibrated, or",
        ),
    ],
)
def test_contradictions_are_refused(
    llama: Path, capsys: Capture, flags: tuple[str, ...], told: str
) -> None:
    assert refusal(capsys, "--hf-path", str(llama), "-q", *flags).startswith(told)


def test_a_target_needs_quantize(llama: Path, capsys: Capture) -> None:
    for flag, value in (("--target-bpw", "4"), ("--recipe", "q4_k_m"), ("--fit", "8GB")):
        error = refusal(capsys, "--hf-path", str(llama), flag, value)
        assert error.startswith(f"error: {flag}: has no effect without --quantize")


def test_a_file_asks_for_it_and_flags_win(llama: Path, tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "my.toml"
    rule = '[[convert.layers]]\npattern = "*.v_proj"\nbits = 8\n'
    config.write_text(f'[convert]\ntarget_bpw = 4.0\nmethod = "rtn"\n{rule}')
    found = plan(capsys, llama, "--config", str(config))
    assert 3.9 < found["bits_per_weight"] <= 4.0
    assert not [path for path in found["mixture"]["layers"] if path.endswith("v_proj")]
    rows = {row["name"]: row["quantization"] for row in found["tensors"]}
    assert rows["model.layers.0.self_attn.v_proj.weight"]["bits"] == 8
    assert "mixture" not in plan(capsys, llama, "--config", str(config), "--bits", "3")
    other = plan(capsys, llama, "--config", str(config), "--target-size", "230KB")
    assert other["mixture"]["option"] == "target_size"


def test_receipt_and_card_tell_of_the_choice(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["-q", "--method", "rtn", "--recipe", "mixed_3_6", "--mlx-path", str(out)]
    assert main(["--hf-path", str(llama), *flags]) == 0
    receipt = receipt_of(out)
    asked = {"recipe": "mixed_3_6", "group_size": 64, "method": "rtn"}
    assert asked.items() <= receipt["options"].items()
    assert "bits" not in receipt["options"]
    assert receipt["mixture"]["layers"]["lm_head"]["bits"] == 6
    assert "| Mixed bits | recipe mixed_3_6: " in (out / "README.md").read_text("utf-8")


def test_the_default_folder_is_named_for_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    for flags, name in (
        (("--target-bpw", "4.25"), "llama-4.25bpw"),
        (("--target-size", "220KB"), "llama-220000B"),
        (("--recipe", "ends_4_8"), "llama-ends_4_8"),
    ):
        assert main(["--hf-path", str(llama), "-q", "--method", "rtn", *flags]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'mlx_models' / name}\n"


def test_experts_of_a_stack_are_one_layer(tmp_path: Path, capsys: Capture) -> None:
    source = tiny_model(tmp_path / "moe", "qwen3_moe")
    found = plan(capsys, source, "--target-bpw", "5", "--method", "rtn")
    assert found["bits_per_weight"] <= 5
    experts = [path for path in found["mixture"]["layers"] if "switch_mlp" in path]
    assert len(experts) == 6


def test_where_no_text_can_be_followed_the_weights_decide(
    llama: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ArchitectureError("model", "can't be run backwards", "")

    monkeypatch.setattr("convert.mixed.fisher.Fisher.errors", refuse)
    text = tmp_path / "text.txt"
    text.write_text("hello world, the quick brown fox jumps. " * 60)
    flags = ["-q", "--dry-run", "--json", "--method", "rtn", "--target-bpw", "4"]
    assert main(["--hf-path", str(llama), *flags, "--calibrate", str(text)]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["mixture"]["measured_on"] == "weights"
    assert "bits are chosen by the weights alone: model can't be run backwards" in error


@pytest.mark.parametrize("by_text", [False, True])
def test_damaged_weights_are_named(
    llama: Path, tmp_path: Path, capsys: Capture, by_text: bool
) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    weight = weights_of(llama)[name]
    rewrite(llama, **{name.replace(".", "__"): mx.full(weight.shape, float("nan"), weight.dtype)})
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} {TEXT}" for n in range(12)), "utf-8")
    flags = ("--method", "rtn", *(("--calibrate", str(text)) if by_text else ()))
    argv = ["--hf-path", str(llama), "-q", "--target-bpw", "4.5", "--mlx-path", str(tmp_path / "o")]
    assert main([*argv, *flags]) == 1
    assert f"error: {name}: infinite or NaN values; the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
