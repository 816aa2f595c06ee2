"""MLX folders back in transformers' layout: what transformers loads, and what it computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
import transformers

from checkpoint.architecture import explicit
from checkpoint.architecture.hf_names import WAYS
from convert.cli import main
from tests.architectures_table import TABLE, Tiny, logits, sample_ids
from tests.factories_models import tiny_model, write_tokenizer
from tests.meaning_in_process import meaning_in_process

IDS = sample_ids()
NO_WAY_BACK = ("falcon-h1", "qwen3-next")
LOADED = (
    *("llama", "mistral", "qwen2", "qwen3", "qwen3-moe", "mixtral", "phi3", "gemma2", "gemma3"),
    *("olmo2", "gpt-neox", "gpt2", "deepseek-v3", "gpt-oss", "granite-moe", "lfm2", "apertus"),
)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(explicit, "transformers_meaning", meaning_in_process)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with mx.stream(mx.cpu):
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(tiny: Tiny, folder: Path, tokenizer: dict[str, bytes]) -> Path:
    tiny.build().save_pretrained(folder, max_shard_size="100KB")
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)
    return folder


def convert(source: Path, out: Path, *flags: str) -> Path:
    assert main(["--hf-path", str(source), "--mlx-path", str(out), "--quiet", *flags]) == 0
    return out


def load(folder: Path) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for path in folder.glob("model*.safetensors"):
        found, metadata = mx.load(str(path), return_metadata=True)
        assert metadata["format"] == "pt"
        tensors |= found
    return tensors


def assert_same_tensors(one: dict[str, mx.array], other: dict[str, mx.array]) -> None:
    assert one.keys() == other.keys()
    for name, array in other.items():
        assert (one[name].dtype, one[name].shape) == (array.dtype, array.shape), name
        assert mx.array_equal(one[name], array).item(), name


def by_transformers(folder: Path) -> Any:
    """As a user would load it; every weight comes from the folder."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("name", [name for name in TABLE if name not in NO_WAY_BACK])
def test_there_and_back_changes_no_bit(
    name: str, tmp_path: Path, tokenizer: dict[str, bytes]
) -> None:
    source = saved(TABLE[name], tmp_path / "source", tokenizer)
    between = convert(source, tmp_path / "between")
    back = convert(between, tmp_path / "back", "--dequantize", "--max-shard-size", "50KB")
    assert_same_tensors(load(back), load(source))
    index = json.loads((back / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == load(source).keys()
    again = convert(back, tmp_path / "again")
    for file in between.glob("*.safetensors"):
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_every_way_back_is_tested() -> None:
    tested = {tiny.config().model_type for name, tiny in TABLE.items() if name not in NO_WAY_BACK}
    assert tested == WAYS.keys()


@pytest.mark.parametrize("name", LOADED)
def test_transformers_computes_what_the_quantized_folder_does(
    name: str, tmp_path: Path, tokenizer: dict[str, bytes]
) -> None:
    source = saved(TABLE[name], tmp_path / "source", tokenizer)
    flags = ["-q", "--bits", "8", "--group-size", "32"]
    quantized = convert(source, tmp_path / "quantized", *flags)
    model, _ = mlx_lm.utils.load_model(quantized)
    out = convert(quantized, tmp_path / "out", "--dequantize")

    expected = logits(by_transformers(out), IDS)
    found = np.array(model(mx.array([IDS]))[0].astype(mx.float32))[:, : expected.shape[1]]
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    config = json.loads((out / "config.json").read_text())
    assert not config.keys() & {"quantization", "quantization_config"}
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert transformers.AutoTokenizer.from_pretrained(out)("hello")["input_ids"]


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4", "mxfp8"])
def test_modes_and_dtypes(mode: str, tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source", "qwen2")
    quantized = convert(source, tmp_path / "quantized", "-q", "--mode", mode)
    for dtype in ("bfloat16", "float32"):
        flags = ["--dtype", dtype] if dtype == "float32" else []
        out = convert(quantized, tmp_path / dtype, "--dequantize", *flags)
        assert {array.dtype for array in load(out).values()} == {getattr(mx, dtype)}
        assert json.loads((out / "config.json").read_text())["dtype"] == dtype
        assert load(out).keys() == load_any(source).keys()
        by_transformers(out)
    # Rounded once, from what float32 holds.
    wide, narrow = load(tmp_path / "float32"), load(tmp_path / "bfloat16")
    for name, array in wide.items():
        assert mx.array_equal(array.astype(mx.bfloat16), narrow[name]).item(), name


def load_any(folder: Path) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for path in folder.glob("model*.safetensors"):
        tensors |= mx.load(str(path))  # type: ignore[arg-type]
    return tensors


def refusal(capsys: pytest.CaptureFixture[str], source: Path, *flags: str, code: int) -> str:
    capsys.readouterr()
    assert main(["--hf-path", str(source), *flags]) == code
    return capsys.readouterr().err.splitlines()[-1]


def test_refusals(
    tmp_path: Path,
    tokenizer: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tiny_model(tmp_path / "source", "llama")
    said = refusal(capsys, source, "--dequantize", code=2)
    assert said.startswith("error: --dequantize: ") and "not an MLX folder" in said
    said = refusal(capsys, source, "--dequantize", "-q", code=2)
    assert said.startswith("error: --dequantize: ") and "quantize" in said
    falcon = saved(TABLE["falcon-h1"], tmp_path / "falcon", tokenizer)
    between = convert(falcon, tmp_path / "between")
    said = refusal(capsys, between, "--dequantize", code=1)
    assert "falcon_h1" in said and "no reviewed way" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["between", "falcon", "source"]


def test_default_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tiny_model(tmp_path / "tiny", "llama")
    for flags, name in (
        (["-q"], "tiny-4bit"),
        (["-q", "--mode", "mxfp4"], "tiny-mxfp4"),
        (["-q", "--mode", "nvfp4"], "tiny-nvfp4"),
        (["-q", "--mode", "mxfp8"], "tiny-mxfp8"),
    ):
        assert main(["--hf-path", str(source), "--quiet", *flags]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'mlx_models' / name}\n"
    assert main(["--hf-path", "mlx_models/tiny-4bit", "--quiet", "--dequantize"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mlx_models' / 'tiny-4bit-hf'}\n"


def test_a_tied_head_that_is_another_tensor(
    tmp_path: Path, tokenizer: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """mlx-lm's gpt_neox has a head of its own, and a rule can pack it as it likes."""
    tied = Tiny("GPTNeoX", {**TABLE["gpt-neox"].values, "tie_word_embeddings": True})
    source = saved(tied, tmp_path / "source", tokenizer)
    good = convert(source, tmp_path / "good", "-q", "--group-size", "32")
    assert load_any(good)["model.embed_out.weight"].dtype == mx.uint32
    back = convert(good, tmp_path / "back", "--dequantize")
    assert load(back).keys() == load(source).keys() and "embed_out.weight" not in load(back)
    rules = tmp_path / "rules.toml"
    rules.write_text('[[convert.layers]]\npattern = "*embed_out"\nkeep = true\n')
    flags = ["-q", "--group-size", "32", "--config", str(rules)]
    odd = convert(source, tmp_path / "odd", *flags)
    said = refusal(capsys, odd, "--dequantize", "--mlx-path", str(tmp_path / "no"), code=1)
    assert "embed_out.weight" in said and "tied" in said
