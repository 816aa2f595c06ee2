"""The text that a model is calibrated on: read, cut into windows, and recorded.

Owns how much of it is taken. Knows nothing of what is computed on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from checkpoint import disk
from configs.errors import SourceError, UsageError
from convert.quality.texts import cut, fingerprint
from inference.tokenizer import load_tokenizer

FLAG = "--calibrate"
_WINDOW = 256
_SHORTEST_WINDOW = 32
_FEWEST_WINDOWS = 8
_MOST_WINDOWS = 128
_HIDDEN_BYTES = 256 << 20
_FILE_BYTES = 64 << 20
_CHARACTERS_FOR_A_TOKEN = 8


@dataclass(frozen=True)
class CalibrationText:
    """A calibration text as it is run.

    Attributes:
        name: The file's name.
        recorded: Its fingerprint, for the receipt.
        ids: [windows, positions] int32.
    """

    name: str
    recorded: Mapping[str, Any]
    ids: mx.array

    @property
    def tokens(self) -> int:
        """Positions in all."""
        return int(self.ids.size)


def read_calibration(path: Path, folder: Path, config: Mapping[str, Any]) -> CalibrationText:
    """Read a text and cut it into windows.

    Args:
        path: Of the text.
        folder: Of the source, with its tokenizer.
        config: Its config.json.

    Raises:
        DiskError: the text can't be read.
        SourceError: it is no UTF-8.
        TokenizerError: the source has no tokenizer that can be used.
        UsageError: it is too short.
    """
    content = _read(path)
    tokenizer = load_tokenizer(folder, config)
    window = window_of(config)
    most = most_windows(config)
    content = content[: most * _WINDOW * _CHARACTERS_FOR_A_TOKEN]
    count = len(tokenizer.encode_plain(content))
    # A short text is cut into short windows, so that some of them are there to judge by.
    while window > _SHORTEST_WINDOW and count <= _FEWEST_WINDOWS * window:
        window //= 2
    if count <= _FEWEST_WINDOWS * window:
        raise UsageError(
            FLAG,
            f"{path.name} has {count} tokens, and {_FEWEST_WINDOWS * _SHORTEST_WINDOW + 1} are "
            "the least to calibrate on",
            f"give a longer text: {most * _WINDOW:,} tokens are read",
        )
    found = cut(tokenizer, content, window, most)
    rows = [row for row, length in enumerate(found.lengths) if length == window]
    return CalibrationText(path.name, fingerprint(content), found.ids[: len(rows)])


def _read(path: Path) -> str:
    content = disk.read_whole(path, _FILE_BYTES)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            path, f"is not UTF-8 ({error.reason})", f"give {FLAG} plain text"
        ) from error


def window_of(config: Mapping[str, Any]) -> int:
    """Positions of a window, where there is text enough."""
    context = config.get("max_position_embeddings")
    return min(_WINDOW, context) if isinstance(context, int) and context > 0 else _WINDOW


def most_windows(config: Mapping[str, Any]) -> int:
    """How many windows are read: their hidden states must fit beside a block."""
    hidden = config.get("hidden_size")
    size = hidden if isinstance(hidden, int) and hidden > 0 else 4096
    return max(_FEWEST_WINDOWS, min(_MOST_WINDOWS, _HIDDEN_BYTES // (4 * size * _WINDOW)))
