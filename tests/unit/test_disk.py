"""The door to the file system: everything read and written whole, every error named."""

from __future__ import annotations

import errno
import fcntl
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


LACKING = [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY]


def refusing(number: int, calls: list[str]) -> Callable[..., int]:
    def refuse(fd: int, command: int) -> int:
        calls.append("full")
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    return refuse


@pytest.mark.parametrize("number", [0, *LACKING])
def test_the_full_sync_of_macos(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """It alone reaches the device; where the file system has none, fsync is the most there is."""
    calls: list[str] = []
    monkeypatch.setattr(disk, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", refusing(number, calls))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("plain"))
    fd = disk.open_write(path)
    disk.fsync(fd, path)
    disk.close(fd, path)
    disk.fsync_folder(path.parent)
    assert calls == (["full", "plain"] if number else ["full"]) * 2


def test_a_full_sync_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", refusing(errno.EIO, []))
    fd = disk.open_write(path)
    with pytest.raises(DiskError, match=r"can't sync: .*input/output"):
        disk.fsync(fd, path)
    disk.close(fd, path)


@pytest.mark.parametrize("number", LACKING)
def test_folders_that_can_not_be_synced(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    disk.fsync_folder(path.parent)
    fd = disk.open_write(path)
    with pytest.raises(DiskError, match="can't sync"):
        disk.fsync(fd, path)
    disk.close(fd, path)


def test_locks(path: Path) -> None:
    first, second = disk.open_lock(path), disk.open_lock(path)
    assert disk.lock(first, path) and not disk.lock(second, path)
    disk.close(first, path)
    assert disk.lock(second, path)
    disk.close(second, path)
    assert path.read_bytes() == bytes(range(100))


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOLCK, "the file system gives out no locks"),
        (errno.ENOTSUP, "the file system does not support it"),
        (errno.EOPNOTSUPP, "the file system does not support it"),
    ],
)
def test_file_systems_without_locks(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    def fail(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    fd = disk.open_lock(path)
    with pytest.raises(DiskError, match=f"can't lock: {what}; choose a folder on another disk"):
        disk.lock(fd, path)
    disk.close(fd, path)


def test_whether_a_path_still_leads_to_an_open_file(path: Path) -> None:
    fd = disk.open_lock(path)
    assert disk.is_open_at(fd, path)
    path.unlink()
    assert not disk.is_open_at(fd, path)
    path.write_bytes(b"")
    assert not disk.is_open_at(fd, path)
    disk.close(fd, path)


def test_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    disk.make_folder(folder)
    disk.make_folder(folder, exist_ok=True)
    (folder / "link").symlink_to("nowhere")
    assert disk.is_there(folder / "link") and not disk.is_there(folder / "other")
    assert not disk.is_there(folder / "link" / "below")
    disk.remove_empty_folder(folder)
    assert disk.is_there(folder)
    disk.remove(folder / "link")
    disk.remove_empty_folder(folder)
    assert not disk.is_there(folder)


def test_bytes_held(tmp_path: Path) -> None:
    """Holes take no room, where the file system has holes."""
    path = tmp_path / "inner" / "file"
    disk.make_folder(path.parent)
    disk.write_whole(path, bytes(10_000) + b"x" * 10_000)
    assert disk.size_and_time(path) == (20_000, path.stat().st_mtime_ns)
    held = disk.held_bytes(tmp_path)
    assert 10_000 <= held < 200_000
    os.truncate(path, 1 << 30)
    assert held <= disk.held_bytes(tmp_path) <= 1 << 31


def test_a_file_that_can_not_be_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "close", fail)
    with pytest.raises(DiskError, match="can't close"), disk.reading(path):
        pass


def test_devices_are_left_alone(path: Path) -> None:
    """As root, any of these would take /dev/null away from everybody."""
    null = Path(os.devnull)
    path.write_bytes(b"x")
    for change in (
        lambda: disk.remove(null),
        lambda: disk.rename(path, null),
        lambda: disk.rename(null, path),
    ):
        with pytest.raises(DiskError, match="is a device"):
            change()
    assert null.is_char_device() and path.read_bytes() == b"x"
