"""What would take a user of `convert` by surprise: said beforehand, refused, or not so."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pexpect
import pytest

from convert.cli import main
from tests.factories_gguf import write_gguf
from tests.factories_models import tiny_model
from tests.factories_quantized import quantized_pair
from tests.formats.test_gptq_awq import Gptq

Capture = pytest.CaptureFixture[str]
BROKEN = "{% for a in b %}\n{{ a }\n{% endfor %}"


def convert(source: Path, out: Path, *flags: str) -> int:
    return main(["--hf-path", str(source), "--mlx-path", str(out), *flags])


def test_no_stderr_at_all(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    code = convert(llama, tmp_path / "out")
    monkeypatch.undo()
    assert code == 0 and (tmp_path / "out" / "conversion.json").is_file()


def test_the_current_folder_is_gone(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["--hf-path", str(llama), "-q"]) == 1
    err = capsys.readouterr().err
    assert err == "error: the current folder: is no longer there; change to another one: cd\n"


def test_the_command_to_run_it_can_be_pasted(llama: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "a model's $HOME"
    assert convert(llama, out) == 0
    assert f"infer --model {shlex.quote(str(out))} --prompt" in capsys.readouterr().err


def test_a_chat_template_that_is_none_is_refused(
    llama: Path, tmp_path: Path, capsys: Capture
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(BROKEN)
    out = tmp_path / "out"
    assert convert(llama, out, "--chat-template", str(template)) == 1
    assert capsys.readouterr().err.startswith(f"error: {template}:2: ") and not out.exists()
    template.write_bytes(b"{{ '\xff' }}")
    assert convert(llama, out, "--chat-template", str(template)) == 1
    assert "is not UTF-8" in capsys.readouterr().err


def test_a_broken_template_of_the_source_is_warned_of(
    llama: Path, tmp_path: Path, capsys: Capture
) -> None:
    (llama / "chat_template.jinja").write_text(BROKEN)
    assert convert(llama, tmp_path / "out") == 0
    told = f"warning: the chat template can't be used: {llama}/chat_template.jinja:2: "
    assert told in capsys.readouterr().err
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0].content }}")
    assert convert(llama, tmp_path / "other", "--chat-template", str(template)) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("act_order", "flags", "became"),
    [
        (False, (), "kept: the same codes, scales and biases rounded"),
        (True, (), "dequantized (--quantize packs them again)"),
        (False, ("--dequantize",), "dequantized"),
        (False, ("-q", "--bits", "3"), "quantized anew"),
    ],
)
def test_what_becomes_of_quantized_weights_is_said(
    act_order: bool, flags: tuple[str, ...], became: str, tmp_path: Path, capsys: Capture
) -> None:
    form = Gptq(4, 32, act_order=act_order, symmetric=False, v2=False)
    source, _ = quantized_pair(tmp_path, "llama", form.settings, form)
    out = tmp_path / "out"
    assert convert(source, out, "--dry-run", *flags) == 0
    name = "GPTQ, 4 bits, groups of 32" + (", act-order" if act_order else "")
    said = f"{source}: 14 weights are {name}: {became}\n"
    assert said in capsys.readouterr().err
    assert convert(source, out, *flags) == 0
    assert said in capsys.readouterr().err
    receipt = json.loads((out / "conversion.json").read_text())
    kept = [note for note in receipt["notes"] if "14 weights are GPTQ" in note]
    fact = "no mode of MLX has its grid" if act_order else "MLX has the same codes at 4 bits"
    assert len(kept) == 1 and fact in kept[0]


def test_gguf_beside_other_folders(tmp_path: Path, capsys: Capture) -> None:
    plain = tiny_model(tmp_path / "plain", "llama")
    (tmp_path / "held").mkdir()
    file = write_gguf(plain, tmp_path / "held" / "m.gguf", "llama", "Q4_0")
    out = tmp_path / "out"
    assert convert(file, out) == 0
    for one, other in ((file, out), (out, file.parent), (plain, file), (file, file)):
        capsys.readouterr()
        assert main(["--diff", str(one), str(other)]) == 0, capsys.readouterr()
        assert "(GGUF)" in capsys.readouterr().out
    assert main(["--verify", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {file}: is a GGUF file, whose bytes ")
    for flags in (
        ["--verify", str(plain / "config.json")],
        ["--diff", str(plain / "config.json"), str(out)],
    ):
        assert main(flags) == 1
        assert "config.json: is a file, not a folder; " in capsys.readouterr().err


def test_a_rule_that_no_layer_matches(llama: Path, tmp_path: Path, capsys: Capture) -> None:
    rules = 'convert.layers=[{pattern="*.norm", keep=true}]'
    assert convert(llama, tmp_path / "out", "-q", "--dry-run", "--set", rules) == 2
    err = capsys.readouterr().err
    assert "no layer that can be quantized matches '*.norm'; they are called such as" in err
    assert "'model.embed_tokens'" in err and "without the rule --dry-run lists them" in err


def test_force_takes_no_folder_of_folders_for_a_model(
    llama: Path, tmp_path: Path, capsys: Capture
) -> None:
    documents = tmp_path / "documents"
    (documents / "letters").mkdir(parents=True)
    (documents / "letters" / "one.txt").write_text("dear")
    assert convert(llama, documents, "--force") == 2
    assert "is no model: it holds folders and no config.json" in capsys.readouterr().err
    assert (documents / "letters" / "one.txt").read_text() == "dear"
    (documents / "config.json").write_text("{}")  # a model with templates in a folder, say
    assert convert(llama, documents, "--force") == 0
    assert not (documents / "letters").exists()


def test_addresses_of_the_hub(capsys: Capture) -> None:
    for address in ("https://huggingface.co/Qwen/Qwen3-8B/tree/main", "hf.co/Qwen/Qwen3-8B"):
        assert main(["--hf-path", address]) == 1
        assert "named as org/name: Qwen/Qwen3-8B\n" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--prove",), ("--prove", "-q")])
def test_what_cannot_be_proven_is_told_as_it_is(
    flags: tuple[str, ...], tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("torch")
    form = Gptq(4, 32, act_order=False, symmetric=False, v2=False)
    source, plain = quantized_pair(tmp_path, "llama", form.settings, form)
    assert convert(source, tmp_path / "out", *flags) == 1
    told = f"error: {source}: is quantized (gptq), and a proof reads plain weights alone; "
    assert told in capsys.readouterr().err
    file = write_gguf(plain, tmp_path / "m.gguf", "llama", "Q8_0")
    assert convert(file, tmp_path / "out", *flags) == 1
    assert f"error: {file}: is a GGUF file, and a proof reads" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("columns", [30, 60, 80, 120])
def test_the_bar_keeps_to_one_line(columns: int) -> None:
    call = "tell('model.layers.10.self_attn.q_proj.weight', 123_400_000_000)"
    program = (
        "from convert.progress import progress_bar\n"
        f"with progress_bar(456_700_000_000, quiet=False) as tell: {call}"
    )
    environment = {**os.environ, "COLUMNS": str(columns)}
    with pexpect.spawn(
        sys.executable,
        ["-c", program],
        encoding="utf-8",
        timeout=60,
        dimensions=(24, columns),
        env=environment,  # type: ignore[arg-type]
    ) as child:
        shown = child.read()
    assert "j.weight" in shown and "123.4/456" in shown
    assert shown.count("\x1b[1A") == 1  # a line up, to take the bar away
    assert ("━" in shown) == (columns >= 60)


def test_a_folder_around_the_model(llama: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(llama, tmp_path / "around" / "inner")
    shutil.copytree(llama, tmp_path / "models--org--name" / "snapshots" / "0123")
    for folder, inner in (("around", "inner"), ("models--org--name", "snapshots/0123")):
        assert convert(tmp_path / folder, tmp_path / "out") == 1
        held = tmp_path / folder
        told = f"error: {held}/config.json: is missing; give a folder in it that holds a model: "
        assert capsys.readouterr().err == f"{told}'{inner}'\n"
