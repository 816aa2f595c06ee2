"""Interrupted conversions: kept, gone on with by the same command, and the same to the byte."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from convert import blocks, fingerprint
from convert.cli import main
from tests.cli.test_convert import rewrite
from tests.faults.conversion import files_of
from tests.faults.faulty import Interrupting, Recording, below_disk

SHARDS = ("--max-shard-size", "100KB")
BLOCKS = 51


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20_000)


@pytest.fixture
def out(llama: Path) -> Path:
    return llama.parent / "place" / "out"


def convert(source: Path, out: Path, *flags: str) -> int:
    out.parent.mkdir(exist_ok=True)
    return main(["--hf-path", str(source), "-q", "--mlx-path", str(out), *SHARDS, *flags])


def journal_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.ferry-staging") / "journal"


def finished(out: Path) -> int:
    """Blocks that the journal names."""
    return journal_of(out).read_bytes().count(b"\n") - 1


def interrupt(source: Path, out: Path, *flags: str) -> None:
    """Ctrl-C after some blocks."""
    with below_disk(Interrupting("pwrite", 140, KeyboardInterrupt())):
        assert convert(source, out, *flags) == 130
    assert BLOCKS / 2 < finished(out) < BLOCKS


def resumed(source: Path, out: Path, *flags: str) -> int:
    """Blocks that a run which completes makes, seen from what it adds to the journal."""
    with below_disk(calls := Recording()):
        assert convert(source, out, *flags) == 0
    return calls.events.count(("write", str(journal_of(out)))) - 1


def reference(source: Path, *flags: str) -> dict[str, bytes]:
    """What an uninterrupted run makes."""
    folder = source.parent / "reference" / "out"
    assert convert(source, folder, "--force", "--quiet", *flags) == 0
    return files_of(folder)


def test_ctrl_c_keeps_and_the_same_command_goes_on(
    llama: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = reference(llama)
    capsys.readouterr()
    interrupt(llama, out)
    shown = capsys.readouterr()
    assert shown.out == ""
    line = re.fullmatch(
        r"(\d\.\d) MB of (\d\.\d) MB is kept: the same command goes on from there,"
        r" and with --no-resume it starts over\n",
        shown.err,
    )
    assert line is not None and os.listdir(out.parent) == [".out.ferry-staging"]
    before = finished(out)
    assert resumed(llama, out) == BLOCKS - before
    assert f"resuming: {line[1]} MB of {line[2]} MB kept\n" in capsys.readouterr().err
    assert files_of(out) == whole
    assert os.listdir(out.parent) == ["out"]
    assert resumed(llama, out, "--force") == BLOCKS


def test_interrupted_again_and_again(llama: Path, out: Path) -> None:
    whole, runs = reference(llama), 0
    while not out.exists():
        runs += 1
        with below_disk(Interrupting("pwrite", 30, KeyboardInterrupt())):
            convert(llama, out)
    assert runs > 4
    assert files_of(out) == whole


@pytest.mark.parametrize("flag", ["--quiet", "--json", "--verbose", "--debug"])
def test_how_it_is_shown_changes_nothing(flag: str, llama: Path, out: Path) -> None:
    interrupt(llama, out)
    before = finished(out)
    assert resumed(llama, out, flag) == BLOCKS - before
    assert files_of(out) == reference(llama)


@pytest.mark.parametrize(
    ("part", "flags"),
    [
        ("options", ["--bits", "3"]),
        ("options", ["--group-size", "32"]),
        ("options", ["--dtype", "float16"]),
        ("options", ["--max-shard-size", "1MB"]),
        ("chat template", ["--set", "tokenizer.chat_template='TEMPLATE'"]),
    ],
)
def test_other_options_start_over(
    part: str, flags: list[str], llama: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = llama.parent / "template.jinja"
    template.write_text("{{ messages }}")
    flags = [flag.replace("TEMPLATE", str(template)) for flag in flags]
    interrupt(llama, out)
    capsys.readouterr()
    assert convert(llama, out, *flags) == 0
    assert f"starting over: the interrupted conversion differs in its {part}\n" in (
        capsys.readouterr().err
    )
    assert files_of(out) == reference(llama, *flags)


def touched(source: Path) -> None:
    path = source / "model-00002-of-00003.safetensors"
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def changed(source: Path) -> None:
    rewrite(source, model__norm__weight=mx.full((128,), 2.0, mx.bfloat16))


def configured(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rope_theta": 50_000.0}))


@pytest.mark.parametrize(
    ("part", "change"), [("source", touched), ("source", changed), ("model config", configured)]
)
def test_another_source_starts_over(
    part: str,
    change: Callable[[Path], None],
    llama: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt(llama, out)
    change(llama)
    capsys.readouterr()
    assert convert(llama, out) == 0
    assert f"starting over: the interrupted conversion differs in its {part}\n" in (
        capsys.readouterr().err
    )
    assert files_of(out) == reference(llama)


def test_another_version_starts_over(
    llama: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(llama, out)
    monkeypatch.setattr(fingerprint, "__version__", "0.0.1")
    assert convert(llama, out) == 0
    assert "differs in its version of mlx, mlx-lm or mlx-ferry\n" in capsys.readouterr().err


def test_no_resume_starts_over(llama: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupt(llama, out)
    capsys.readouterr()
    assert resumed(llama, out, "--no-resume") == BLOCKS
    assert "resuming" not in capsys.readouterr().err


def zeroed(staging: Path) -> None:
    path = staging / "model" / "model-00001-of-00003.safetensors"
    with path.open("r+b") as file:
        file.seek(-5_000, os.SEEK_END)
        file.write(bytes(5_000))


def cut(staging: Path) -> None:
    os.truncate(staging / "model" / "model-00001-of-00003.safetensors", 50_000)


def lost(staging: Path) -> None:
    (staging / "model" / "model-00001-of-00003.safetensors").unlink()


def header_lost(staging: Path) -> None:
    with (staging / "model" / "model-00001-of-00003.safetensors").open("r+b") as file:
        file.write(bytes(64))


def torn(staging: Path) -> None:
    path = staging / "journal"
    os.truncate(path, path.stat().st_size - 4)


def garbled(staging: Path) -> None:
    path = staging / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3], lines[4], lines[5] = b"\0" * 30, b"\xff 7\n", b"999999 00000000 11111111 22222222\n"
    path.write_bytes(b"".join([*lines, b"7 00000000\n", b"7 000000000 1 2\n", b"-1 00000000\n"]))


@pytest.mark.parametrize("damage", [zeroed, cut, lost, header_lost, torn, garbled])
def test_what_power_loss_may_leave(damage: Callable[[Path], None], llama: Path, out: Path) -> None:
    """What is not as it was written is made anew, and only that."""
    interrupt(llama, out)
    left = BLOCKS - finished(out)
    damage(journal_of(out).parent)
    made = resumed(llama, out)
    assert files_of(out) == reference(llama)
    assert left <= made < BLOCKS
    assert (made > left) == (damage is not header_lost)


@pytest.mark.parametrize("content", [b"", b"{}\n0 00000000\n", b"\0" * 5_000, b'["a"]\n', b"{"])
def test_a_journal_that_says_nothing_is_cleared(content: bytes, llama: Path, out: Path) -> None:
    interrupt(llama, out)
    journal_of(out).write_bytes(content)
    assert resumed(llama, out) == BLOCKS
    assert files_of(out) == reference(llama)
    assert "journal" not in os.listdir(out)


def test_what_does_not_read_back_is_made_anew(
    llama: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = reference(llama)
    with monkeypatch.context() as patch:
        sync, damaged = os.fsync, []

        def damaging(file: int) -> None:
            sync(file)
            size = os.fstat(file).st_size
            if size > 60_000 and not damaged:
                damaged.append(os.pwrite(file, bytes(2), size - 2))

        patch.setattr(os, "fsync", damaging)
        assert convert(llama, out) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "reads back otherwise than it was written; check the disk; " in line
    assert line.endswith("is kept: the same command goes on from there")
    assert not out.exists()
    left = BLOCKS - finished(out)
    assert resumed(llama, out) == left + 1
    assert files_of(out) == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_keeps_what_is_finished(
    code: int, llama: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = reference(llama)
    with below_disk(Interrupting("pwrite", 80, OSError(code, os.strerror(code)))):
        assert convert(llama, out) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and line.endswith(
        "is kept: the same command goes on from there"
    )
    assert resumed(llama, out) < BLOCKS - 10
    assert files_of(out) == whole


def test_a_shard_that_can_not_be_synced_is_not_believed(llama: Path, out: Path) -> None:
    """After a failed fsync the system shows what may never have reached the disk."""
    whole = reference(llama)
    with below_disk(Interrupting("fsync", 2, OSError(errno.EIO, os.strerror(errno.EIO)))):
        assert convert(llama, out) == 1
    staged = journal_of(out).with_name("model")
    assert sorted(os.listdir(staged)) == ["model-00001-of-00003.safetensors"]
    assert 0 < resumed(llama, out) < BLOCKS
    assert files_of(out) == whole


def test_a_source_that_no_run_can_convert_leaves_nothing(llama: Path, out: Path) -> None:
    rewrite(llama, model__norm__weight=mx.full((128,), float("nan"), mx.bfloat16))
    assert convert(llama, out) == 1
    assert os.listdir(out.parent) == []


def test_others_leftovers(llama: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of no use: removed. Somebody's work: named with its size. Held: left alone."""
    interrupt(llama, out.with_name("kept"))
    interrupt(llama, out.with_name("useless"))
    journal_of(out.with_name("useless")).write_bytes(b"{}")
    (out.parent / ".older.ferry-staging").mkdir()
    (out.parent / ".older.ferry-staging" / "config.json").write_text("{}")
    (out.parent / "a file.ferry-staging").write_text("not ours")
    capsys.readouterr()
    assert convert(llama, out) == 0
    err = capsys.readouterr().err
    kept = out.parent / ".kept.ferry-staging"
    assert re.search(
        rf"^{re.escape(str(kept))} \(0\.\d MB\) is an interrupted conversion to"
        rf" {re.escape(str(out.with_name('kept')))};",
        err,
        re.MULTILINE,
    )
    assert "useless" not in err and "older" not in err
    assert sorted(os.listdir(out.parent)) == [kept.name, "a file.ferry-staging", "out"]
    assert sorted(os.listdir(kept)) == ["journal", "model"]
    assert resumed(llama, out.with_name("kept")) < BLOCKS


def test_an_interrupted_run_needs_no_room_for_what_it_has(
    llama: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(llama, out)
    monkeypatch.setattr("checkpoint.disk.free_bytes", lambda path: 64 << 20)
    assert convert(llama, out) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    needed = int(re.search(r"([\d,]+) bytes are needed", line)[1].replace(",", ""))  # type: ignore[index]
    assert 64 << 20 < needed < (64 << 20) + 200_000
    assert "is kept: the same command goes on from there" in line
