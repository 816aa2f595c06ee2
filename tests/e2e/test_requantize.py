"""MLX folders as sources: quantized anew, kept as they are, cast, sharded otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import mlx_lm.utils
import pytest

from checkpoint.architecture import explicit
from convert.cli import main
from tests.factories_models import tiny_model
from tests.meaning_in_process import meaning_in_process

KINDS = ("llama", "qwen2", "qwen3_moe")
FORMS = [
    *((bits, group, "affine") for bits, group in ((2, 32), (3, 64), (4, 64), (6, 128), (8, 32))),
    *((4, 32, "mxfp4"), (4, 16, "nvfp4"), (8, 32, "mxfp8")),
]
ODD = (3, 32, "affine")  # a form that none of these has


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(explicit, "transformers_meaning", meaning_in_process)
    with mx.stream(mx.cpu):
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {kind: tiny_model(folder / kind, kind) for kind in KINDS}


def convert(source: Path, out: Path, *flags: str) -> Path:
    assert main(["--hf-path", str(source), "--mlx-path", str(out), "--quiet", *flags]) == 0
    return out


def quantizing(bits: int, group: int, mode: str) -> list[str]:
    return ["-q", "--bits", f"{bits}", "--group-size", f"{group}", "--mode", mode]


def load(folder: Path) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for path in folder.glob("model*.safetensors"):
        tensors |= mx.load(str(path))  # type: ignore[arg-type]
    return tensors


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def assert_same_tensors(one: dict[str, mx.array], other: dict[str, mx.array]) -> None:
    assert one.keys() == other.keys()
    for name, array in other.items():
        assert (one[name].dtype, one[name].shape) == (array.dtype, array.shape), name
        raw = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[array.itemsize]
        assert mx.array_equal(one[name].view(raw), array.view(raw)).item(), name


def plain(tensors: dict[str, mx.array], config: dict[str, Any]) -> dict[str, mx.array]:
    """A folder's weights dequantized by MLX, in float32 and rounded to bfloat16 once."""
    told = config["quantization"]
    default = {"bits": told["bits"], "group_size": told["group_size"], "mode": told["mode"]}
    weights = {}
    for name, array in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf in ("scales", "biases"):
            continue
        if f"{module}.scales" in tensors and leaf == "weight":
            scales, biases = tensors[f"{module}.scales"], tensors.get(f"{module}.biases")
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            form = told.get(module, default)
            array = mx.dequantize(array, scales, biases, **form, dtype=mx.float32)
            array = array.astype(mx.bfloat16)
        weights[name] = array
    return weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maker", ["ours", "mlx-lm"])
def test_a_plain_mlx_folder_is_as_good_as_its_source(
    maker: str, kind: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    between, direct = tmp_path / "between", tmp_path / "direct"
    if maker == "ours":
        convert(sources[kind], between, "--max-shard-size", "200KB")
    else:
        mlx_lm.convert(str(sources[kind]), str(between))
    convert(sources[kind], direct, "-q")
    out = convert(between, tmp_path / "out", "-q")
    assert_same_tensors(load(out), load(direct))
    assert config_of(out) == config_of(direct)
    assert "quantized already" not in (out / "conversion.json").read_text()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_quantized_anew_is_dequantized_and_quantized(
    form: tuple[int, int, str],
    kind: str,
    sources: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = convert(sources[kind], tmp_path / "source", *quantizing(*form))
    capsys.readouterr()
    out = convert(source, tmp_path / "out", *quantizing(*ODD), "--method", "rtn")
    assert "quantized already" in capsys.readouterr().err
    before, found = load(source), load(out)
    weights = plain(before, config_of(source))
    for name in found:
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and f"{module}.scales" in found:
            if module.endswith("mlp.gate"):  # which mlx-lm packs the same way in both
                expected = [before[f"{module}.{part}"] for part in ("weight", "scales", "biases")]
            else:
                expected = mx.quantize(weights[name], group_size=32, bits=3)
            parts = [found[f"{module}.{part}"] for part in ("weight", "scales", "biases")]
            assert all(mx.array_equal(*pair).item() for pair in zip(parts, expected, strict=True))
        elif leaf not in ("scales", "biases"):
            assert mx.array_equal(found[name], weights[name]).item()
    told = config_of(out)["quantization"]
    assert told == config_of(out)["quantization_config"]
    default = {key: value for key, value in told.items() if not isinstance(value, dict)}
    assert default == {"bits": 3, "group_size": 32, "mode": "affine"}
    notes = json.loads((out / "conversion.json").read_text())["notes"]
    assert any("quantized already" in note and f"{form[0]} bits" in note for note in notes)
    mlx_lm.utils.load_model(out)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "not asked for"])
def test_the_same_form_keeps_the_codes(
    asked: bool, form: tuple[int, int, str], sources: dict[str, Path], tmp_path: Path
) -> None:
    source = convert(sources["qwen3_moe"], tmp_path / "source", *quantizing(*form))
    flags = quantizing(*form) if asked else []
    out = convert(source, tmp_path / "out", *flags, "--max-shard-size", "100KB")
    assert len(list(out.glob("*.safetensors"))) > 1
    assert_same_tensors(load(out), load(source))
    assert config_of(out)["quantization"] == config_of(source)["quantization"]
    receipts = [json.loads((x / "conversion.json").read_text()) for x in (source, out)]
    for figure in ("parameters", "quantized_parameters", "bits_per_weight", "tensor_bytes"):
        assert receipts[0][figure] == receipts[1][figure]
    mlx_lm.utils.load_model(out)


