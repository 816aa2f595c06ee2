"""From a folder of shards to its `Catalog`, by headers and index alone.

Owns the rule of which files count (the index decides; without one, model.safetensors)
and the comparison of index and shards. Reads no tensor's bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoint import disk
from checkpoint.folder import WEIGHTS, WEIGHTS_INDEX, file_in, shown
from checkpoint.header import Header, read_header
from checkpoint.json_file import json_value, quoted, read_json_object
from checkpoint.tensors import Catalog, TensorRef
from configs.errors import ShardIndexError

_INDEX_LIMIT = 100_000_000
_PLAIN_NAME = re.compile(r"[^/\\:\x00-\x1f]+\.safetensors")
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
class ShardIndex:
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
        index = read_index(folder)
        shards = sorted(set(index.weight_map.values()))
    elif WEIGHTS in names:
        index = None
        shards = [WEIGHTS]
    else:
        raise _no_weights(folder, names)
    present = set(names)
    missing = [name for name in shards if name not in present or not (folder / name).exists()]
    if missing:
        what = f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing)}"
        raise ShardIndexError(folder, what, "download them")
    paths = [file_in(folder, name) for name in shards]
    warnings = [
        f"{folder / name} is not one of the model's shards and is left out"
        for name in names
        if name.endswith(".safetensors") and name not in shards
    ]
    return join_headers(index, {path: read_header(path) for path in paths}, warnings)


def join_headers(
    index: ShardIndex | None, headers: Mapping[Path, Header], warnings: Sequence[str] = ()
) -> Catalog:
    """The catalog of shards whose headers are read, held against their index.

    Args:
        index: The index, if the checkpoint has one.
        headers: Every shard's header by its path, in name order.
        warnings: What is odd about the checkpoint so far.

    Raises:
        ShardIndexError: The index does not fit the shards, or they don't fit each other.
    """
    tensors = _join(list(headers.values()))
    told = list(warnings)
    if index is not None:
        _compare(index, tensors)
        told += _size_warnings(index, tensors)
    metadata: dict[str, str] = {}
    for header in headers.values():
        metadata = header.metadata | metadata
    return Catalog(dict(sorted(tensors.items())), tuple(headers), metadata, tuple(told))


def read_index(folder: Path) -> ShardIndex:
    """Read model.safetensors.index.json; every shard's name in it is a plain file name.

    Raises:
        ShardIndexError: It is not an index.
        DiskError: It can't be read.
    """
    path = file_in(folder, WEIGHTS_INDEX)
    content = read_json_object(path, ShardIndexError, _INDEX_LIMIT)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ShardIndexError(path, "has no object named weight_map", _AGAIN)
    if not weight_map:
        raise ShardIndexError(path, "has an empty weight_map", _AGAIN)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard):
            what = f"puts tensor {quoted(tensor)} into {json_value(shard)}"
            mend = "each must be the plain name of a .safetensors file beside the index"
            raise ShardIndexError(path, what, mend)
    metadata = content.get("metadata")
    total_size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return ShardIndex(path, weight_map, total_size)


def _join(headers: list[Header]) -> dict[str, TensorRef]:
    tensors: dict[str, TensorRef] = {}
    for header in headers:
        for name, ref in header.tensors.items():
            other = tensors.setdefault(name, ref)
            if other is not ref:
                what = f"holds tensor {quoted(name)}, and so does {other.file.name}"
                raise ShardIndexError(ref.file, what, _AGAIN)
    return tensors


def _compare(index: ShardIndex, tensors: Mapping[str, TensorRef]) -> None:
    """Hold the index and the shards to name the same tensors in the same places."""
    weight_map = index.weight_map
    absent = sorted(weight_map.keys() - tensors.keys())
    unlisted = sorted(tensors.keys() - weight_map.keys())
    moved = sorted(
        name
        for name, ref in tensors.items()
        if weight_map.get(name, ref.file.name) != ref.file.name
    )
    told = [
        f"{len(names):,} tensors {problem} ({shown(names)})"
        for names, problem in (
            (absent, "of the index are in no shard"),
            (unlisted, "of the shards are not in the index"),
            (moved, "are in another shard than the index says"),
        )
        if names
    ]
    if told:
        raise ShardIndexError(index.path, "; ".join(told), _AGAIN)


def _size_warnings(index: ShardIndex, tensors: Mapping[str, TensorRef]) -> list[str]:
    held = sum(ref.nbytes for ref in tensors.values())
    if index.total_size is None or index.total_size == held:
        return []
    told = json_value(index.total_size)
    return [f"{index.path} gives total_size as {told}, but the shards hold {held:,} bytes"]


def _no_weights(folder: Path, names: list[str]) -> ShardIndexError:
    """Say what was found in place of weights."""
    found = [name for name in names if name.endswith(".safetensors")]
    if any(name.startswith("adapter_model") for name in found):
        mend = "merge it into its base model first"
        return ShardIndexError(folder, "holds an adapter, not a model", mend)
    if found:
        what = f"has neither {WEIGHTS_INDEX} nor {WEIGHTS}, only {shown(found)}"
        return ShardIndexError(folder, what, "download the index, or rename a single file")
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix in _OTHER_FORMATS:
            what = f"holds weights only as {_OTHER_FORMATS[suffix]} ({name})"
            return ShardIndexError(folder, what, "save them as safetensors first")
    what = f"holds no weights: there is neither {WEIGHTS_INDEX} nor {WEIGHTS}"
    return ShardIndexError(folder, what, "check the path")
