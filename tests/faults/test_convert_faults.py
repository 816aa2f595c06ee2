"""Faults while converting: the destination is absent, old or whole, and the source untouched."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from checkpoint import disk
from convert.cli import main
from inference.cli import main as infer
from inference.device import Placement
from inference.load import load, open_folder
from tests.e2e.test_convert_memory import WIDE, sparse_checkpoint


def convert(source: Path, *flags: str) -> int:
    return main(["--hf-path", str(source), "-q", "--mlx-path", str(source.parent / "out"), *flags])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def failing(code: int, call: Callable[..., Any], calls_before: int) -> Callable[..., Any]:
    """A system call that works so many times and then fails for good."""
    made = 0

    def fail(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        if made > calls_before:
            raise OSError(code, os.strerror(code))
        return call(*arguments)

    return fail


@pytest.mark.parametrize(
    ("call", "code", "calls_before", "words"),
    [
        ("pwrite", errno.ENOSPC, 12, ["disk is full after", " of ", "is kept"]),
        ("pwrite", errno.EDQUOT, 12, ["disk is full after", " of ", "is kept"]),
        ("pwrite", errno.EFBIG, 12, ["full", "--max-shard-size", "is kept"]),
        ("pwrite", errno.EIO, 3, ["model.safetensors (model.embed_tokens.weight)", "input/output"]),
        ("preadv", errno.EIO, 20, ["input/output", "model.", "is kept"]),
        ("fsync", errno.EIO, 0, ["sync"]),
        ("fsync", errno.EIO, 3, ["sync", "is kept"]),
        ("ftruncate", errno.ENOSPC, 0, ["full"]),
    ],
)
@pytest.mark.parametrize("old", [False, True], ids=["absent", "old"])
def test_a_system_call_that_fails(
    call: str,
    code: int,
    calls_before: int,
    words: list[str],
    old: bool,
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = llama.parent / "out"
    if old:
        assert convert(llama, "--bits", "2") == 0
    before, source = bytes_of(out) if old else {}, bytes_of(llama)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(code, getattr(os, call), calls_before))
        assert convert(llama, "--force") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    kept = [".out.ferry-staging"] if "is kept" in line else []
    assert sorted(os.listdir(llama.parent)) == [*kept, "llama", *(["out"] if old else [])]
    assert (bytes_of(out) if old else {}) == before
    assert bytes_of(llama) == source


def test_a_close_that_fails_is_no_success(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    close = os.close

    def fail(descriptor: int) -> None:
        found = os.fstat(descriptor)
        written = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        close(descriptor)
        if written and found.st_size > 100_000:  # the shard
            raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "close", fail)
    assert convert(llama) == 1
    assert "model.safetensors: can't close: " in capsys.readouterr().err
    assert os.listdir(llama.parent) == ["llama"]


def test_a_source_that_shrinks_is_named_with_its_tensor(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0
    preadv = os.preadv

    def shrunk(descriptor: int, buffers: list[Any], offset: int) -> int:
        nonlocal calls
        calls += 1
        return 0 if calls > 20 else preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrunk)
    assert convert(llama) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "-of-00003.safetensors (" in line and "ends at byte" in line
    assert os.listdir(llama.parent) == ["llama"]


def test_too_little_room_is_refused_before_work(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 12_345)
    assert convert(llama) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "12,345" in line and "needed" in line
    assert os.listdir(llama.parent) == ["llama"]


@pytest.fixture
def long_conversion(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A conversion of 400 MB that has begun to write."""
    sparse_checkpoint(tmp_path / "source", WIDE)
    command = [sys.executable, "-m", "convert", "--hf-path", str(tmp_path / "source"), "-q"]
    with subprocess.Popen(
        [*command, "--mlx-path", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        journal = tmp_path / ".out.ferry-staging" / "journal"
        while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            time.sleep(0.01)
        yield process
        process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_cleanly(
    long_conversion: subprocess.Popen[str], number: signal.Signals, code: int, tmp_path: Path
) -> None:
    long_conversion.send_signal(number)
    out, err = long_conversion.communicate(timeout=60)
    assert long_conversion.returncode == code
    assert out == "" and err.count("\n") == 1
    assert "is kept: the same command goes on from there, and with --no-resume" in err
    assert sorted(os.listdir(tmp_path)) == [".out.ferry-staging", "source"]
    assert sorted(os.listdir(tmp_path / ".out.ferry-staging")) == ["journal", "model"]


def test_a_killed_conversion_leaves_no_destination_and_the_next_run_goes_on(
    long_conversion: subprocess.Popen[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    long_conversion.kill()
    long_conversion.communicate(timeout=60)
    assert sorted(os.listdir(tmp_path)) == [".out.ferry-staging", "source"]
    staged = tmp_path / ".out.ferry-staging" / "model"
    for unfinished in (staged, staged.parent):
        assert main(["--hf-path", str(unfinished), "--mlx-path", str(tmp_path / "no")]) == 1
        assert infer(["--model", str(unfinished), "--prompt", "Hello"]) == 1
        assert "never finished" in capsys.readouterr().err
    assert (
        main(["--hf-path", str(tmp_path / "source"), "-q", "--mlx-path", str(tmp_path / "out")])
        == 0
    )
    assert "resuming: " in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


def test_a_second_conversion_is_told_who_is_at_it(
    long_conversion: subprocess.Popen[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At once: before the source is even looked for."""
    long_conversion.send_signal(signal.SIGSTOP)
    assert (
        main(["--hf-path", str(tmp_path / "nowhere"), "-q", "--mlx-path", str(tmp_path / "out")])
        == 1
    )
    line = capsys.readouterr().err
    assert f"process {long_conversion.pid} (since " in line
    assert "is converting to this destination; wait for it" in line


def test_files_that_are_open_stay_what_they_were(llama: Path) -> None:
    """A running `infer` keeps its files when its folder is replaced: descriptors and maps."""
    out = llama.parent / "out"
    assert convert(llama, "--bits", "8") == 0
    session = load(open_folder(out), Placement("cpu", "float32"))
    tokens = mx.array([[5, 6, 7]])
    before = session.model(tokens)
    mx.eval(before)
    lazy: dict[str, mx.array] = mx.load(str(out / "model.safetensors"))  # type: ignore[assignment]
    content = (out / "model.safetensors").read_bytes()
    with (out / "model.safetensors").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert convert(llama, "--bits", "2", "--force") == 0
    assert mapped[:] == content != (out / "model.safetensors").read_bytes()
    mapped.close()
    assert mx.array_equal(session.model(tokens), before)
    assert lazy["lm_head.weight"].shape == (320, 32)
    assert mx.array_equal(lazy["lm_head.weight"], session.model.lm_head.weight)


def test_a_pipe_that_nobody_reads_ends_quietly(llama: Path) -> None:
    command = '"$0" -m convert --hf-path "$1" -q --dry-run | head -1; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, str(llama)], capture_output=True, text=True
    )
    first, code = done.stdout.splitlines()
    assert first.startswith("parameter") and (code, done.stderr) == ("0", "")


def test_a_second_ctrl_c_ends_at_once(
    long_conversion: subprocess.Popen[str], tmp_path: Path
) -> None:
    """Even one that comes while the first is still being obeyed; the next run goes on."""
    while long_conversion.poll() is None:
        long_conversion.send_signal(signal.SIGINT)
    assert long_conversion.returncode in (-signal.SIGINT, 130)
    assert os.listdir(tmp_path / ".out.ferry-staging")
    assert not (tmp_path / "out").exists()
