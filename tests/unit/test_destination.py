"""Destinations: refused before any work, staged beside, replaced only by something whole."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint import disk
from configs.errors import DestinationError, DiskError, UsageError
from convert.destination import (
    Destination,
    check_apart,
    check_destination,
    check_not_held,
    clear,
    held,
    leftovers,
    publish,
)


def stage(destination: Destination, name: str) -> None:
    """A staged folder with one file."""
    disk.make_folder(destination.model)
    (destination.model / name).write_text(name)


def test_a_new_folder_is_published_whole(tmp_path: Path) -> None:
    destination = check_destination(tmp_path / "out", force=False)
    with held(destination):
        stage(destination, "config.json")
        assert not destination.path.exists()
        publish(destination)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(destination.path) == ["config.json"]


def test_what_was_staged_stays_until_it_is_cleared(tmp_path: Path) -> None:
    destination = check_destination(tmp_path / "out", force=False)
    with pytest.raises(ZeroDivisionError), held(destination):
        stage(destination, "half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == [".out.ferry-staging"]
    assert os.listdir(destination.staging) == ["model"]
    with held(destination):
        clear(destination)
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_needs_force_and_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "old").write_text("old")
    with pytest.raises(UsageError, match="--force"):
        check_destination(old, force=False)
    destination = check_destination(old, force=True)
    with held(destination):
        stage(destination, "new")
        assert os.listdir(old) == ["old"]
        publish(destination)
        clear(destination)
    assert os.listdir(old) == ["new"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["a link to a folder", "a link to nowhere", "a file"])
def test_whatever_has_the_name_is_replaced_and_nothing_behind_it(kind: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("kept")
    out = tmp_path / "out"
    if kind == "a file":
        out.write_text("file")
    else:
        out.symlink_to(other if kind == "a link to a folder" else tmp_path / "nowhere")
    with pytest.raises(UsageError, match="--force"):
        check_destination(out, force=False)
    destination = check_destination(out, force=True)
    with held(destination):
        stage(destination, "new")
        publish(destination)
        clear(destination)
    assert not out.is_symlink() and os.listdir(out) == ["new"]
    assert os.listdir(other) == ["kept"]
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


@pytest.mark.parametrize("force", [True, False])
def test_a_device_or_pipe_is_never_replaced(force: bool, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path(os.devnull)):
        with pytest.raises(UsageError, match="is a device, a pipe or a socket"):
            check_destination(path, force=force)
    assert pipe.is_fifo()
    assert Path(os.devnull).is_char_device()


def test_an_empty_folder_needs_no_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    destination = check_destination(out, force=False)
    with held(destination):
        stage(destination, "new")
        publish(destination)
    assert os.listdir(out) == ["new"]


def test_what_came_to_the_destination_since_it_was_checked_stays(tmp_path: Path) -> None:
    destination = check_destination(tmp_path / "out", force=False)
    disk.write_whole(tmp_path / "out", b"somebody's")
    with pytest.raises(UsageError, match="exists already"), held(destination):
        pass
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("call", ["rename", "fsync_folder"])
def test_the_old_folder_is_back_when_publishing_fails(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "old").write_text("old")
    destination = check_destination(old, force=True)
    honest = getattr(disk, call)
    refused = destination.model if call == "rename" else tmp_path

    def fail(path: Path, *target: Path) -> None:
        if path == refused:
            raise DiskError(path, f"can't {call}")
        honest(path, *target)

    with held(destination):
        stage(destination, "new")
        with monkeypatch.context() as patch, pytest.raises(DiskError):
            patch.setattr(disk, call, fail)
            publish(destination)
        assert os.listdir(old) == ["old"]
        assert os.listdir(destination.model) == ["new"]
        assert sorted(os.listdir(tmp_path)) == [".out.ferry-staging", "out"]


def test_a_replacement_that_was_cut_off_is_undone_and_done_again(tmp_path: Path) -> None:
    old = tmp_path / ".out.ferry-old"
    old.mkdir()
    (old / "old").write_text("old")
    destination = check_destination(tmp_path / "out", force=True)
    with held(destination):
        assert os.listdir(destination.path) == ["old"]
        stage(destination, "new")
        publish(destination)
        clear(destination)
    assert os.listdir(destination.path) == ["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_replacement_that_was_cut_off_needs_force_again(tmp_path: Path) -> None:
    old = tmp_path / ".out.ferry-old"
    old.mkdir()
    (old / "old").write_text("old")
    destination = check_destination(tmp_path / "out", force=False)
    with pytest.raises(UsageError, match="exists already"), held(destination):
        pass
    assert os.listdir(destination.path) == ["old"]


def test_an_old_folder_that_could_not_be_removed_is_so_by_the_next(tmp_path: Path) -> None:
    for name in ("out", ".out.ferry-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    destination = check_destination(tmp_path / "out", force=True)
    with held(destination):
        stage(destination, "new")
        publish(destination)
        clear(destination)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(destination.path) == ["new"]


HOLDER = """
from pathlib import Path
from convert.destination import check_destination, held
with held(check_destination(Path({path!r}), force=False)):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the destination `out` until it is told a line."""
    program = HOLDER.format(path=str(tmp_path / "out"))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_who_holds_the_destination(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    destination = check_destination(tmp_path / "out", force=False)
    told = rf"process {holder.pid} \(since 20.*\) is converting"
    with pytest.raises(DestinationError, match=told):
        check_not_held(destination)
    with pytest.raises(DestinationError, match=told), held(destination):
        pass
    (destination.staging / "owner.json").write_bytes(b"\xff")
    with pytest.raises(DestinationError, match="another process is converting"):
        check_not_held(destination)
    other = check_destination(tmp_path / "other", force=False)
    assert [each.path.name for each in leftovers(other)] == []
    holder.communicate("\n")
    check_not_held(destination)
    with held(destination):
        pass
    assert os.listdir(tmp_path) == []


def test_a_killed_holder_holds_nothing(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    destination = check_destination(tmp_path / "out", force=False)
    check_not_held(destination)
    assert os.listdir(tmp_path) == [".out.ferry-staging"]
    with held(destination):
        assert os.listdir(destination.staging) == ["owner.json"]


def test_the_lock_is_not_one_that_another_process_has_just_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our opening the lock file and our locking it, its holder goes and another comes."""
    destination = check_destination(tmp_path / "out", force=False)
    path = destination.staging / "owner.json"
    lock, taken = disk.lock, []

    def late(file: int, its_path: Path) -> bool:
        if not taken:
            path.unlink()
            other = disk.open_lock(path)
            taken.append(other)
            assert lock(other, path)
        return lock(file, its_path)

    monkeypatch.setattr(disk, "lock", late)
    with pytest.raises(DestinationError, match="is converting"), held(destination):
        pass
    disk.close(taken[0], path)


