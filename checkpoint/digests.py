"""What a file's bytes should hash to, in the two ways that hubs say it.

Owns the arithmetic of hashes. Knows nothing of files or networks.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Digest:
    """A hash that a file should have.

    Attributes:
        kind: "sha256" of the content, or the "git" id that git gives it.
        value: In hexadecimal, lower case.
    """

    kind: Literal["sha256", "git"]
    value: str

    @staticmethod
    def named(text: object) -> Digest | None:
        """The digest that a hub, or a file's name in its cache, gives; None if it is none."""
        if not isinstance(text, str):
            return None
        text = text.lower()
        if _SHA256.fullmatch(text):
            return Digest("sha256", text)
        return Digest("git", text) if _SHA1.fullmatch(text) else None

    def __str__(self) -> str:
        return f"{'sha256' if self.kind == 'sha256' else 'git id'} {self.value[:12]}…"


class Hasher:
    """Hashes bytes as they come and holds them to a digest.

    Args:
        digest: What is expected.
        size: Bytes of the whole file, which git hashes along.
    """

    def __init__(self, digest: Digest, size: int) -> None:
        self.digest = digest
        if digest.kind == "sha256":
            self._hashes = [hashlib.sha256()]
        else:
            git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            # Mirrors give the sha1 of the bytes themselves for the same tag.
            self._hashes = [git, hashlib.sha1(usedforsecurity=False)]

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        for one in self._hashes:
            one.update(data)

    @property
    def matches(self) -> bool:
        """Whether the bytes so far are the expected ones."""
        return any(one.hexdigest() == self.digest.value for one in self._hashes)

    @property
    def found(self) -> Digest:
        """The digest of the bytes so far."""
        return Digest(self.digest.kind, self._hashes[0].hexdigest())
