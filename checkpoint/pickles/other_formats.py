"""Says what a file is that should be one of PyTorch's zip archives and is not.

Owns the signs of other formats, older ones of PyTorch's among them. A bare pickle is read
by the allow-list reader, so that what it would run is named.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from checkpoint import disk
from checkpoint.pickles.unpickle import SAVE_AGAIN, load
from configs.errors import PickleError

_AGAIN = "download it again"
_START = 1 << 20
_OTHERS = {
    b"version https://git-lfs": (
        "is a Git-LFS pointer, not the file itself",
        "run `git lfs pull` in its folder",
    ),
    b"<!doctype html": ("is an HTML page, not a PyTorch file", _AGAIN),
    b"<html": ("is an HTML page, not a PyTorch file", _AGAIN),
    b"<?xml": ("is an XML page, not a PyTorch file", _AGAIN),
    b'{"error"': ("is a server's error message, not a PyTorch file", _AGAIN),
    b"\x1f\x8b": ("is compressed with gzip", "unpack it first"),
    b"gguf": ("is a GGUF file", "use the checkpoint it was made from"),
}
# The number that PyTorch before 1.6 begins with, as a pickle.
_BEFORE_ZIP = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def refuse_other_formats(fd: int, path: Path, size: int, allowed: Collection[str]) -> None:
    """Refuse an open file that is no zip archive, saying what it is.

    Args:
        fd: The open file.
        path: Its path.
        size: Its bytes.
        allowed: The globals that its pickle may name.

    Raises:
        PickleError: It is not a zip archive.
        DiskError: It can't be read.
    """
    start = bytearray(min(size, _START))
    disk.read_into(fd, path, start, 0)
    if start.startswith(b"PK"):
        return
    if size < 22:
        what = f"is truncated: {size} bytes can't hold a PyTorch file"
        raise PickleError(path, what, _AGAIN)
    begins = bytes(start[:64]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, (what, mend) in _OTHERS.items():
        if begins.startswith(magic):
            raise PickleError(path, what, mend)
    if start[257:262] == b"ustar":
        what = "is a tar archive, as PyTorch wrote before version 0.1.10"
        raise PickleError(path, what, SAVE_AGAIN)
    if _BEFORE_ZIP in start[:32]:
        what = "is in PyTorch's format from before version 1.6, which is no zip archive"
        raise PickleError(path, what, SAVE_AGAIN)
    load(bytes(start), allowed, path)
    raise PickleError(path, "is a bare pickle, not a PyTorch zip archive", SAVE_AGAIN)
