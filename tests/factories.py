"""Small real inputs for the tests: safetensors files and checkpoint folders."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ITEMSIZES = {"BOOL": 1, "U8": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "F32": 4, "I64": 8}


def safetensors_bytes(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A safetensors file, right or wrong, from its header and its tensors' bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A right safetensors file of these dtypes and shapes, filled with a counting pattern."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        nbytes = ITEMSIZES[dtype]
        for dimension in shape:
            nbytes *= dimension
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    path.write_bytes(safetensors_bytes(header, bytes(index % 251 for index in range(end))))
    return path


def write_sharded(
    folder: Path, shards: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]
) -> Path:
    """A folder of shards with a right index; the content is shard name -> its tensors."""
    folder.mkdir(exist_ok=True)
    weight_map, total = {}, 0
    for shard, tensors in shards.items():
        path = write_safetensors(folder / shard, tensors, {"format": "pt"})
        content = path.read_bytes()
        total += len(content) - 8 - struct.unpack("<Q", content[:8])[0]
        weight_map |= dict.fromkeys(tensors, shard)
    write_index(folder, weight_map, total)
    return folder


def write_index(folder: Path, weight_map: Mapping[str, Any], total_size: object) -> None:
    """The folder's model.safetensors.index.json."""
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
