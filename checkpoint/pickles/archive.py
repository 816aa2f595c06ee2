"""Reads what a PyTorch file (.bin, .pt, .pth) holds, without PyTorch, and executes nothing.

Since PyTorch 1.6 such a file is a zip archive of one pickle and, each at a place of its
own, the bytes of the tensors' storages: so a tensor can be read in place as from a
safetensors file. Owns the meaning of what is in the archive. Refuses what lies otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from checkpoint import disk
from checkpoint.dtypes import DTYPES, carried_names
from checkpoint.folder import shown
from checkpoint.json_file import quoted
from checkpoint.pickles.checked import check_once
from checkpoint.pickles.other_formats import refuse_other_formats
from checkpoint.pickles.state_dict import PARAMETERS, REBUILT, find_state_dict
from checkpoint.pickles.unpickle import SAVE_AGAIN, load
from checkpoint.pickles.values import Global, PersistentId, Record
from checkpoint.pickles.zip_file import Entry, folder_of, read_entries, read_entry
from checkpoint.tensors import TensorRef
from configs.errors import PickleError

_PICKLE_LIMIT = 64 << 20
_LARGEST_DIMENSION = 2**31 - 1
_STORAGES = {
    "BFloat16Storage": "BF16",
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ComplexFloatStorage": "C64",
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "ShortStorage": "I16",
}
_TORCH_DTYPES = {
    "bfloat16": "BF16",
    "bool": "BOOL",
    "complex64": "C64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "int8": "I8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "uint8": "U8",
}
_UNTYPED = "torch.storage.UntypedStorage"
# Beside tensors, what training code keeps with them; all of it is read as inert records.
_ALLOWED = frozenset(
    {
        *REBUILT,
        *PARAMETERS,
        _UNTYPED,
        *(f"torch.{name}" for name in (*_STORAGES, *_TORCH_DTYPES)),
        *("torch.Size", "torch.device", "argparse.Namespace", "numpy.dtype"),
        *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    }
)


@dataclass(frozen=True)
class Archive:
    """What one PyTorch file holds, checked.

    Attributes:
        tensors: By name, in the order of their bytes; several may share them.
        left_out: What else stood beside the tensors, by name.
        unchecked: It was written without checksums.
        file_bytes: The size of the file.
        metadata: Free text; a PyTorch file has none.
    """

    tensors: dict[str, TensorRef]
    left_out: tuple[str, ...]
    unchecked: bool
    file_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_archive(path: Path) -> Archive:
    """Read and check what a PyTorch file holds; its storages are held to their checksums.

    Raises:
        PickleError: It is not a file of tensors that can be read in place.
        SourceError: It is not a regular file.
        DiskError: It can't be read.
    """
    with disk.reading(path) as fd:
        size = disk.file_bytes(fd, path)
        refuse_other_formats(fd, path, size, _ALLOWED)
        entries = read_entries(fd, path, _refuse_torchscript)
        inside = folder_of(path, entries)
        own = {name.removeprefix(f"{inside}/"): entry for name, entry in entries.items()}
        _refuse_big_endian(fd, path, own)
        if "data.pkl" not in own:
            raise PickleError(path, "is a zip archive, but not one of PyTorch's", SAVE_AGAIN)
        content = read_entry(fd, path, own["data.pkl"], _PICKLE_LIMIT)
    value = load(content, _ALLOWED, path, persistent_ids=True)
    del content
    found = find_state_dict(value, path)
    refs = [_Tensor(path, name, own).ref(record) for name, record in found.tensors.items()]
    unchecked = not any(entry.crc for entry in own.values())
    if not unchecked:
        check_once(path, [entry for name, entry in own.items() if name.startswith("data/")])
    refs.sort(key=lambda ref: (ref.offset, ref.nbytes))
    return Archive({ref.name: ref for ref in refs}, found.left_out, unchecked, size)


def _refuse_torchscript(path: Path, names: Collection[str]) -> None:
    own = {name.partition("/")[2] for name in names}
    if "constants.pkl" in own or any(name.startswith("code/") for name in own):
        what = "is a TorchScript archive, which holds a program"
        raise PickleError(path, what, "save its state dict again as safetensors")


def _refuse_big_endian(fd: int, path: Path, own: Mapping[str, Entry]) -> None:
    if "byteorder" in own and read_entry(fd, path, own["byteorder"], 100) != b"little":
        raise PickleError(path, "was not saved on a little-endian machine", SAVE_AGAIN)


class _Tensor:
    """One tensor of an archive, from what the pickle says to where its bytes are."""

    def __init__(self, path: Path, name: str, entries: Mapping[str, Entry]) -> None:
        self._path = path
        self._name = name
        self._entries = entries

    def ref(self, record: Record) -> TensorRef:
        """Where the tensor lies.

        Raises:
            PickleError: It lies beyond its storage, in gaps, or is of no type of ours.
        """
        while record.name in PARAMETERS:
            if not record.args or not isinstance(record.args[0], Record):
                self._refuse("is not understood")
            record = record.args[0]
        match record.args:
            case (PersistentId() as storage, int(offset), tuple(size), tuple(stride), *more):
                pass
            case _:
                self._refuse("is not understood")
        # requires_grad, backward_hooks, dtype
        typed = more[2] if record.name.endswith("_v3") and len(more) > 2 else None
        dtype, entry = self._storage(storage.value, typed)
        shape = self._dimensions(size, _LARGEST_DIMENSION)
        strides = self._dimensions(stride, 2**62)
        if len(shape) != len(strides) or len(shape) > 64:
            self._refuse("has another number of strides than of dimensions")
        item = DTYPES[dtype].itemsize
        count = math.prod(shape)
        held = entry.size // item
        last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
        if type(offset) is not int or offset < 0 or (count and offset + last > held):
            self._refuse(f"reaches beyond its storage of {held:,} elements")
        axes = self._axes(shape, strides) if count else None
        begin = entry.offset + (offset * item if count else 0)
        return TensorRef(self._path, self._name, dtype, shape, begin, count * item, axes)

    def _storage(self, value: object, typed: object) -> tuple[str, Entry]:
        """The dtype, and the entry with the bytes, that a persistent id stands for."""
        match value:
            case ("storage", Global(kind), str(key), str(), int(numel)):
                pass
            case _:
                self._refuse("has a storage that is not understood")
        known = _STORAGES.get(kind.removeprefix("torch."))
        item = 1
        if kind == _UNTYPED and isinstance(typed, Global):
            dtype = _TORCH_DTYPES.get(typed.name.removeprefix("torch."))
        else:
            dtype = known
        if dtype is None:
            self._refuse("has an element type that is not understood")
        if dtype not in DTYPES:
            what = f"tensor {quoted(self._name)} has dtype {dtype}, which MLX can't carry"
            raise PickleError(self._path, what, f"save it as one of {carried_names()}")
        if kind != _UNTYPED:
            item = DTYPES[dtype].itemsize
        entry = self._entries.get(f"data/{key}")
        if entry is None:
            self._refuse(f"has its bytes in {quoted(key)}, which the archive lacks")
        if entry.size != numel * item:
            self._refuse(f"has a storage of {numel * item:,} bytes, and {entry.size:,} are there")
        return dtype, entry

    def _dimensions(self, values: tuple[object, ...], most: int) -> tuple[int, ...]:
        for value in values:
            if type(value) is not int or not 0 <= value <= most:
                self._refuse(f"has the dimensions {shown(map(str, values))}")
        return tuple(value for value in values if type(value) is int)

    def _axes(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
        """The order of the axes in the storage; None for C order."""
        real = [axis for axis, size in enumerate(shape) if size > 1]
        order = sorted(real, key=lambda axis: -strides[axis])
        step = 1
        for axis in reversed(order):
            if strides[axis] != step:
                what = f"is a view with strides {list(strides)}, whose elements do not lie together"
                self._refuse(what)
            step *= shape[axis]
        if order == real:
            return None
        return (*(axis for axis in range(len(shape)) if axis not in order), *order)

    def _refuse(self, what: str) -> NoReturn:
        raise PickleError(self._path, f"tensor {quoted(self._name)} {what}", SAVE_AGAIN)
