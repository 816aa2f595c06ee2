"""The text that quality is measured on: where it comes from, its windows, what it overlaps.

A text for measuring may hold nothing that a model was calibrated on. Of a calibration text its
`fingerprint` is recorded, which tells of any text how much of it is there too. Owns that;
knows nothing of models.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from checkpoint import disk
from configs.errors import SourceError, UsageError

SAMPLE = Path(__file__).with_name("sample.txt")
WINDOW = 256
MOST_WINDOWS = 12
_LIMIT = 64 << 20
MOST_CHARACTERS = 16 * WINDOW * MOST_WINDOWS
_SHINGLE = 48
_SKETCH = 256
_MOST_SHARED = 0.05


class Encoder(Protocol):
    """What is asked of a tokenizer."""

    def encode_text(self, text: str) -> list[int]:
        """Ids, the beginning-of-sequence token in front if there is one."""

    def encode_plain(self, text: str) -> list[int]:
        """Ids without it."""


@dataclass(frozen=True)
class Text:
    """A text, and what to call it.

    Attributes:
        name: The file's name, or `sample` for our own.
        content: As much of it as is measured on at most.
        sha256: Of the whole file.
    """

    name: str
    content: str
    sha256: str


@dataclass(frozen=True)
class Windows:
    """Token ids as they are run.

    Attributes:
        ids: [windows, positions] int32; the last is padded.
        targets: What comes next at each position, of the same shape.
        lengths: Positions of each window that count.
    """

    ids: mx.array
    targets: mx.array
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Positions that count."""
        return sum(self.lengths)


def read_text(path: Path | None, flag: str, most: int = MOST_CHARACTERS) -> Text:
    """A text, or our sample of prose, code, chat and Chinese.

    Args:
        path: Of the text; None for our own.
        flag: That named it.
        most: Characters of it to take; what lies beyond is left out.

    Raises:
        DiskError: it can't be read.
        SourceError: it is no UTF-8.
    """
    content = disk.read_whole(path or SAMPLE, _LIMIT)
    try:
        whole = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            path or SAMPLE, f"is not UTF-8 ({error.reason})", f"give {flag} plain text"
        ) from error
    name = "sample" if path is None else path.name
    return Text(name, whole[:most], hashlib.sha256(content).hexdigest())


def cut(tokenizer: Encoder, text: str, window: int = WINDOW, most: int = MOST_WINDOWS) -> Windows:
    """Windows side by side, each begun as the tokenizer begins a text.

    What lies beyond the last window is left out.
    """
    ids = tokenizer.encode_plain(text)
    whole = tokenizer.encode_text(text[:_SHINGLE])
    plain = tokenizer.encode_plain(text[:_SHINGLE])
    begin = whole[:1] if whole[:1] != plain[:1] else []
    window = min(window, max(1, len(begin) + len(ids) - 1))  # a short text needs no padding
    step = window - len(begin)
    rows, targets, lengths = [], [], []
    for low in range(0, min(len(ids) - 1, most * step), step):
        row = begin + ids[low : low + step + 1]
        count = min(window, len(row) - 1)
        padding = [row[0]] * (window - count)
        rows.append(row[:count] + padding)
        targets.append(row[1 : count + 1] + padding)
        lengths.append(count)
    shape = (len(rows), window)
    given, nexts = (mx.array(each, mx.int32).reshape(shape) for each in (rows, targets))
    return Windows(given, nexts, tuple(lengths))


def fingerprint(text: str) -> dict[str, Any]:
    """What is recorded of a text that a model was calibrated on.

    Returns:
        `sha256`; `characters` without white space; `sketch`, the least hashes of its pieces
        of 48 such characters.
    """
    squeezed = "".join(text.split())
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "characters": len(squeezed),
        "sketch": [f"{each:016x}" for each in heapq.nsmallest(_SKETCH, _shingles(squeezed))],
    }


def shared(recorded: Mapping[str, Any], text: str) -> float:
    """How much of a text, about, is in one of which a fingerprint was recorded; 0 to 1."""
    sketch = {int(each, 16) for each in recorded.get("sketch", ())}
    own = _shingles("".join(text.split()))
    if not sketch or not own:
        return 0.0
    pieces = max(1, int(recorded.get("characters", 0)) - _SHINGLE + 1)
    common = len(sketch & own) / len(sketch) * pieces
    return min(1.0, common / len(own))


def shared_with(calibration: str, text: str) -> float:
    """The same where the calibration text itself is at hand, told exactly."""
    there, own = "".join(calibration.split()), "".join(text.split())
    pieces = [own[at : at + _SHINGLE] for at in range(0, len(own), _SHINGLE)]
    return sum(piece in there for piece in pieces) / max(1, len(pieces))


def check_disjoint(calibration: Sequence[str | Mapping[str, Any]], text: Text, flag: str) -> None:
    """Refuse a text that a model was calibrated on.

    Args:
        calibration: Texts that it was calibrated on, or fingerprints of them.
        text: The text to measure on.
        flag: That named it.

    Raises:
        UsageError: a twentieth of it or more is in there.
    """
    for each in calibration:
        own = text.content
        share = shared_with(each, own) if isinstance(each, str) else shared(each, own)
        if share >= _MOST_SHARED:
            raise UsageError(
                flag,
                f"{share:.0%} of {text.name} is in the text that the model was calibrated on",
                "measure on another text",
            )


def _shingles(squeezed: str) -> set[int]:
    """Hashes of all its pieces of so many characters."""
    pieces = {squeezed[at : at + _SHINGLE] for at in range(max(1, len(squeezed) - _SHINGLE + 1))}
    return {
        int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest()) for piece in pieces
    }