def test_kept_codes_with_other_scales(sources: dict[str, Path], tmp_path: Path) -> None:
    source = convert(sources["llama"], tmp_path / "source", "-q")
    out = load(convert(source, tmp_path / "out", "--dtype", "float32"))
    for name, array in load(source).items():
        wide = mx.float32 if array.dtype == mx.bfloat16 else array.dtype
        assert out[name].dtype == wide
        assert mx.array_equal(out[name], array.astype(wide)).item(), name


def test_mixed_bits_of_mlx_lm(sources: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    mlx_lm.convert(
        str(sources["llama"]),
        str(source),
        quantize=True,
        q_group_size=32,
        quant_predicate="mixed_3_6",
    )
    told = config_of(source)["quantization"]
    assert {form["bits"] for form in told.values() if isinstance(form, dict)} == {3, 6}
    kept = convert(source, tmp_path / "kept")
    assert_same_tensors(load(kept), load(source))
    mlx_lm.utils.load_model(kept)
    # Of the modules that have the form that is asked for, the codes are kept.
    out = load(convert(source, tmp_path / "out", *quantizing(6, 32, "affine")))
    for name, array in load(source).items():
        module = name.rpartition(".")[0]
        if told.get(module, {}).get("bits") == 6:
            assert mx.array_equal(out[name], array).item(), name


def test_modules_that_the_config_leaves_out(sources: dict[str, Path], tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[convert]\nquantize = true\n[[convert.layers]]\npattern = "lm_head"\nkeep = true\n'
        '[[convert.layers]]\npattern = "*.v_proj"\nbits = 8\ngroup_size = 32\n'
        '[[convert.layers]]\npattern = "*.o_proj"\nmode = "mxfp4"\n'
    )
    source = convert(sources["llama"], tmp_path / "source", "--config", str(rules))
    config = config_of(source)
    config["quantization"]["lm_head"] = False
    (source / "config.json").write_text(json.dumps(config))
    kept = convert(source, tmp_path / "kept")
    assert_same_tensors(load(kept), load(source))
    mlx_lm.utils.load_model(kept)
    out = convert(source, tmp_path / "out", "-q", "--bits", "5", "--method", "rtn")
    expected = mx.quantize(load(sources["llama"])["lm_head.weight"], bits=5, group_size=64)
    assert mx.array_equal(load(out)["lm_head.weight"], expected[0]).item()
    assert config_of(out)["quantization"] == {"bits": 5, "group_size": 64, "mode": "affine"}


def test_experts_packed_one_by_one(sources: dict[str, Path], tmp_path: Path) -> None:
    """As folders of early days have them; mlx-lm stacks them when it loads one."""
    source = convert(sources["qwen3_moe"], tmp_path / "source", "-q", "--group-size", "32")
    expected = load(convert(source, tmp_path / "expected", *quantizing(*ODD)))
    tensors = load(source)
    mx.eval(tensors)
    for name in [name for name in tensors if ".switch_mlp." in name]:
        stack = tensors.pop(name)
        for expert in range(stack.shape[0]):
            tensors[name.replace("switch_mlp", f"experts.{expert}")] = stack[expert]
    (source / "model.safetensors.index.json").unlink()
    mx.save_safetensors(str(source / "model.safetensors"), tensors, metadata={"format": "mlx"})
    assert_same_tensors(load(convert(source, tmp_path / "out", *quantizing(*ODD))), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 8}, "where 8 bits, groups of 64, affine takes"),
        ({"group_size": 32}, "where 4 bits, groups of 32, affine takes"),
        ({"mode": "mxfp4", "group_size": 32}, "has scales"),
        ({"bits": "four"}, "bits"),
        ({"mode": "fancy"}, "mode"),
        ({"lm_head": False}, "is not quantized"),
    ],
    ids=str,
)
def test_packed_otherwise_than_the_config_says(
    change: dict[str, Any],
    said: str,
    sources: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = convert(sources["llama"], tmp_path / "source", "-q")
    config = config_of(source)
    config["quantization"] |= change
    (source / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out"), "-q"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [[], ["-q"], ["-q", "--mode", "mxfp4"]], ids=str)
@pytest.mark.parametrize("limit", ["1", "80KB", "100TB"])
def test_shards_of_any_size_in_and_out(
    limit: str, flags: list[str], sources: dict[str, Path], tmp_path: Path
) -> None:
    direct = convert(sources["qwen3_moe"], tmp_path / "direct", *flags)
    out = convert(sources["qwen3_moe"], tmp_path / "out", *flags, "--max-shard-size", limit)
    again = convert(out, tmp_path / "again", *flags)
    files = {path.name: load_one(path) for path in out.glob("*.safetensors")}
    modules = {name.rpartition(".")[0] for tensors in files.values() for name in tensors}
    if limit == "1":
        assert len(files) == len(modules)
    elif limit == "100TB":
        assert list(files) == ["model.safetensors"]
    else:
        sizes = [sum(array.nbytes for array in tensors.values()) for tensors in files.values()]
        assert len(sizes) > 2 and all(
            size <= 80_000 or len({n.rpartition(".")[0] for n in tensors}) == 1
            for size, tensors in zip(sizes, files.values(), strict=True)
        )
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert index == {name: file for file, tensors in files.items() for name in tensors}
    for folder in (out, again):
        assert_same_tensors(load(folder), load(direct))
    mlx_lm.utils.load_model(out)


def load_one(path: Path) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = mx.load(str(path))  # type: ignore[assignment]
    return tensors
