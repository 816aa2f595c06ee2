"""`--quality`: what quantization lost, on a conversion and of a folder, beside the source."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
import transformers
from mlx.utils import tree_map

from convert.cli import main
from convert.quality.texts import WINDOW, cut, fingerprint
from inference.tokenizer import load_tokenizer
from tests.factories_models import TEXT, tiny_model
from tests.meaning_in_process import meaning_in_process
from tests.proof_workshop import PLAIN, Workshop, rewrite

TOKENS = "".join(f"{n} {TEXT}" for n in range(12))
SHARED = Path(__file__).parents[3] / "shared" / "models" / "pycode-10m"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    from checkpoint.architecture import explicit

    monkeypatch.setattr(explicit, "transformers_meaning", meaning_in_process)
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TOKENS, "utf-8")
    return path


def measured(capsys: pytest.CaptureFixture[str], *flags: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["--quality", *map(str, flags), "--json", "--quiet"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def log_probabilities(folder: Path, ids: mx.array) -> np.ndarray:
    """Of the whole model, as stock mlx-lm loads it, in float32."""
    model, _ = mlx_lm.utils.load_model(folder)
    widened = tree_map(
        lambda each: each.astype(mx.float32) if mx.issubdtype(each.dtype, mx.floating) else each,
        model.parameters(),
    )
    model.update(widened)
    logits = np.array(model(ids).astype(mx.float32)).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    found: np.ndarray = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return found


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "qwen3-moe", "falcon-h1"])
def test_the_figures_are_those_of_the_whole_models(
    name: str, workshop: Workshop, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, plain, folder = (
        workshop.source(name),
        workshop.written(name, PLAIN),
        workshop.written(name, 4),
    )
    told = measured(capsys, folder, "--reference", source, "--text", text)
    windows = cut(load_tokenizer(folder, {}), TOKENS)
    assert told["tokens"] == windows.tokens and len(windows.lengths) > 1
    p, q = (log_probabilities(each, windows.ids) for each in (plain, folder))
    counted = np.arange(WINDOW)[None] < np.array(windows.lengths)[:, None]
    targets = np.array(windows.targets)[..., None]
    kl = (np.exp(p) * (p - q)).sum(-1)[counted]
    surprise = [-np.take_along_axis(each, targets, -1)[..., 0][counted].mean() for each in (p, q)]
    written = told["written"]
    # mlx-lm makes some weights of the source's in bfloat16, which the reference does not.
    near = {"rel": 2e-2, "abs": 1e-6}
    assert written["kl_nats"]["mean"]["value"] == pytest.approx(kl.mean(), **near)
    assert written["kl_nats"]["max"]["value"] == pytest.approx(kl.max(), rel=0.1)
    same = (p.argmax(-1) == q.argmax(-1))[counted].mean()
    assert written["top1_agreement"]["value"] == pytest.approx(same, abs=0.01)
    assert told["source_perplexity"]["value"] == pytest.approx(np.exp(surprise[0]), **near)
    assert written["perplexity"]["value"] == pytest.approx(np.exp(surprise[1]), **near)
    assert all(0 < each["value"] < 1 for each in written["layers"])
    assert all(each["standard_error"] > 0 for each in written["layers"])


def test_rounding_to_nearest_is_measured_as_itself(
    llama: Path, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["-q", "--bits", "3", "--group-size", "32", "--quiet"]
    places = ["--hf-path", str(llama), "--mlx-path", str(out)]
    assert main([*places, *flags, "--method", "rtn"]) == 0
    told = measured(capsys, out, "--text", text)  # its receipt names the source
    assert told["written"] == told["rtn"]
    assert told["kl_less_rtn"] == {"value": 0.0, "standard_error": 0.0}
    assert told["worse_than_rtn"] == []
    assert main([*places, *flags, "--method", "search", "--force"]) == 0
    better = measured(capsys, out, "--text", text)
    assert better["rtn"] == told["rtn"]
    assert all(
        ours["value"] < theirs["value"]
        for ours, theirs in zip(better["written"]["layers"], told["rtn"]["layers"], strict=True)
    )


def test_what_is_worse_than_rounding_is_said(
    workshop: Workshop, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def weaken(folder: Path) -> None:
        rewrite(folder, "model.layers.1.mlp.down_proj", lambda weight: 0.1 * weight)

    folder = workshop.spoiled("llama", 4, weaken, tmp_path / "weak")
    flags = [str(folder), "--reference", str(workshop.source("llama")), "--text", str(text)]
    told = measured(capsys, *flags)
    assert told["worst_layers"][0]["layer"] == 1
    assert told["worse_than_rtn"][0].startswith("WORSE than rounding to nearest: mean KL")
    assert any(line.startswith("layer 1 is WORSE") for line in told["worse_than_rtn"])
    assert not any(line.startswith("layer 0") for line in told["worse_than_rtn"])
    assert main(["--quality", *flags]) == 0
    table = capsys.readouterr().out
    assert "layer 1 is WORSE than rounding to nearest: error" in table
    assert "layer, worst first" in table and "KL, p99 (nats)" in table and "±" in table


def test_a_conversion_carries_its_figures(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "out", tmp_path / "quality.png"
    places = ["--hf-path", str(llama), "--mlx-path", str(out)]
    flags = ["-q", "--bits", "4", "--group-size", "32", "--quality", "--plot", str(picture)]
    assert main([*places, *flags]) == 0
    assert "quality on" in capsys.readouterr().err
    receipt = json.loads((out / "conversion.json").read_text("utf-8"))
    quality = receipt["quality"]
    assert quality["text"]["name"] == "sample" and len(quality["text"]["sha256"]) == 64
    assert len(quality["written"]["layers"]) == 2 and quality["tokens"] > 2000
    assert quality == measured(capsys, out)  # the same again of the finished folder
    card = (out / "README.md").read_text("utf-8")
    mean = quality["written"]["kl_nats"]["mean"]
    row = f"| written, kl nats, mean | {mean['value']:.6g} ± {mean['standard_error']:.2g} |"
    assert row in card
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["--verify", str(out)]) == 0


def test_an_unquantized_conversion_is_measured_alone(
    llama: Path, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--hf-path", str(llama), "--mlx-path", str(tmp_path / "out")]
    flags = ["--dtype", "float16", "--quality", "--text", str(text), "--json", "--quiet"]
    assert main([*places, *flags]) == 0
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert quality["rtn"] is None and quality["kl_less_rtn"] is None
    assert quality["written"]["kl_nats"]["max"]["value"] < 1e-4


def test_a_text_that_the_model_was_calibrated_on_is_refused(
    workshop: Workshop, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workshop.spoiled("llama", 4, lambda _: None, tmp_path / "calibrated")
    path = folder / "conversion.json"
    receipt = json.loads(path.read_text("utf-8"))
    receipt["calibration"] = {"text": fingerprint(TOKENS)}
    path.write_text(json.dumps(receipt), "utf-8")
    flags = [folder, "--reference", workshop.source("llama")]
    assert main(["--quality", *map(str, flags), "--text", str(text)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --text: 100% of text.txt is in the text")
    told = measured(capsys, *flags)  # our sample is another text
    assert told["calibration_sha256"] == [fingerprint(TOKENS)["sha256"]]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--text", "t.txt"], "--text: means nothing without --quality"),
        (["--quality", "--reference", "S"], "--reference: goes with --quality DIR alone"),
        (["--quality", "--dry-run"], "--quality: nothing is made with --dry-run"),
        (["--quality", "--consume-source"], "--quality: needs the source"),
        (["--quality", "DIR", "--bits", "4", "-q"], "means nothing with --quality"),
        (["--quality", "DIR", "--verify", "OTHER"], "means nothing with"),
        (["--quality", "DIR", "--prove"], "--prove: means nothing with --quality"),
        (["--quality", "--verify", "DIR"], "--quality: means nothing with --verify"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    assert complaint in capsys.readouterr().err


def test_other_refusals(
    llama: Path, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*flags: object) -> str:
        capsys.readouterr()
        assert main(["--quality", *map(str, flags)]) in (1, 2)
        line = capsys.readouterr().err
        assert line.startswith("error: ") and "internal" not in line
        return line

    folder, source = workshop.written("llama", 4), workshop.source("llama")
    short = tmp_path / "short.txt"
    short.write_text("Hello.", "utf-8")
    assert "64 are the least" in refused(folder, "--reference", source, "--text", short)
    assert "can't draw" in refused(folder, "--reference", source, "--plot", tmp_path / "a.txt")
    assert "is not a folder" in refused(folder, "--plot", tmp_path / "no" / "a.png")
    assert "is not made from" in refused(folder, "--reference", llama)
    assert "is not a folder" in refused(tmp_path / "none")
    assert "not in MLX's layout" in refused(source, "--reference", source)


def test_memory_is_one_block_and_its_activations(tmp_path: Path) -> None:
    layers, hidden, inner, experts = 12, 512, 256, 16
    text = tmp_path / "text.txt"
    text.write_text(TOKENS[:300], "utf-8")
    sizes = {"hidden_size": hidden, "moe_intermediate_size": inner, "num_experts": experts}
    source = tiny_model(tmp_path / "source", "qwen3_moe", num_hidden_layers=layers, **sizes)
    out = tmp_path / "out"
    flags = ["-q", "--bits", "4", "--group-size", "32", "--method", "rtn", "--quiet"]
    assert main(["--hf-path", str(source), "--mlx-path", str(out), *flags]) == 0
    block = 4 * experts * 3 * hidden * inner
    program = (
        "import sys\n"
        "import mlx_lm, tokenizers, transformers\n"
        "from convert.receipt import peak_memory_bytes\n"
        "from convert.cli import main\n"
        "before = peak_memory_bytes()\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(peak_memory_bytes() - before)\n"
    )
    flags = ["--quality", str(out), "--text", str(text), "--json", "--quiet"]
    child = subprocess.run(
        [sys.executable, "-c", program, *flags], capture_output=True, text=True, check=True
    )
    grown = int(child.stdout.splitlines()[-1])
    tokens = cut(load_tokenizer(out, {}), TOKENS[:300]).tokens
    activations = 4 * 3 * tokens * 16 * hidden
    assert grown < 3 * block + activations + 40_000_000 < layers * block / 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/models/pycode-10m")
def test_a_trained_models_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 3,072 tokens of the text: KL 0.0102 and perplexity 34.9 -> 35.0 (mlx_lm.convert)."""
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text((SHARED / "val.txt").read_text("utf-8")[:800], "utf-8")
    places = ["--hf-path", str(SHARED), "--mlx-path", str(out)]
    flags = ["-q", "--bits", "4", "--method", "rtn", "--quiet"]
    assert main([*places, *flags]) == 0
    told = measured(capsys, out, "--text", text)
    assert told["tokens"] > 200
    assert 0.006 < told["written"]["kl_nats"]["mean"]["value"] < 0.015
    assert 0.9 < told["written"]["top1_agreement"]["value"] < 0.97


def test_calibrating_and_measuring_on_one_text_is_refused_before_anything_is_made(
    llama: Path, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--hf-path", str(llama), "--mlx-path", str(tmp_path / "out")]
    flags = ["-q", "--bits", "4", "--method", "calibrated", "--calibrate", str(text)]
    assert main([*places, *flags, "--quality", "--text", str(text)]) == 2
    assert "is in the text that the model was calibrated on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
