"""What is known of a checkpoint's tensors without reading any: the first arrow's types.

Owns `TensorRef` and `Catalog`. Knows nothing of how they were found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where one tensor's bytes lie.

    Attributes:
        file: The shard.
        name: The tensor's name in it.
        dtype: The safetensors name of the element type, such as "BF16".
        shape: Its dimensions; empty for a scalar.
        offset: The first byte, counted from the start of the file.
        nbytes: How many bytes.
        axes: Where the bytes are not in C order: the axes by their order there, the one with
            the widest steps first. Only PyTorch files have such tensors.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Catalog(Mapping[str, TensorRef]):
    """Every tensor of a checkpoint by name, in name order.

    Attributes:
        tensors: Name to place.
        shards: The files that hold them, in name order.
        metadata: What the shards' headers say of themselves; "format" among it.
        warnings: What is odd but harmless, one line each.
    """

    tensors: Mapping[str, TensorRef]
    shards: tuple[Path, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all tensors together, headers not counted."""
        return sum(ref.nbytes for ref in self.tensors.values())

    def __getitem__(self, name: str) -> TensorRef:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
