"""The command `convert`: its options, what it prints, what it leaves behind."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pexpect
import pytest

from convert.cli import main
from tests.factories_models import tiny_model, write_checkpoint


def run(source: Path, *flags: str) -> int:
    return main(["--hf-path", str(source), *flags])


def receipt_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "conversion.json").read_text("utf-8"))
    return content


def weights_of(folder: Path) -> dict[str, mx.array]:
    weights: dict[str, mx.array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        weights |= mx.load(str(path))  # type: ignore[arg-type]
    return weights


def rewrite(source: Path, config: dict[str, Any] | None = None, **weights: mx.array | None) -> None:
    """Change a checkpoint: config values, and tensors (`__` for a dot; None takes one away)."""
    held = weights_of(source)
    mx.eval(held)
    for name, array in weights.items():
        name = name.replace("__", ".")
        held.pop(name, None)
        if array is not None:
            held[name] = array
    old = json.loads((source / "config.json").read_text())
    for path in source.glob("model*"):
        path.unlink()
    write_checkpoint(source, old | (config or {}), held)


def test_the_path_is_printed_and_nothing_else_on_stdout(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(llama, "-q", "--bits", "3") == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'mlx_models' / 'llama-3bit'}\n"
    assert "bits each" in err and "\x1b" not in err
    assert run(llama, "--quiet") == 0
    assert capsys.readouterr() == (f"{tmp_path / 'mlx_models' / 'llama-bfloat16'}\n", "")


def test_json_is_the_receipt(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(llama, "-q", "--mlx-path", str(out), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["seconds"] > 0 and printed["peak_memory_bytes"] > 0
    of_this_run = ("seconds", "peak_memory_bytes")  # the file is the same after every run
    assert {k: v for k, v in printed.items() if k not in of_this_run} == receipt_of(out)
    assert printed["source"] == {
        "given": str(llama),
        "origin": "local",
        "repo_id": None,
        "commit": None,
    }
    listed = {entry["file"] for entry in printed["shards"] + printed["files"]}
    assert listed | {"conversion.json"} == set(os.listdir(out))
    tensors = weights_of(out)
    spent = sum(array.nbytes for array in tensors.values())
    assert printed["tensor_bytes"] == spent
    weights = sum(array.size for array in weights_of(llama).values())
    assert printed["parameters"] == weights
    assert printed["bits_per_weight"] == pytest.approx(8 * spent / weights)


def test_the_plan_is_exact_and_writes_nothing(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["-q", "--bits", "5", "--max-shard-size", "150KB", "--mlx-path", str(out)]
    assert run(llama, *flags, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert os.listdir(tmp_path) == ["llama"]
    assert run(llama, *flags) == 0
    written = {path.name: path.stat().st_size for path in out.glob("*.safetensors")}
    assert len(written) > 1
    assert {shard["file"]: shard["bytes"] for shard in plan["shards"]} == written
    assert plan["bits_per_weight"] == round(receipt_of(out)["bits_per_weight"], 4)


def test_the_plan_as_a_table(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(llama, "-q", "--dry-run") == 0
    table = capsys.readouterr().out
    assert re.search(
        r"model\.layers\.0\.mlp\.down_proj\.weight +128x256 +4 bits, groups of 64", table
    )
    assert re.search(r"bits per weight: +4\.\d+", table)
    assert "disk needed:" in table and "peak memory at most:" in table


def test_files_beside_the_weights(llama: Path, tmp_path: Path) -> None:
    (llama / "README.md").write_text("---\nlicense: mit\n---\n# Llama\n")
    (llama / "LICENSE").write_text("do as you like\n")
    (llama / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    (llama / "modeling_evil.py").write_text("raise SystemExit")
    (llama / "notes.bin").write_bytes(b"x")
    rewrite(llama, {"auto_map": {"AutoModel": "modeling_evil.Evil"}, "_name_or_path": "/home/me"})
    out = tmp_path / "out"
    assert run(llama, "-q", "--mlx-path", str(out)) == 0
    for name in ("LICENSE", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (llama / name).read_bytes()
    assert not (out / "modeling_evil.py").exists() and not (out / "notes.bin").exists()
    readme = (out / "README.md").read_text()
    assert readme.startswith("---\nlicense: mit\n") and "library_name: mlx\n" in readme
    assert "Made from a local checkpoint" in readme and readme.endswith("\n# Llama\n")
    config = json.loads((out / "config.json").read_text())
    assert not config.keys() & {"auto_map", "_name_or_path"}


def test_the_template_of_the_toml_goes_into_the_folder(llama: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    out = tmp_path / "out"
    assert run(llama, "--mlx-path", str(out), "--set", f"tokenizer.chat_template={template}") == 0
    assert (out / "chat_template.jinja").read_text() == template.read_text()


def test_layer_rules(llama: Path, tmp_path: Path) -> None:
    toml = tmp_path / "mine.toml"
    toml.write_text(
        f'[model]\nsource = "{llama}"\npath = "{tmp_path / "out"}"\n'
        "[convert]\nquantize = true\n"
        '[[convert.layers]]\npattern = "lm_head"\nkeep = true\n'
        '[[convert.layers]]\npattern = "*.down_proj"\nbits = 8\ngroup_size = 32\n'
    )
    assert main(["--config", str(toml)]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    fine = {"bits": 8, "group_size": 32, "mode": "affine"}
    assert config["quantization"] == {
        "bits": 4,
        "group_size": 64,
        "mode": "affine",
        "model.layers.0.mlp.down_proj": fine,
        "model.layers.1.mlp.down_proj": fine,
    }
    weights = weights_of(tmp_path / "out")
    assert weights["lm_head.weight"].dtype == mx.bfloat16
    assert weights["model.layers.0.mlp.down_proj.scales"].shape == (128, 8)
    kept = receipt_of(tmp_path / "out")["kept"]
    assert [entry["name"] for entry in kept] == ["lm_head.weight"]


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_dtype_of_the_config_holds_under_its_old_and_new_name(
    llama: Path, tmp_path: Path, key: str
) -> None:
    wide = {name: array.astype(mx.float32) for name, array in weights_of(llama).items()}
    config = json.loads((llama / "config.json").read_text())
    del config["torch_dtype"]
    for path in llama.glob("model*"):
        path.unlink()
    write_checkpoint(llama, config | {key: "bfloat16"}, wide)
    out = tmp_path / "out"
    assert run(llama, "--mlx-path", str(out)) == 0
    assert {array.dtype for array in weights_of(out).values()} == {mx.bfloat16}
    assert receipt_of(out)["options"]["dtype"] == "bfloat16"


def test_columns_that_groups_do_not_divide_are_kept_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_model(tmp_path / "odd", "llama", intermediate_size=96)
    out = tmp_path / "out"
    assert run(source, "-q", "--group-size", "64", "--mlx-path", str(out)) == 0
    err = capsys.readouterr().err
    assert "model.layers.0.mlp.down_proj is not quantized" in err and "96 columns" in err
    assert weights_of(out)["model.layers.0.mlp.down_proj.weight"].dtype == mx.bfloat16


def test_what_is_left_out_is_named(llama: Path, qwen2: Path, tmp_path: Path) -> None:
    rewrite(llama, model__layers__0__self_attn__rotary_emb__inv_freq=mx.ones(16))
    assert run(llama, "--mlx-path", str(tmp_path / "a")) == 0
    (dropped,) = receipt_of(tmp_path / "a")["dropped"]
    assert dropped["name"] == "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert dropped["reason"]
    rewrite(qwen2, lm_head__weight=weights_of(qwen2)["model.embed_tokens.weight"])
    assert run(qwen2, "--mlx-path", str(tmp_path / "b")) == 0
    assert [entry["name"] for entry in receipt_of(tmp_path / "b")["dropped"]] == ["lm_head.weight"]


def test_force_replaces_and_nothing_else_does(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(llama, "-q", "--mlx-path", str(out)) == 0
    before = (out / "model.safetensors").read_bytes()
    assert run(llama, "-q", "--bits", "8", "--mlx-path", str(out)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --mlx-path: ")
    assert (out / "model.safetensors").read_bytes() == before
    assert run(llama, "-q", "--bits", "8", "--output-dir", str(out), "--force") == 0
    assert receipt_of(out)["options"]["bits"] == 8
    assert sorted(os.listdir(tmp_path)) == ["llama", "out"]


def test_the_same_conversion_gives_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(llama, "-q", "--mlx-path", str(tmp_path / name)) == 0
    assert sorted(os.listdir(tmp_path / "a")) == sorted(os.listdir(tmp_path / "b"))
    for file in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_terminal_sees_a_bar_and_nobody_else(llama: Path, tmp_path: Path) -> None:
    command = f"python -m convert --hf-path {llama} -q --mlx-path {tmp_path / 'out'}"
    with pexpect.spawn(command, encoding="utf-8", timeout=60) as child:
        shown = child.read()
    assert child.exitstatus == 0 or child.wait() == 0
    assert "MB/s" in shown or "kB/s" in shown or "━" in shown
