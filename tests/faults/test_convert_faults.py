"""Faults while converting: the destination is absent, old or whole, and the source untouched."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint import disk
from convert import verify
from convert.cli import main
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
        ("pwrite", errno.ENOSPC, 12, ["disk is full after", " of "]),
        ("pwrite", errno.EDQUOT, 12, ["disk is full after", " of "]),
        ("pwrite", errno.EFBIG, 12, ["full", "--max-shard-size"]),
        ("pwrite", errno.EIO, 3, ["model.safetensors", "input/output"]),
        ("preadv", errno.EIO, 20, ["input/output", "model."]),
        ("fsync", errno.EIO, 0, ["sync"]),
        ("fsync", errno.EIO, 3, ["sync"]),
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
    assert sorted(os.listdir(llama.parent)) == (["llama", "out"] if old else ["llama"])
    assert (bytes_of(out) if old else {}) == before
    assert bytes_of(llama) == source


def test_a_close_that_fails_is_no_success(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    close = os.close

    def fail(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        close(descriptor)
        if size > 100_000:  # the shard
            raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "close", fail)
    assert convert(llama) == 1
    assert not (llama.parent / "out").exists()


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


def test_a_flipped_bit_on_the_disk_is_found(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = verify.verify_shards

    def damaged(folder: Path, *rest: Any) -> Any:
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return honest(folder, *rest)

    monkeypatch.setattr("convert.pipeline.verify_shards", damaged)
    assert convert(llama) == 1
    assert "reads back otherwise" in capsys.readouterr().err
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
        staging = tmp_path / ".out.ferry-staging" / "model.safetensors"
        while not staging.exists():
            assert process.poll() is None
            time.sleep(0.02)
        yield process
        process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_cleanly(
    long_conversion: subprocess.Popen[str], number: signal.Signals, code: int, tmp_path: Path
) -> None:
    long_conversion.send_signal(number)
    out, err = long_conversion.communicate(timeout=60)
    assert long_conversion.returncode == code
    assert out == "" and "Traceback" not in err
    assert os.listdir(tmp_path) == ["source"]


def test_a_killed_conversion_leaves_no_destination_and_the_next_run_clears_up(
    long_conversion: subprocess.Popen[str], tmp_path: Path
) -> None:
    long_conversion.kill()
    long_conversion.communicate(timeout=60)
    assert sorted(os.listdir(tmp_path)) == [".out.ferry-staging", "source"]
    flags = ["--mlx-path", str(tmp_path / "out"), "--quiet"]
    assert main(["--hf-path", str(tmp_path / ".out.ferry-staging"), *flags]) == 1
    assert main(["--hf-path", str(tmp_path / "source"), "-q", *flags]) == 0
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]
