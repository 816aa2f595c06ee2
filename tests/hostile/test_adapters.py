"""Adapters that can't be honoured, or are not what they say: refused by name, before any work."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from checkpoint.adapters.read import read_adapter
from checkpoint.source import SourceFolder
from configs.errors import AdapterError, SourceError
from configs.resolve import Layers
from convert.cli import main as convert
from convert.fingerprint import made_of
from convert.prepare import prepare
from inference.cli import main as infer
from inference.load import open_folder
from tests.factories_adapters import factors, mlx_pairs, write_mlx_adapter, write_peft
from tests.factories_inference import edit_json, write_mlx

LAYER = "model.layers.1.self_attn.q_proj"
SHAPE = (128, 64)
A, B = factors(SHAPE, 0)
PAIR = {f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B}
OWN = mlx_pairs({LAYER: SHAPE})
Write = Callable[[Path], Path]


def peft(changes: dict[str, Any] | None = None, **config: Any) -> Write:
    return lambda folder: write_peft(folder, PAIR | (changes or {}), **config)


def own(changes: dict[str, Any] | None = None, **config: Any) -> Write:
    return lambda folder: write_mlx_adapter(folder, OWN | (changes or {}), **config)


def without(file: str) -> Write:
    def write(folder: Path) -> Path:
        peft()(folder)
        (folder / file).unlink()
        return folder

    return write


def renamed(folder: Path) -> Path:
    peft()(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return folder


def cut(folder: Path) -> Path:
    own()(folder)
    file = folder / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    return folder


def prefixless(folder: Path) -> Path:
    peft()(folder)
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), {"x.lora_A.weight": mx.array(A)})
    return folder


def with_config(**changes: Any) -> Write:
    def write(folder: Path) -> Path:
        own()(folder)
        edit_json(folder / "adapter_config.json", **changes)
        return folder

    return write


FILES: dict[str, tuple[Write, str]] = {
    "no folder": (lambda folder: folder / "x", "is not a folder"),
    "no config": (without("adapter_config.json"), "has no adapter_config.json"),
    "no tensors": (without("adapter_model.safetensors"), "has no adapter_model.safetensors"),
    "a pickle": (renamed, "save it as safetensors"),
    "a cut file": (cut, "is truncated"),
    "another kind": (peft(peft_type="IA3"), 'peft_type is "IA3"'),
    "biases": (peft(bias="all"), 'bias is "all"'),
    "a bias": (peft({f"{LAYER}.lora_B.bias": np.zeros(128)}), "is of an unknown kind"),
    "modules to save": (peft(modules_to_save=["lm_head"]), "modules_to_save can't be honoured"),
    "a whole weight": (peft({"lm_head.weight": A}), "is a whole weight beside the adapter"),
    "replicated layers": (peft(layer_replication=[[0, 1]]), "layer_replication can't be"),
    "parameters": (peft(target_parameters=["experts.up"]), "target_parameters can't be"),
    "an unknown key": (peft(use_frobnication=True), "use_frobnication can't be honoured"),
    "PiSSA": (peft(init_lora_weights="pissa"), "may change the base model's weights"),
    "a pattern": (peft(rank_pattern={"(a+)+b": 2}), "only names, or ends of names"),
    "another rank": (peft(r=5), "says rank 5"),
    "a rank of text": (peft(r="4"), 'r is "4", where a whole number from 1'),
    "no alpha": (peft(lora_alpha=...), "lora_alpha is not there"),
    "a lone factor": (peft({f"{LAYER}2.lora_A.weight": A}), "has no B beside it"),
    "no prefix": (prefixless, "does not begin with base_model.model."),
    "a magnitude": (peft({f"{LAYER}.lora_magnitude_vector": A[0]}), "knows nothing"),
    "no magnitude": (peft(use_dora=True), "has no magnitude"),
    "integers": (peft({f"{LAYER}.lora_A.weight": A.astype(np.int32)}), "is I32, and not one of"),
    "whole weights": (own(kind="full"), 'fine_tune_type "full"'),
    "an unknown type": (own(kind="moft"), 'fine_tune_type is "moft"'),
    "alpha for scale": (own(alpha=16), "mlx-lm's own name is scale"),
    "no scale": (own(scale=...), "scale is not there"),
    "an infinite scale": (own(scale=1e300), "scale is 1e+300, where a number"),
    "no layers": (with_config(num_layers=None), "num_layers is not there"),
    "no parameters": (with_config(lora_parameters=None), "has no lora_parameters"),
    "keys of numbers": (own(keys=[1]), "keys of lora_parameters is no list"),
    "another rank of mlx's": (own(rank=3), "says rank 3"),
    "a stray tensor": (own({"model.norm.weight": A}), "is none of an adapter's tensors"),
    "a lone a": (own({"x.lora_a": A}), "has no lora_b beside it"),
    "stacks of two sizes": (
        own({"x.lora_a": np.zeros((2, 4, 8)), "x.lora_b": np.zeros((3, 8, 4))}),
        "does not go with",
    ),
}
MODELS: dict[str, tuple[Write, str]] = {
    "no such module": (peft({k.replace("q_p", "x_p"): v for k, v in PAIR.items()}), "x_proj"),
    "another size": (peft({f"{LAYER}.lora_A.weight": np.zeros((4, 65))}), "is for a weight of"),
    "turned": (peft(fan_in_fan_out=True), "says fan_in_fan_out true"),
    "no such module of mlx's": (
        own(mlx_pairs({"model.layers.9.mlp.up_proj": (1, 1)})),
        "the model has not: model.layers.9.mlp.up_proj",
    ),
    "another size of mlx's": (own(mlx_pairs({LAYER: (127, 64)})), "is for a weight of shape"),
    "beyond its layers": (own(layers=1), f"does not name: {LAYER}"),
    "not of its keys": (own(keys=["mlp.up_proj"]), f"does not name: {LAYER}"),
    "fewer than its keys": (
        own(keys=["self_attn.q_proj", "mlp.up_proj"]),
        "lacks modules that its config names",
    ),
    "a norm": (own(mlx_pairs({"model.norm": (64, 64)})), "does not name: model.norm"),
}


def unquoted(text: str) -> str:
    return text.replace("'", "").replace('"', "")


@pytest.mark.parametrize("case", FILES)
def test_files_are_refused(case: str, tmp_path: Path) -> None:
    write, told = FILES[case]
    with pytest.raises(SourceError) as raised:
        read_adapter(write(tmp_path / "adapter"))
    assert isinstance(raised.value, AdapterError) or case == "a cut file"
    assert unquoted(told) in unquoted(str(raised.value))


@pytest.mark.parametrize("case", MODELS)
def test_models_that_it_does_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    write, told = MODELS[case]
    adapter = write(tmp_path / "adapter")
    read_adapter(adapter)
    with pytest.raises(AdapterError) as raised:
        open_folder(write_mlx(tmp_path / "model"), adapter=adapter)
    assert unquoted(told) in unquoted(str(raised.value))


def test_both_commands_refuse_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_mlx(tmp_path / "model"))
    adapter = str(own(layers=1)(tmp_path / "adapter"))
    out = tmp_path / "out"
    commands = (
        lambda: infer(["--model", model, "--prompt", "hi", "--adapter", adapter]),
        lambda: convert(["--hf-path", model, "--mlx-path", str(out), "--fuse-adapter", adapter]),
    )
    for command in commands:
        assert command() == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and "does not name" in err and len(err.splitlines()) == 1
    assert not out.exists()


def test_an_adapter_of_nan_is_refused_by_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(write_mlx(tmp_path / "model"))
    adapter = str(own({f"{LAYER}.lora_b": np.full((4, 128), np.nan)})(tmp_path / "adapter"))
    assert infer(["--model", model, "--prompt", "hi", "--adapter", adapter]) == 1
    assert "holds infinite or NaN values for" in capsys.readouterr().err
    out = tmp_path / "out"
    assert convert(["--hf-path", model, "--mlx-path", str(out), "--fuse-adapter", adapter]) == 1
    err = capsys.readouterr().err
    assert f"adapters.safetensors ({LAYER}.lora_b): holds infinite or NaN values" in err
    assert not out.exists()


def test_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    model = write_mlx(tmp_path / "model", "qwen2")
    name = "model.embed_tokens"
    a, b = factors((64, 320), 0)
    pair = {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
    with pytest.raises(AdapterError, match="which the model ties to another"):
        open_folder(model, adapter=write_peft(tmp_path / "adapter", pair))


def test_what_does_not_go_with_fusing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = str(own()(tmp_path / "adapter"))
    for flags in (["--hf-path", "x", "--prove"], ["--verify", "x"], ["--diff", "x", "y"]):
        assert convert([*flags, "--fuse-adapter", adapter]) == 2
        assert "error: --" in capsys.readouterr().err


def test_a_fused_folder_can_t_be_proven_by_its_source_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(write_mlx(tmp_path / "model")), str(tmp_path / "out")
    adapter = str(own()(tmp_path / "adapter"))
    assert convert(["--hf-path", model, "--mlx-path", out, "--fuse-adapter", adapter]) == 0
    assert "Adapter fused into it" in (tmp_path / "out" / "README.md").read_text()
    assert convert(["--verify", out, "--prove"]) == 1
    assert "tells of an adapter" in capsys.readouterr().err


def test_another_adapter_is_another_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(write_mlx(tmp_path / "model")), tmp_path / "out"
    adapter = own()(tmp_path / "adapter")
    before = read_adapter(adapter).digest
    edit_json(adapter / "adapter_config.json", lora_parameters={"rank": 4, "scale": 3.0})
    assert read_adapter(adapter).digest != before
    command = ["--hf-path", model, "--mlx-path", str(out), "--fuse-adapter", str(adapter)]
    assert convert([*command, "--json", "--quiet"]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert receipt["adapter"]["sha256"] == read_adapter(adapter).digest
    given = Layers().resolve()
    found = [
        made_of(prepare(SourceFolder(Path(model), "local"), given, adapter=each), given.convert)
        for each in (None, read_adapter(adapter), read_adapter(own()(tmp_path / "other")))
    ]
    for one, other in itertools.combinations(found, 2):
        assert {name for name in one if one[name] != other[name]} == {"adapter"}
