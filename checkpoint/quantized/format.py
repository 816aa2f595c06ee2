"""What a format's module tells of a checkpoint: which tensors are a weight together, and how.

Owns the types and the small rules that formats share. Knows no format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, Recipe
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.folder import CONFIG
from checkpoint.json_file import json_value, quoted
from checkpoint.tensors import TensorRef
from configs.errors import ArchitectureError, SourceError

Bring = Callable[[Iterable[Path]], None]
"""Called with files before any of their tensors' bytes are read."""

ACTIVATIONS = "a scale of activations, which MLX does not quantize"
CACHE_SCALE = "a scale of a quantized KV cache, which is for other programs"
_TAKE_16_BITS = "take the model's 16-bit checkpoint"


@dataclass(frozen=True)
class Source:
    """A checkpoint to decode.

    Attributes:
        settings: What config.json says of its quantization; empty if it says nothing.
        tensors: Its tensors by name.
        dtype: What decoded weights are rounded to.
        bring: Called before values are looked at, seldom.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]
    dtype: mx.Dtype
    bring: Bring

    def get(self, name: str) -> TensorRef | None:
        """A tensor, if there is one of this name."""
        return self.tensors.get(name)

    def need(self, name: str, dtypes: Iterable[str]) -> TensorRef:
        """A tensor that must be there, of one of these dtypes.

        Raises:
            SourceError: it is not, or of another.
        """
        ref = self.tensors.get(name)
        if ref is None:
            raise SourceError(quoted(name), "is missing beside the codes", "download it again")
        allowed = tuple(dtypes)
        if ref.dtype not in allowed:
            raise SourceError(
                quoted(name), f"is {ref.dtype}, not {' or '.join(allowed)}", _TAKE_16_BITS
            )
        return ref

    def bytes_of(self, ref: TensorRef) -> bytes:
        """The bytes of a small tensor, read now.

        Raises:
            DiskError: it can't be read.
        """
        self.bring([ref.file])
        with TensorReader() as reader:
            box = tuple((0, size) for size in ref.shape)
            found = reader.read(ref, box)
            return bytes(memoryview(found))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Decoding:
    """A checkpoint's quantized weights.

    Attributes:
        weights: The plain weights by their plain names.
        dropped: Tensors that none is made from, each with the reason.
    """

    weights: Mapping[str, Recipe]
    dropped: Mapping[str, str] = field(default_factory=dict)


def floats(ref: TensorRef, box: Box, reader: TensorReader) -> mx.array:
    """A box of a tensor of floats, as float32."""
    return reader.read(ref, box).view(mlx_dtype(ref)).astype(mx.float32)


def integer(settings: Mapping[str, Any], key: str, allowed: Iterable[int], method: str) -> int:
    """A number that a format's settings must give.

    Raises:
        ArchitectureError: it is none of those that can be read.
    """
    value, choices = settings.get(key), tuple(allowed)
    if type(value) is not int or value not in choices:
        takes = ", ".join(map(str, choices))
        raise unreadable(method, f"{key} is {json_value(value)}; what can be read is {takes}")
    return value


def unreadable(method: str, why: str) -> ArchitectureError:
    """The refusal of a format, or of a form of it, by name."""
    return ArchitectureError(
        CONFIG, f"says that the weights are quantized with {method}, and {why}", _TAKE_16_BITS
    )


def misfit(ref: TensorRef, what: str) -> SourceError:
    """The refusal of a tensor that does not go with the others of its weight."""
    return SourceError(
        quoted(ref.name), f"{what} ({ref.dtype} {list(ref.shape)})", "is the checkpoint complete?"
    )
