"""The directory of a zip archive whose entries are stored as they are, so that each can be
read in place.

Owns the format's rules: every entry once, inside the file, over no other, named alike in
both of its headers; nothing compressed or encrypted. Allocates nothing on a header's word
and reads no entry but to hold it to its checksum. Knows nothing of what the entries are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from checkpoint import disk
from checkpoint.at_once import StoppedError, at_once
from checkpoint.json_file import quoted
from checkpoint.pickles.unpickle import SAVE_AGAIN
from configs.errors import PickleError

_AGAIN = "download it again"
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DIRECTORY_LIMIT = 64 << 20
_LONGEST_COMMENT = (1 << 16) - 1
_ENCRYPTED = 1
_ZIP_64 = 1
_HERE_32, _HERE_16 = 0xFFFFFFFF, 0xFFFF
_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive.

    Attributes:
        name: Its path there.
        offset: Its first byte, counted from the start of the archive.
        size: Its bytes.
        crc: Its checksum.
    """

    name: str
    offset: int
    size: int
    crc: int


def read_entries(
    fd: int, path: Path, look: Callable[[Path, Collection[str]], None] = lambda path, names: None
) -> dict[str, Entry]:
    """The entries of an open archive by name, in the order of their bytes.

    Args:
        fd: The open archive.
        path: Its path.
        look: Called with the path and all names, before any entry is refused.

    Raises:
        PickleError: It is no whole zip archive, or has an entry that can't be read in place.
        DiskError: It can't be read.
    """
    size = disk.file_bytes(fd, path)
    count, start, length = _directory(fd, path, size)
    if length > _DIRECTORY_LIMIT:
        raise PickleError(path, f"has a zip directory of {length:,} bytes", SAVE_AGAIN)
    if start + length > size:
        raise _damaged(path, "its zip directory lies beyond its end")
    directory = _read(fd, path, length, start)
    listed: dict[str, tuple[int, int, int]] = {}
    refused: list[str] = []
    at = 0
    for _ in range(count):
        name, place, why, at = _central(path, directory, at)
        refused += [f"has the {why} zip entry {quoted(name)}"] if why else []
        if name in listed:
            raise PickleError(path, f"has the zip entry {quoted(name)} twice", SAVE_AGAIN)
        listed[name] = place
    if at != length:
        raise _damaged(path, "its zip directory has other entries than it says")
    look(path, listed)
    if refused:
        raise PickleError(path, f"{refused[0]}, which PyTorch does not write", SAVE_AGAIN)
    entries: dict[str, Entry] = {}
    end = 0
    for name, (header, nbytes, crc) in sorted(listed.items(), key=lambda item: item[1]):
        if header < end:
            raise _damaged(path, f"the zip entry {quoted(name)} overlaps another")
        offset = _local(fd, path, name, header, size)
        end = offset + nbytes
        if end > start:
            raise _damaged(path, f"the zip entry {quoted(name)} ends beyond the data")
        entries[name] = Entry(name, offset, nbytes, crc)
    return entries


def read_entry(fd: int, path: Path, entry: Entry, limit: int) -> bytes:
    """The content of an entry of at most `limit` bytes, held to its checksum.

    Raises:
        PickleError: It is larger, or damaged.
        DiskError: It can't be read.
    """
    if entry.size > limit:
        what = f"has {entry.size:,} bytes in {quoted(entry.name)}, more than the {limit:,} allowed"
        raise PickleError(path, what, SAVE_AGAIN)
    content = _read(fd, path, entry.size, entry.offset)
    if entry.crc and zlib.crc32(content) != entry.crc:
        raise _damaged(path, f"{quoted(entry.name)} does not have its checksum")
    return bytes(content)


def check_sums(path: Path, entries: Iterable[Entry]) -> None:
    """Hold entries to their checksums, in pieces, several at once.

    Raises:
        PickleError: One is damaged.
        DiskError: The archive can't be read.
    """

    def check(entry: Entry, stop: Event) -> None:
        found, piece = 0, bytearray(min(_PIECE, entry.size))
        with disk.reading(path) as fd:
            for at in range(0, entry.size, _PIECE):
                if stop.is_set():
                    raise StoppedError
                view = memoryview(piece)[: min(_PIECE, entry.size - at)]
                disk.read_into(fd, path, view, entry.offset + at)
                found = zlib.crc32(view, found)
        if found != entry.crc:
            raise _damaged(path, f"{quoted(entry.name)} does not have its checksum")

    at_once(check, entries)