def test_the_staging_folder_may_go_before_its_lock_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = check_destination(tmp_path / "out", force=False)
    make, times = disk.make_folder, []

    def gone(path: Path, **how: bool) -> None:
        make(path, **how)
        times.append(path)
        if len(times) == 1:
            path.rmdir()

    monkeypatch.setattr(disk, "make_folder", gone)
    with held(destination):
        assert times == [destination.staging] * 2


def test_a_staging_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    (tmp_path / ".out.ferry-staging").symlink_to(tmp_path / "precious")
    destination = check_destination(tmp_path / "out", force=False)
    with pytest.raises(DestinationError, match="is a symbolic link"), held(destination):
        pass
    other = check_destination(tmp_path / "other", force=False)
    assert list(leftovers(other)) == []
    assert os.listdir(tmp_path / "precious") == ["file"]


def test_leftovers_are_those_of_other_destinations(tmp_path: Path) -> None:
    for name in (".a.ferry-staging", ".out.ferry-staging", ".ferry-staging", "..ferry-staging"):
        (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / ".b.ferry-staging").write_text("a file")
    destination = check_destination(tmp_path / "out", force=False)
    assert [each.path for each in leftovers(destination)] == [tmp_path / "a"]
    assert os.listdir(tmp_path / ".a.ferry-staging") == ["model"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    destination = check_destination(tmp_path / "out", force=False)
    check_not_held(destination)
    told = r"can't lock: .*choose a folder on another disk"
    with pytest.raises(DiskError, match=told), held(destination):
        pass


@pytest.mark.parametrize("place", ["", "inside", ".."])
def test_the_source_is_never_the_destination(tmp_path: Path, place: str) -> None:
    source = tmp_path / "models" / "source"
    source.mkdir(parents=True)
    destination = check_destination(source / place, force=True)
    with pytest.raises(UsageError):
        check_apart(destination, source)


def test_folders_that_hold_more_than_a_model_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    for path in (here, tmp_path, Path.home(), Path("/")):
        with pytest.raises(UsageError, match="more than a model"):
            check_destination(path, force=True)


def test_a_missing_parent_is_refused_unless_it_is_ours_to_make(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="mkdir -p"):
        check_destination(tmp_path / "missing" / "out", force=False)
    made = check_destination(tmp_path / "missing" / "out", force=False, make_parent=True)
    with held(made):
        stage(made, "new")
        publish(made)
    assert made.path.is_dir()


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="too long"):
        check_destination(tmp_path / ("x" * 250), force=False)


def test_a_parent_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(DestinationError, match="can't be written"):
        check_destination(tmp_path / "out", force=False)
