"""PyTorch files for the tests: real ones out of tiny checkpoints, and zips built by hand."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

INDEX = "pytorch_model.bin.index.json"


def state_dict(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint in safetensors."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors


def without_safetensors(folder: Path) -> Path:
    """The folder without its weights."""
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        path.unlink()
    return folder


def as_pickle(folder: Path, name: str = "pytorch_model.bin") -> Path:
    """The folder with its weights in one file that torch saved."""
    tensors = state_dict(folder)
    torch.save(tensors, without_safetensors(folder) / name)
    return folder


def as_sharded_pickles(folder: Path, shards: int = 2) -> Path:
    """The folder with its weights in several such files and their index."""
    tensors = state_dict(folder)
    without_safetensors(folder)
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        chosen = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        torch.save(chosen, folder / file)
        weight_map |= dict.fromkeys(chosen, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def stored_zip(
    path: Path,
    entries: Mapping[str, bytes] | list[tuple[str, bytes]],
    *,
    method: int = 0,
    flags: int = 0,
    crcs: Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
    twice_over: bool = False,
) -> Path:
    """A zip archive, right or wrong.

    Args:
        path: Where to write it.
        entries: Name to content; a list may name one twice.
        method: How the headers say that entries are compressed.
        flags: The headers' flags.
        crcs: Checksums in place of the right ones.
        sizes: Sizes in place of the right ones.
        twice_over: Let all entries point to the first one's bytes.
    """
    listed = list(entries.items()) if isinstance(entries, Mapping) else entries
    body, directory, first = b"", b"", None
    for name, content in listed:
        raw = name.encode()
        crc = (crcs or {}).get(name, zlib.crc32(content))
        size = (sizes or {}).get(name, len(content))
        common = (flags, method, 0, 0, crc, size, size, len(raw), 0)
        at = len(body)
        body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, *common) + raw + content
        first = at if first is None else first
        at = first if twice_over else at
        directory += (
            struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, *common, 0, 0, 0, 0, at) + raw
        )
    count = len(listed)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


def tensor_pickle(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, numel: int = 24
) -> bytes:
    """A state dict of one float32 tensor `weight`, as a pickle of protocol 2."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += b"J" + struct.pack("<i", numel) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J" + struct.pack("<i", offset)
    tensor += numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("weight") + tensor + b"s."


def torch_zip(path: Path, pickled: bytes, **storages: bytes) -> Path:
    """A PyTorch file of a pickle and storages, the first called `_0`."""
    data = {f"m/data/{name.removeprefix('_')}": content for name, content in storages.items()}
    return stored_zip(path, {"m/data.pkl": pickled, "m/byteorder": b"little", **data})
