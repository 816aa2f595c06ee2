"""The text that a model is calibrated on: read, cut into windows, and recorded.

Owns how much of it is taken. Knows nothing of what is computed on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from configs.errors import UsageError
from convert.quality.texts import WINDOW, cut, fingerprint, read_text
from inference.tokenizer import load_tokenizer

FLAG = "--calibrate"
_MOST_WINDOWS = 32
_FEWEST_WINDOWS = 8
_SHORTEST_WINDOW = 32
_HIDDEN_BYTES = 128 << 20


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
    text = read_text(path, FLAG)
    tokenizer = load_tokenizer(folder, config)
    context = config.get("max_position_embeddings")
    window = min(WINDOW, context) if isinstance(context, int) and context > 0 else WINDOW
    count = len(tokenizer.encode_plain(text.content))
    # A short text is cut into short windows, so that some of them are there to judge by.
    while window > _SHORTEST_WINDOW and count < _FEWEST_WINDOWS * window:
        window //= 2
    if count < _FEWEST_WINDOWS * window:
        raise UsageError(
            FLAG,
            f"{path.name} has {count} tokens, and {_FEWEST_WINDOWS * _SHORTEST_WINDOW} are the "
            "least to calibrate on",
            "give a longer text: 30,000 tokens are good",
        )
    found = cut(tokenizer, text.content, window, most_windows(config, window))
    rows = [row for row, length in enumerate(found.lengths) if length == window]
    return CalibrationText(text.name, fingerprint(text.content), found.ids[: len(rows)])


def most_windows(config: Mapping[str, Any], window: int) -> int:
    """As many windows as there is room for: their hidden states stay in memory."""
    hidden = config.get("hidden_size")
    size = hidden if isinstance(hidden, int) and hidden > 0 else 4096
    return max(_FEWEST_WINDOWS, min(_MOST_WINDOWS, _HIDDEN_BYTES // (4 * size * window)))
