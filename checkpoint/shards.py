"""From a folder of shards to its `Catalog`, by headers and index alone.

Owns the rule of which files count (the index decides; without one, the single file) and
the comparison of index and shards. Of PyTorch's files the sums are checked; else no
tensor's bytes are read.
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
from checkpoint.odd_layouts import refuse_odd_layout
from checkpoint.pickles.archive import Archive
from checkpoint.pickles.model_file import read_model_file, warnings_of
from checkpoint.tensors import Catalog, TensorRef
from checkpoint.weight_files import WeightFiles, loose_pytorch_files, weight_files
from configs.errors import ShardIndexError

_INDEX_LIMIT = 100_000_000
_PLAIN_NAME = re.compile(r"[^/\\:\x00-\x1f]+(\.[a-z]+)")
_AGAIN = "download the folder again"
_OTHER_FORMATS = {
    ".bin": "a .bin file by a name that is not PyTorch's",
    ".ckpt": "a training checkpoint",
    ".gguf": "GGUF",
    ".h5": "Keras",
    ".msgpack": "Flax",
    ".npz": "NumPy",
    ".onnx": "ONNX",
}


@dataclass(frozen=True)
class ShardIndex:
    """An index: tensor name to shard name, and the size it claims."""

    path: Path
    weight_map: dict[str, str]
    total_size: object


def read_catalog(folder: Path) -> Catalog:
    """Find every tensor of a checkpoint.

    Raises:
        ShardIndexError: The folder has no weights, or its index does not fit them.
        HeaderError: A shard is not a safetensors file that MLX can carry.
        PickleError: A shard is not a PyTorch file of tensors that can be read in place.
        SourceError: A file is not a regular one, or a link that leaves the folder.
        DiskError: Something can't be read.
    """
    names = disk.list_folder(folder)
    found = weight_files(names)
    if found is None:
        refuse_odd_layout(folder, names)
        found = _loose(folder, names)
    if found is None:
        raise _no_weights(folder, names)
    index = read_index(folder, found.index) if found.index else None
    shards = sorted(set(index.weight_map.values())) if index else [str(found.single)]
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
    if not found.pickled:
        return join_headers(index, {path: read_header(path) for path in paths}, warnings)
    archives = {path: read_model_file(path) for path in paths}
    warnings += [line for path, archive in archives.items() for line in warnings_of(path, archive)]
    return join_headers(index, archives, warnings)


def join_headers(
    index: ShardIndex | None,
    headers: Mapping[Path, Header] | Mapping[Path, Archive],
    warnings: Sequence[str] = (),
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
        metadata = {**header.metadata, **metadata}
    return Catalog(dict(sorted(tensors.items())), tuple(headers), metadata, tuple(told))


def read_index(folder: Path, name: str = WEIGHTS_INDEX) -> ShardIndex:
    """Read an index; every shard's name in it is a plain file name.

    Args:
        folder: The folder that it lies in.
        name: Its name, which says what the shards are called: `model.safetensors.index.json`
            or `pytorch_model.bin.index.json`.

    Raises:
        ShardIndexError: It is not an index.
        DiskError: It can't be read.
    """
    path = file_in(folder, name)
    suffix = Path(name.removesuffix(".index.json")).suffix
    content = read_json_object(path, ShardIndexError, _INDEX_LIMIT)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ShardIndexError(path, "has no object named weight_map", _AGAIN)
    if not weight_map:
        raise ShardIndexError(path, "has an empty weight_map", _AGAIN)
    for tensor, shard in weight_map.items():
        plain = _PLAIN_NAME.fullmatch(shard) if isinstance(shard, str) else None
        if plain is None or plain[1] != suffix:
            what = f"puts tensor {quoted(tensor)} into {json_value(shard)}"
            mend = f"each must be the plain name of a {suffix} file beside the index"
            raise ShardIndexError(path, what, mend)
    metadata = content.get("metadata")
    total_size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return ShardIndex(path, weight_map, total_size)


def _loose(folder: Path, names: list[str]) -> WeightFiles | None:
    """A single PyTorch file under a name of the user's, if that is all that there is.

    Raises:
        ShardIndexError: There are several.
    """
    loose = loose_pytorch_files(names)
    if len(loose) > 1:
        what = f"holds {len(loose)} PyTorch files: {shown(loose)}"
        raise ShardIndexError(folder, what, "leave only the one with the weights")
    return WeightFiles(single=loose[0]) if loose else None


def _join(headers: Sequence[Header | Archive]) -> dict[str, TensorRef]:
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
