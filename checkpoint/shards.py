"""From a folder of shards to its `Catalog`, by headers and index alone.

Owns the rule of which files count (the index decides; without one, model.safetensors)
and the comparison of index and shards. Reads no tensor's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.folder import WEIGHTS, WEIGHTS_INDEX, file_in, shown
from checkpoint.header import Header, read_header
from checkpoint.json_file import json_type, quoted, read_json_object
from checkpoint.tensors import Catalog, TensorRef
from configs.errors import ShardIndexError

_INDEX_LIMIT = 100_000_000
_AGAIN = "download the folder again"
_OTHER_FORMATS = {
    ".bin": "PyTorch pickles",
    ".pt": "PyTorch pickles",
    ".pth": "PyTorch pickles",
    ".ckpt": "PyTorch pickles",
    ".gguf": "GGUF",
    ".h5": "Keras",
    ".msgpack": "Flax",
    ".npz": "NumPy",
    ".onnx": "ONNX",
}


@dataclass(frozen=True)
class _Index:
    """model.safetensors.index.json: tensor name to shard name, and the size it claims."""

    path: Path
    weight_map: dict[str, str]
    total_size: object


def read_catalog(folder: Path) -> Catalog:
    """Find every tensor of a checkpoint.

    Raises:
        ShardIndexError: The folder has no safetensors, or its index does not fit them.
        HeaderError: A shard is not a safetensors file that MLX can carry.
        SourceError: A file is not a regular one, or a link that leaves the folder.
        DiskError: Something can't be read.
    """
    names = disk.list_folder(folder)
    if WEIGHTS_INDEX in names:
        index = _read_index(folder)
        shards = sorted(set(index.weight_map.values()))
    elif WEIGHTS in names:
        index = None
        shards = [WEIGHTS]
    else:
        raise _no_weights(folder, names)
    paths = [file_in(folder, name) for name in shards]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        what = f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing)}"
        raise ShardIndexError(folder, what, "download them")
    headers = [read_header(path) for path in paths]
    tensors = _join(folder, headers)
    warnings = [
        f"{folder / name} is not in the index and is left out"
        for name in names
        if name.endswith(".safetensors") and name not in shards
    ]
    if index is not None:
        _compare(index, tensors)
        warnings += _size_warning(index, tensors)
    metadata: dict[str, str] = {}
    for header in headers:
        metadata = header.metadata | metadata
    return Catalog(dict(sorted(tensors.items())), tuple(paths), metadata, tuple(warnings))


def _read_index(folder: Path) -> _Index:
    path = file_in(folder, WEIGHTS_INDEX)
    content = read_json_object(path, ShardIndexError, _INDEX_LIMIT)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ShardIndexError(path, "has no object named weight_map", _AGAIN)
    if not weight_map:
        raise ShardIndexError(path, "has an empty weight_map", _AGAIN)
    for name in set(map(_shard_name, weight_map.values()))
    ...
