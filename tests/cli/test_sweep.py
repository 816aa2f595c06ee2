"""`--sweep`: several quantizations of one source, made, measured and removed one by one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from checkpoint import disk
from configs.resolve import Layers
from configs.settings import Setting
from convert import pipeline
from convert.cli import main
from convert.destination import Destination, held
from convert.quality import sweep as sweep_module
from convert.quality.sweep_report import Result, Sweep
from convert.quality.sweep_specs import DEFAULT, options_of, read_specs
from tests.factories_models import TEXT

TOKENS = "".join(f"{n} {TEXT}" for n in range(12))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TOKENS, "utf-8")
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "sweep"


def flags(llama: Path, specs: str, text: Path, out: Path, *others: object) -> list[str]:
    places = ["--hf-path", llama, "--sweep", specs, "--text", text, "--mlx-path", out]
    return [str(each) for each in (*places, *others)]


def found(capsys: pytest.CaptureFixture[str], argv: list[str], code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*argv, "--json"]) == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_each_is_measured_as_its_own_conversion_would_be(
    llama: Path, text: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "sweep.png"
    argv = flags(llama, "rtn:3/32,search:3/32,search:mxfp4", text, out, "--plot", picture)
    told = found(capsys, argv)
    assert [each["spec"] for each in told["results"]] == ["rtn:3/32", "search:3/32", "search:mxfp4"]
    rounded, searched, floats = told["results"]
    assert rounded["tensor_bytes"] == searched["tensor_bytes"] < floats["tensor_bytes"]
    assert searched["form"] == "3 bits, groups of 32, affine"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(out) == ["sweep.json"]  # nothing that was made is left
    alone = tmp_path / "alone"
    how = ["-q", "--bits", "3", "--group-size", "32", "--quality", "--text", str(text), "--quiet"]
    assert main(["--hf-path", str(llama), "--mlx-path", str(alone), *how]) == 0
    receipt = json.loads((alone / "conversion.json").read_text("utf-8"))
    assert receipt["quality"]["written"]["kl_nats"] == searched["kl_nats"]
    assert receipt["quality"]["written"]["perplexity_ratio"] == searched["perplexity_ratio"]
    assert receipt["bits_per_weight"] == searched["bits_per_weight"]
    assert receipt["quality"]["source_perplexity"] == told["source_perplexity"]


def test_the_table_and_what_is_told_on_the_way(
    llama: Path, text: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(llama, "rtn:8/32,rtn:2/32", text, out)) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].split()[:4] == ["size", "bits/weight", "KL", "(nats)"]
    assert lines[1].startswith("* rtn:2/32  ") and lines[2].startswith("* rtn:8/32  ")
    assert "of text.txt, ± one standard error" in told.out
    assert "rtn:8/32: " in told.err and "bits per weight, KL" in told.err


def test_a_sweep_goes_on_where_it_was_stopped(
    llama: Path,
    text: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C in the middle: nothing half is left to be seen, and what was found is kept."""
    argv = flags(llama, "rtn:4/32,rtn:3/32,rtn:2/32", text, out)
    measure, made = sweep_module.measure, []

    def stopped(*args: Any, **named: Any) -> Any:
        made.append(args[1])
        if len(made) == 2:
            raise KeyboardInterrupt
        return measure(*args, **named)

    monkeypatch.setattr(sweep_module, "measure", stopped)
    assert main(argv) == 130
    assert [name for name in os.listdir(out) if not name.startswith(".")] == ["sweep.json"]
    first = json.loads((out / "sweep.json").read_text("utf-8"))["results"]
    assert list(first) == ["rtn:4/32"]
    told = found(capsys, argv)
    assert len(made) == 4  # the second again, and the third
    assert [each["spec"] for each in told["results"]] == ["rtn:4/32", "rtn:3/32", "rtn:2/32"]
    assert os.listdir(out) == ["sweep.json"]
    again = found(capsys, argv)
    assert len(made) == 4 and again == told
    assert found(capsys, [*argv, "--no-resume"]) == told and len(made) == 7


