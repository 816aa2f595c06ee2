"""The door to the file system: everything read and written whole, every error named."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint import disk
from configs.errors import DiskError, SourceError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    return path


@pytest.mark.parametrize("most", [1, 7, 1 << 30])
def test_reads_and_writes_are_whole(path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(disk, "_MOST_AT_ONCE", most)
    buffer = bytearray(50)
    with disk.reading(path) as fd:
        assert disk.file_bytes(fd, path) == 100
        disk.read_into(fd, path, buffer, 25)
    assert buffer == bytes(range(25, 75))
    fd = disk.open_write(path)
    disk.write_at(fd, path, memoryview(b"abcdefghij"), 95)
    disk.truncate(fd, path, 110)
    disk.fsync(fd, path)
    disk.close(fd, path)
    assert path.read_bytes() == bytes(range(95)) + b"abcdefghij" + bytes(5)


def test_buffers_of_any_shape(path: Path) -> None:
    buffer = bytearray(24)
    with disk.reading(path) as fd:
        disk.read_into(fd, path, memoryview(buffer).cast("H", (3, 4)), 10)
        disk.read_into(fd, path, memoryview(b""), 1000)
    assert buffer == bytes(range(10, 34))


def test_source_that_shrinks(path: Path) -> None:
    """Case 46: what is missing is an error, never zeros."""
    with disk.reading(path) as fd:
        os.truncate(path, 60)
        with pytest.raises(SourceError, match="ends at byte 60, before byte 75") as caught:
            disk.read_into(fd, path, bytearray(50), 25)
    assert caught.value.where == str(path)


def test_read_whole(path: Path) -> None:
    assert disk.read_whole(path, 100) == bytes(range(100))
    with pytest.raises(SourceError, match="is 100 bytes long, more than the 99 allowed"):
        disk.read_whole(path, 99)


ERRORS = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("the file system allows no file this large", "--max-shard-size"),
    errno.EROFS: ("the file system is read-only", "choose a folder"),
    errno.EACCES: ("permission denied", "change the permissions"),
    errno.EIO: ("input/output error", "check the disk"),
    errno.ENODEV: (os.strerror(errno.ENODEV), ""),
}
CALLS: dict[str, Callable[[int, Path], object]] = {
    "preadv": lambda fd, path: disk.read_into(fd, path, bytearray(9), 0),
    "pwrite": lambda fd, path: disk.write_at(fd, path, b"x", 0),
    "ftruncate": lambda fd, path: disk.truncate(fd, path, 9),
    "fsync": lambda fd, path: disk.fsync_folder(path.parent),
    "close": disk.close,
    "open": lambda fd, path: disk.create(path.with_name("new")),
    "fstat": disk.file_bytes,
    "listdir": lambda fd, path: disk.list_folder(path),
}


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.__getitem__)
@pytest.mark.parametrize("call", CALLS)
def test_errors(path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    fd = disk.open_write(path)
    with monkeypatch.context() as patch, pytest.raises(DiskError) as caught:
        patch.setattr(os, call, fail)
        CALLS[call](fd, path)
    os.close(fd)
    what, mend = ERRORS[number]
    assert caught.value.where.startswith(str(path.parent))
    assert what in caught.value.what
    assert mend in caught.value.mend
    assert disk.is_full(caught.value) == (number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@pytest.mark.parametrize(
    ("name", "what"),
    [("n" * 300, "the name is too long"), ("nul\0", "null"), ("file/x", "is a file, not a folder")],
)
def test_paths_that_can_not_be(path: Path, name: str, what: str) -> None:
    """Case 48."""
    for call in (disk.create, disk.open_read, disk.open_write, disk.make_folder):
        with pytest.raises(DiskError, match=what):
            call(path.parent / name)


def test_create_never_replaces(path: Path) -> None:
    with pytest.raises(DiskError, match="can't create: File exists"):
        disk.create(path)
    assert path.read_bytes() == bytes(range(100))


def test_open_write_follows_no_link(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(DiskError, match="can't open"):
        disk.open_write(link)


def test_write_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_whole(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"

    def fail(fd: int, path: Path) -> None:
        raise DiskError(path, "can't sync")

    before = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="can't sync"):
        patch.setattr(disk, "fsync", fail)
        disk.write_whole(tmp_path / "b", b"content")
    assert len(os.listdir("/dev/fd")) == before


def test_folders(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    disk.make_folder(folder, parents=True)
    with pytest.raises(DiskError, match="can't make the folder"):
        disk.make_folder(folder)
    disk.write_whole(folder / "y", b"")
    disk.write_whole(folder / "x", b"")
    disk.fsync_folder(folder)
    assert disk.list_folder(folder) == ["x", "y"]
    assert [disk.is_folder(path) for path in (folder, folder / "x", folder / "x" / "z")] == [
        True,
        False,
        False,
    ]
    assert disk.free_bytes(folder) > 0
    disk.rename(folder, tmp_path / "c")
    (tmp_path / "c" / "out").symlink_to(tmp_path / "a")
    disk.remove_tree(tmp_path / "c")
    assert disk.list_folder(tmp_path) == ["a"]
    with pytest.raises(DiskError, match="there is no such file or folder"):
        disk.remove_tree(tmp_path / "c")
