"""Destinations: refused before any work, staged beside, replaced only by something whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint import disk
from configs.errors import DestinationError, DiskError, UsageError
from convert.destination import check_apart, check_destination, publish, staged


def test_a_new_folder_is_published_whole(tmp_path: Path) -> None:
    destination = check_destination(tmp_path / "out", force=False)
    with staged(destination) as folder:
        (folder / "config.json").write_text("{}")
        assert not destination.path.exists()
        publish(destination)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(destination.path) == ["config.json"]


def test_nothing_is_left_when_the_work_fails(tmp_path: Path) -> None:
    destination = check_destination(tmp_path / "out", force=False)
    with pytest.raises(ZeroDivisionError), staged(destination) as folder:
        (folder / "half").write_text("half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_needs_force_and_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "old").write_text("old")
    with pytest.raises(UsageError, match="--force"):
        check_destination(old, force=False)
    destination = check_destination(old, force=True)
    with staged(destination) as folder:
        (folder / "new").write_text("new")
        assert os.listdir(old) == ["old"]
        publish(destination)
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
    with staged(destination) as folder:
        (folder / "new").write_text("new")
        publish(destination)
    assert not out.is_symlink() and os.listdir(out) == ["new"]
    assert os.listdir(other) == ["kept"]
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_an_empty_folder_needs_no_force(tmp_path: Path) -> None:
    destination = check_destination(tmp_path, force=False)
    assert not destination.replaces


def test_the_old_folder_is_back_when_the_second_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "old").write_text("old")
    destination = check_destination(old, force=True)
    rename = disk.rename

    def fail_to_publish(path: Path, target: Path) -> None:
        if path == destination.staging:
            raise DiskError(path, "can't rename")
        rename(path, target)

    monkeypatch.setattr(disk, "rename", fail_to_publish)
    with pytest.raises(DiskError), staged(destination):
        publish(destination)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(old) == ["old"]


def test_a_replacement_that_was_cut_off_is_undone(tmp_path: Path) -> None:
    destination = check_destination(tmp_path / "out", force=False)
    destination.retired.mkdir()
    (destination.retired / "old").write_text("old")
    with staged(destination):
        assert os.listdir(destination.path) == ["old"]


def test_what_a_dead_process_left_is_cleared(tmp_path: Path) -> None:
    destination = check_destination(tmp_path / "out", force=False)
    destination.staging.mkdir()
    (destination.staging / "half").write_text("half")
    with staged(destination) as folder:
        assert "half" not in os.listdir(folder)


def test_a_second_process_is_told_who_holds_the_destination(tmp_path: Path) -> None:
    destination = check_destination(tmp_path / "out", force=False)
    program = f"""
from pathlib import Path
from convert.destination import check_destination, staged
with staged(check_destination(Path({str(destination.path)!r}), force=False)):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(DestinationError, match=f"process {holder.pid} "), staged(destination):
            pass
        holder.communicate("\n")


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
    with staged(made):
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
