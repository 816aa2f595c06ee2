"""The plan of a conversion: every output tensor's bytes and place, before any is made.

Exact, so that `--dry-run`, the preflight, the progress bar's total, the shard
headers and the verification all come from it. Pure data and arithmetic; imports
neither MLX nor anything that reads files.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from checkpoint.packing import Quantization as Quantization

if TYPE_CHECKING:
    from convert.mixed.mixture import Mixture

Operation = Literal["copy", "cast", "quantize"]
_ALIGNMENT = 8
# Tokenizer, papers, and the file system's own needs.
_DISK_MARGIN = 64 << 20

Layout = Literal["mlx", "pt"]
"""Whose names and layouts a folder has, as its headers tell: mlx-lm's or transformers'."""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the folder to be written.

    Attributes:
        name: Its name in the shard.
        dtype: safetensors dtype, such as `BF16`.
        shape: Its shape.
        nbytes: Its bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return self.nbytes // max(1, math.prod(self.shape))


@dataclass(frozen=True)
class Parameter:
    """One parameter of the model and what becomes of it.

    Attributes:
        name: The architecture's name of the parameter.
        shape: Shape before quantization.
        dtype: Its dtype before quantization, after any cast (safetensors name).
        operation: What is done.
        quantization: How it is packed, if it is.
        outputs: The tensors it becomes: itself, or weight, scales and perhaps biases.
        sources: The source tensors it is made from.
        resident_bytes: Bytes held while it is made, beyond the blocks in flight.
        note: Why it is kept where one would expect quantization; else empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    operation: Operation
    quantization: Quantization | None
    outputs: tuple[OutputTensor, ...]
    sources: tuple[str, ...]
    resident_bytes: int = 0
    note: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all its outputs."""
        return sum(tensor.nbytes for tensor in self.outputs)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """One file to be written.

    Attributes:
        file: Its name.
        parameters: Those whose tensors it holds, in the model's order.
        header: Its first bytes: length, JSON, padding.
        offsets: Absolute offset of each tensor's first byte, in data order.
        nbytes: Bytes of the whole file.
    """

    file: str
    parameters: tuple[Parameter, ...]
    header: bytes
    offsets: dict[str, int]
    nbytes: int

    @property
    def tensors(self) -> Iterator[OutputTensor]:
        """Its tensors in the model's order."""
        return (tensor for parameter in self.parameters for tensor in parameter.outputs)


@dataclass(frozen=True)
class Plan:
    """The whole conversion.

    Attributes:
        parameters: Every parameter in the model's order.
        shards: The files they go to.
        expected_peak_bytes: An upper estimate of the process's peak resident memory.
        warnings: What the user may not expect, one line each.
        mixture: The choice of bits for each layer, if they were chosen.
    """

    parameters: tuple[Parameter, ...]
    shards: tuple[Shard, ...]
    expected_peak_bytes: int
    warnings: tuple[str, ...] = ()
    mixture: Mixture | None = None

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, as an index's `total_size` counts them."""
        return sum(parameter.nbytes for parameter in self.parameters)

    @property
    def file_bytes(self) -> int:
        """Bytes of all shards with their headers."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def disk_bytes(self) -> int:
        """Free bytes the destination needs: the shards, and room for the other files."""
        return self.file_bytes + _DISK_MARGIN

    @property
    def weights(self) -> int:
        """Number of weights, as an index's `total_parameters` counts them."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def bits_per_weight(self) -> float:
        """Bits really spent on a weight: embeddings, norms, scales and biases included."""
        return 8 * self.tensor_bytes / self.weights

    def index(self) -> dict[str, Any]:
        """The content of model.safetensors.index.json."""
        weight_map = {tensor.name: shard.file for shard in self.shards for tensor in shard.tensors}
        return {
            "metadata": {"total_size": self.tensor_bytes, "total_parameters": self.weights},
            "weight_map": dict(sorted(weight_map.items())),
        }

    def as_json(self) -> dict[str, Any]:
        """What `--dry-run --json` prints."""
        return {
            "output_bytes": self.file_bytes,
            "disk_bytes": self.disk_bytes,
            "parameters": self.weights,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "expected_peak_memory_bytes": self.expected_peak_bytes,
            **({"mixture": self.mixture.as_json()} if self.mixture else {}),
            "shards": [{"file": shard.file, "bytes": shard.nbytes} for shard in self.shards],
            "tensors": [
                {
                    "name": parameter.name,
                    "shape": list(parameter.shape),
                    "dtype": parameter.dtype,
                    "operation": parameter.operation,
                    "quantization": parameter.quantization and parameter.quantization.as_config(),
                    "bytes": parameter.nbytes,
                    "sources": list(parameter.sources),
                    "note": parameter.note,
                }
                for parameter in self.parameters
            ],
        }


def lay_out(
    parameters: Iterable[Parameter], max_shard_bytes: int, layout: Layout = "mlx"
) -> tuple[Shard, ...]:
    """Distribute the parameters' tensors over shards, in order.

    What one parameter becomes stays together. A shard closes before it would
    exceed the limit; a parameter larger than that has a shard of its own.
    """
    groups: list[list[Parameter]] = []
    filled = 0
    for parameter in parameters:
        if not groups or filled + parameter.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(parameter)
        filled += parameter.nbytes
    count = len(groups)
    names = (
        [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        if count > 1
        else ["model.safetensors"]
    )
    return tuple(_shard(name, group, layout) for name, group in zip(names, groups, strict=True))


def _shard(file: str, parameters: list[Parameter], layout: Layout) -> Shard:
    tensors = [tensor for parameter in parameters for tensor in parameter.outputs]
    # Wide elements first, as the safetensors library does: every tensor is then aligned.
    tensors.sort(key=lambda tensor: -tensor.item_bytes)
    header: dict[str, Any] = {"__metadata__": {"format": layout}}
    starts = {}
    at = 0
    for tensor in tensors:
        starts[tensor.name] = at
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    head = struct.pack("<Q", len(text)) + text
    offsets = {name: len(head) + start for name, start in starts.items()}
    return Shard(file, tuple(parameters), head, offsets, len(head) + at)