def test_what_a_killed_sweep_left_is_removed(
    llama: Path, text: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found(capsys, flags(llama, "rtn:4/32", text, out))
    (out / "being-measured").mkdir()
    (out / "being-measured" / "config.json").write_text("{}")
    told = found(capsys, flags(llama, "rtn:4/32,rtn:8/32", text, out))
    assert len(told["results"]) == 2 and os.listdir(out) == ["sweep.json"]


def test_another_source_or_text_is_refused(
    llama: Path, text: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = flags(llama, "rtn:4/32", text, out)
    found(capsys, argv)
    os.utime(llama / "config.json", (1, 1))
    assert main(argv) == 2
    assert "was found on another source" in capsys.readouterr().err
    found(capsys, [*argv, "--no-resume"])
    text.write_text(TOKENS + "more", "utf-8")
    assert main(argv) == 2
    assert "was found on another text" in capsys.readouterr().err
    found(capsys, [*argv, "--no-resume"])


def test_other_options_make_it_anew(
    llama: Path, text: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = flags(llama, "rtn:4/32", text, out)
    before = found(capsys, argv)["results"][0]
    after = found(capsys, [*argv, "--dtype", "float32"])["results"][0]
    assert after["tensor_bytes"] > before["tensor_bytes"]


def test_one_that_fails_does_not_lose_the_others(
    llama: Path,
    text: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = pipeline.check_free_space
    calls: list[int] = []

    def full(parent: Path, needed: int) -> None:
        calls.append(needed)
        if len(calls) == 1:
            raise disk.DiskError(parent, "is full", "free some space")
        whole(parent, needed)

    monkeypatch.setattr(pipeline, "check_free_space", full)
    argv = flags(llama, "rtn:4/32,rtn:3/32", text, out)
    told = found(capsys, argv, code=1)
    assert [each["spec"] for each in told["results"]] == ["rtn:3/32"]
    assert list(told["failed"]) == ["rtn:4/32"] and "is full" in told["failed"]["rtn:4/32"]
    assert os.listdir(out) == ["sweep.json"]
    assert len(found(capsys, argv)["results"]) == 2  # tried again


def test_where_none_is_measured_the_first_failure_is_the_answer(
    llama: Path, text: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text.write_text("Hello.", "utf-8")
    assert main(flags(llama, "rtn:4/32,rtn:3/32", text, out)) == 2
    told = capsys.readouterr()
    assert "64 are the least to measure" in told.err.splitlines()[-1] and not told.out
    assert os.listdir(out) == []


def test_a_text_that_it_calibrates_on_is_refused(
    llama: Path, text: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text.write_text(TOKENS * 4, "utf-8")
    argv = flags(llama, "calibrated:4/32", text, out, "--calibrate", text)
    assert main(argv) == 2
    assert "in the text that the model was calibrated on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--sweep", "fast:4"], "error: --sweep: fast:4: method: "),
        (["--sweep", "rtn:4,rtn:4"], "error: --sweep: rtn:4 is named twice"),
        (["--sweep", "rtn:"], "error: --sweep: rtn: is no quantization"),
        (["--sweep", "rtn:4,"], "error: --sweep: nothing is no quantization"),
        (["--sweep", "rtn:4/"], "error: --sweep: rtn:4/ is no quantization"),
        (["--sweep", "rtn:7"], "rtn:7"),
        (["--sweep", "rtn:4/63"], "rtn:4/63"),
        (["--sweep", "search@99bpw"], "error: --sweep: search@99bpw: target_bpw: "),
        (["--sweep", "search@large"], "error: --sweep: search@large: target_size: "),
        (["--sweep", "calibrated:4"], "error: --sweep calibrated:4: "),
        (["--sweep", "rtn:4", "--bits", "4"], "error: --bits: means nothing with --sweep; say it"),
        (["--sweep", "--calibrate", "self"], "error: --calibrate: --sweep names no calibrated"),
        (["--sweep", "--force"], "error: --force: means nothing with --sweep"),
        (["--sweep", "--dry-run"], "error: --dry-run: means nothing with --sweep"),
        (["--sweep", "--quality"], "error: --quality: means nothing with --sweep"),
        (["--sweep", "--reference", "S"], "error: --reference: means nothing with --sweep"),
        (["--sweep", "--prove"], "error: --prove: means nothing with --sweep"),
        (["--sweep", "--upload-repo", "a/b"], "error: --upload-repo: means nothing with --sweep"),
        (["--sweep", "--eos-token", "x"], "error: --eos-token: means nothing with --sweep"),
        (["--sweep", "--dequantize"], "error: --dequantize: means nothing with --sweep"),
        (["--sweep", "--show-config"], "error: --show-config: means nothing with --sweep"),
        (["--sweep", "--set", "convert.dequantize=true"], "means nothing with --sweep"),
    ],
)
def test_refusals(
    given: list[str], complaint: str, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--hf-path", str(llama), *given]) == 2
    assert complaint in capsys.readouterr().err


def test_no_source_and_no_folder_of_a_sweep(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--sweep"]) == 2
    assert capsys.readouterr().err.startswith("error: --hf-path: no source is given")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    argv = ["--hf-path", str(llama), "--sweep", "rtn:4", "--mlx-path", str(tmp_path / "mine")]
    assert main(argv) == 2
    assert "is no folder of a sweep" in capsys.readouterr().err
    argv[-1] = str(llama / "inside")
    assert main(argv) == 2
    assert "lies inside the source" in capsys.readouterr().err
    assert not (llama / "inside").exists()


def test_the_usual_ones() -> None:
    names = [spec.name for spec in read_specs("")]
    assert names == DEFAULT.split(",")
    assert {"rtn:2", "search:8", "search@4.5bpw"} <= set(names)
    assert read_specs("search@4GB")[0].settings["target_size"] == 4 * 10**9
    assert read_specs("rtn@mixed_3_6")[0].settings["recipe"] == "mixed_3_6"


def result(spec: str, nbytes: int, kl: float | None) -> Result:
    estimate = {"value": kl, "standard_error": 0.1}
    figures = {"kl_nats": {"mean": estimate}, "top1_agreement": estimate}
    return Result(spec, "form", nbytes, 1.0, figures | {"perplexity_ratio": estimate})


def test_the_verdicts() -> None:
    results = (
        result("rtn:4", 100, 1.0),
        result("search:4", 100, 1.5),
        result("rtn:3", 80, 2.0),
        result("search:3", 80, 1.2),
        result("search:2", 60, None),
    )
    told = {"value": 9.0, "standard_error": 1.0}
    made = Sweep("org/model", "text", "", 100, told, results, {"rtn:2": "disk: full"}, "s.json")
    assert [one.spec for one in made.front] == ["search:2", "search:3", "rtn:4"]
    failed, worse = made.findings()
    assert failed == "rtn:2 was not measured: disk: full"
    assert worse.startswith("search:4 is WORSE than rounding to nearest: KL 1.5 against 1 of rtn:4")
    assert "* search:2" in made.text_table() and "  search:4" in made.text_table()
    assert "no number" in made.text_table()


def test_mixed_bits_come_to_their_size(
    llama: Path, text: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = found(capsys, flags(llama, "search@5.5bpw,rtn@mixed_3_6", text, out))
    targeted, recipe = told["results"]
    assert 5 < targeted["bits_per_weight"] <= 5.5 and recipe["bits_per_weight"] < 5
    assert os.listdir(out) == ["sweep.json"]


def test_two_sweeps_in_one_folder(
    llama: Path, text: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(Destination(out / "sweep.json", force=True)):
        assert main(flags(llama, "rtn:4/32", text, out)) == 1
    assert "is converting to this destination" in capsys.readouterr().err


def test_without_a_folder_named_it_is_called_for_the_model(
    llama: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    toml = tmp_path / "own.toml"
    toml.write_text('[model]\npath = "elsewhere"\n[convert]\nbits = 3\ngroup_size = 32\n')
    argv = ["--hf-path", str(llama), "--config", str(toml), "--text", str(text)]
    told = found(capsys, [*argv, "--sweep", "rtn:8"])
    assert told["results"][0]["form"] == "8 bits, groups of 32, affine"
    assert os.listdir(tmp_path / "mlx_models") == ["llama-sweep"]
    assert os.listdir(tmp_path / "mlx_models" / "llama-sweep") == ["sweep.json"]
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_kept_is_of_the_same_step() -> None:
    """A nanochat folder holds several; their files are the same folder's."""
    (spec,) = read_specs("rtn:4")
    digests = {
        sweep_module._digest(options_of(Layers(sets={"model.step": Setting(step, "--set")}), spec))
        for step in (1, 2, 2)
    }
    assert len(digests) == 2
