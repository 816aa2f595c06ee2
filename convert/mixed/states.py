"""The hidden states of a text before each block, in a file, for the way back.

Knows nothing of models.
"""

from __future__ import annotations

import math
from typing import IO

import mlx.core as mx
import numpy as np


class States:
    """Hidden states, the last first to come back; as bfloat16, which is enough for a gradient.

    Args:
        file: Empty, for reading and writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._shapes: list[tuple[int, ...]] = []

    def push(self, hidden: mx.array) -> None:
        """Keep one."""
        narrow = np.array(hidden.astype(mx.bfloat16).view(mx.uint16))
        self._shapes.append(narrow.shape)
        self._file.write(narrow.tobytes())

    def pop(self) -> mx.array:
        """The one that was kept last, float32; its room in the file is free again."""
        shape = self._shapes.pop()
        nbytes = 2 * math.prod(shape)
        end = self._file.seek(0, 2)
        self._file.seek(end - nbytes)
        read = np.frombuffer(self._file.read(nbytes), np.uint16).reshape(shape)
        self._file.truncate(end - nbytes)
        return mx.array(read).view(mx.bfloat16).astype(mx.float32)