def folder_of(path: Path, entries: Mapping[str, Entry]) -> str:
    """The folder that all entries lie in.

    Raises:
        PickleError: They lie in none, or in several.
    """
    folders = {name.partition("/")[0] if "/" in name else "" for name in entries}
    if len(folders) != 1 or "" in folders:
        raise PickleError(path, "is a zip archive, but not one of PyTorch's", SAVE_AGAIN)
    return folders.pop()


def _directory(fd: int, path: Path, size: int) -> tuple[int, int, int]:
    """How many entries the directory has, where it starts, and its bytes."""
    start = max(0, size - _END.size - _LONGEST_COMMENT)
    tail = _read(fd, path, size - start, start)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        if at + _END.size <= len(tail):
            _, disks, _, _, count, length, offset, comment = _END.unpack_from(tail, at)
            if at + _END.size + comment == len(tail):
                break
        at = tail.rfind(b"PK\x05\x06", 0, at)
    if at < 0:
        raise _damaged(path, "it is truncated: a zip archive has its directory at the end")
    locator = start + at - _LOCATOR.size
    if disks == 0 and locator >= 0:
        magic, _, place, _ = _LOCATOR.unpack(_read(fd, path, _LOCATOR.size, locator))
        if magic == b"PK\x06\x07":
            if place + _END_64.size > size:
                raise _damaged(path, "its zip directory lies beyond its end")
            found = _END_64.unpack(_read(fd, path, _END_64.size, place))
            if found[0] != b"PK\x06\x06":
                raise _damaged(path, "its zip directory is not where it says")
            return found[7], found[9], found[8]
    return count, offset, length


def _central(
    path: Path, directory: bytearray, at: int
) -> tuple[str, tuple[int, int, int], str, int]:
    """One entry of the directory: name, (place, size, checksum), why not, where the next begins."""
    if at + _CENTRAL.size > len(directory):
        raise _damaged(path, "its zip directory is cut short")
    fields = _CENTRAL.unpack_from(directory, at)
    magic, flags, method, crc, packed, size = (fields[i] for i in (0, 3, 4, 7, 8, 9))
    name_size, extra_size, comment_size, disks, header = (fields[i] for i in (10, 11, 12, 13, 16))
    at += _CENTRAL.size
    following = at + name_size + extra_size + comment_size
    if magic != b"PK\x01\x02" or following > len(directory):
        raise _damaged(path, "its zip directory is cut short")
    name = _name(path, bytes(directory[at : at + name_size]))
    extra = bytes(directory[at + name_size : at + name_size + extra_size])
    size, packed, header = _widened(path, extra, [size, packed, header])
    why = "encrypted" if flags & _ENCRYPTED else "compressed" if method else ""
    if not why and (packed != size or disks):
        raise _damaged(path, f"the zip entry {quoted(name)} has two sizes")
    return name, (header, size, crc), why, following


def _widened(path: Path, extra: bytes, values: list[int]) -> list[int]:
    """Sizes and offset, where they are too large for 32 bits from the extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if kind != _ZIP_64:
            continue
        for index, value in enumerate(values):
            if value == _HERE_32:
                if len(field) < 8:
                    raise _damaged(path, "a zip entry has no size")
                values[index], field = int.from_bytes(field[:8], "little"), field[8:]
    return values


def _name(path: Path, raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PickleError(path, f"has the zip entry {quoted(repr(raw))}", SAVE_AGAIN) from error
    parts = name.split("/")
    if not name or parts[0] == "" or ".." in parts or "\\" in name or "\0" in name:
        what = f"has the zip entry {quoted(name)}, which leaves the archive"
        raise PickleError(path, what, SAVE_AGAIN)
    return name


def _local(fd: int, path: Path, name: str, header: int, size: int) -> int:
    """Where an entry's bytes begin, by the header before them."""
    expected = name.encode()
    if header + _LOCAL.size + len(expected) > size:
        raise _damaged(path, f"the zip entry {quoted(name)} lies beyond its end")
    found = _read(fd, path, _LOCAL.size + len(expected), header)
    magic, *_, name_size, extra_size = _LOCAL.unpack_from(found)
    named = bytes(found[_LOCAL.size :])
    if magic != b"PK\x03\x04" or name_size != len(expected) or named != expected:
        raise _damaged(path, f"the zip entry {quoted(name)} is not where its directory says")
    return header + _LOCAL.size + int(name_size) + int(extra_size)


def _read(fd: int, path: Path, count: int, offset: int) -> bytearray:
    buffer = bytearray(count)
    disk.read_into(fd, path, buffer, offset)
    return buffer


def _damaged(path: Path, what: str) -> PickleError:
    return PickleError(path, f"is damaged: {what}", _AGAIN)
