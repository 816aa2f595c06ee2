"""Bad checkpoints and bad options, as `convert` answers them: one line, an exit code, no trace."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from convert.cli import main
from tests.cli.test_convert import rewrite, weights_of

Q = "model__layers__1__self_attn__q_proj__weight"


def refusal(source: Path, capsys: pytest.CaptureFixture[str], code: int, *flags: str) -> str:
    """Convert and expect a refusal that leaves nothing behind; gives its line."""
    around = sorted(os.listdir(source.parent))
    capsys.readouterr()
    assert (
        main(["--hf-path", str(source), "--mlx-path", str(source.parent / "out"), *flags]) == code
    )
    out, err = capsys.readouterr()
    (line,) = [each for each in err.splitlines() if not each.startswith("warning: ")]
    assert out == "" and line.startswith("error: ")
    assert sorted(os.listdir(source.parent)) == around
    return line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("flags", [["-q"], ["-q", "--mode", "mxfp4"], [], ["--dtype", "float32"]])
def test_values_that_are_not_finite(
    value: float, flags: list[str], llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = weights_of(llama)[Q.replace("__", ".")]
    weight[17, 3] = value
    rewrite(llama, **{Q: weight})
    line = refusal(llama, capsys, 1, *flags)
    assert "model.layers.1.self_attn.q_proj.weight" in line and "NaN" in line


def test_values_beyond_float16(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = weights_of(llama)[Q.replace("__", ".")]
    weight[0, 0] = 1e6
    rewrite(llama, **{Q: weight})
    assert "--dtype bfloat16" in refusal(llama, capsys, 1, "--dtype", "float16")
    assert main(["--hf-path", str(llama), "--mlx-path", str(llama.parent / "ok")]) == 0


def missing(source: Path) -> None:
    rewrite(source, **{Q: None})


def extra(source: Path) -> None:
    rewrite(source, model__layers__0__self_attn__surprise__weight=mx.zeros((2, 2)))


def wrong_shape(source: Path) -> None:
    rewrite(source, **{Q: mx.zeros((64, 128), mx.bfloat16)})


def head_that_is_not_tied(source: Path) -> None:
    rewrite(source, {"tie_word_embeddings": True})


def quantized_source(source: Path) -> None:
    rewrite(source, {"quantization_config": {"quant_method": "gptq", "bits": 4}})


def mlx_source(source: Path) -> None:
    rewrite(source, {"quantization": {"bits": 7, "group_size": 64}})


def missing_shards(source: Path) -> None:
    for number in (1, 3):
        (source / f"model-0000{number}-of-00003.safetensors").unlink()


def unknown_type(source: Path) -> None:
    rewrite(source, {"model_type": "lama"})


def traversal_type(source: Path) -> None:
    rewrite(source, {"model_type": "../x"})


def custom_code(source: Path) -> None:
    rewrite(source, {"model_type": "os", "auto_map": {"AutoModel": "evil.Evil"}})


def unknown_activation(source: Path) -> None:
    rewrite(source, {"hidden_act": "relu"})


def unknown_dtype(source: Path) -> None:
    rewrite(source, {"torch_dtype": "complex9"})


def broken_generation_config(source: Path) -> None:
    (source / "generation_config.json").write_text("{")


def impossible_temperature(source: Path) -> None:
    (source / "generation_config.json").write_text('{"temperature": -3}')


def vocabulary_beyond_the_embeddings(source: Path) -> None:
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(
        tokenizer["added_tokens"][0] | {"id": 320, "content": "<|beyond|>", "special": False}
    )
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, ["model.layers.1.self_attn.q_proj.weight"]),
        (extra, ["model.layers.0.self_attn.surprise.weight"]),
        (wrong_shape, ["model.layers.1.self_attn.q_proj.weight", "[128, 128]", "[64, 128]"]),
        (head_that_is_not_tied, ["lm_head.weight", "tie_word_embeddings"]),
        (quantized_source, ["gptq"]),
        (mlx_source, ["config.json", "quantization", "bits 7"]),
        (missing_shards, ["model-00001-of-00003", "model-00003-of-00003"]),
        (unknown_type, ["'lama'", "llama"]),
        (traversal_type, ["model_type"]),
        (custom_code, ["auto_map", "never run"]),
        (unknown_activation, ["hidden_act", "relu"]),
        (vocabulary_beyond_the_embeddings, ["tokenizer", "320"]),
        (unknown_dtype, ["complex9", "bfloat16"]),
        (broken_generation_config, ["generation_config.json"]),
        (impossible_temperature, ["generation_config.json", "temperature"]),
    ],
)
def test_bad_checkpoints(
    damage: Callable[[Path], None],
    words: list[str],
    llama: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(llama)
    line = refusal(llama, capsys, 1, "-q")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bits", "4"], ["--bits", "--quantize"]),
        (["--group-size", "32"], ["--group-size", "--quantize"]),
        (["--mode", "mxfp4"], ["--mode", "--quantize"]),
        (["-q", "--bits", "7"], ["--bits", "2, 3, 4, 5, 6 or 8"]),
        (["-q", "--group-size", "0"], ["--group-size"]),
        (["-q", "--bits", "nan"], ["--bits"]),
        (["-q", "--mode", "mxfp4", "--bits", "8"], ["mxfp4"]),
        (["-q", "--method", "best"], ["--method", "search", "rtn"]),
        (["--dtype", "float8"], ["--dtype", "bfloat16"]),
        (["--max-shard-size", "-1"], ["--max-shard-size"]),
        (["--bts", "4"], ["--bts", "--bits"]),
        (["--set", "convert.bit=4"], ["convert.bit", "bits"]),
        (["--dry-run", "--force"], ["--force"]),
        (["--show-config", "--json"], ["--json", "--show-config"]),
        (["--set", "tokenizer.trust_remote_code=1"], ["trust_remote_code", "true or false"]),
        (
            ["-q", "--set", 'convert.layers=[{pattern="nothing", bits=8}]'],
            ["convert.layers", "nothing"],
        ),
        (
            ["-q", "--set", 'convert.layers=[{pattern="*.down_proj", group_size=128}]'],
            ["down_proj", "96"],
        ),
    ],
)
def test_bad_options(
    flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.factories_models import tiny_model

    source = tiny_model(tmp_path / "source", "llama", intermediate_size=96)
    line = refusal(source, capsys, 2, *flags)
    for word in words:
        assert word in line


def test_no_source_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q"]) == 2
    assert "--hf-path" in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--hf-path", str(tmp_path / "nowhere"), "-q"]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["", "inside", ".."])
def test_destinations_on_top_of_the_source(
    place: str, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = os.listdir(llama)
    flags = ["--mlx-path", str(llama / place), "--force"]
    assert main(["--hf-path", str(llama), "-q", *flags]) == 2
    assert "--mlx-path" in capsys.readouterr().err
    assert os.listdir(llama) == names
