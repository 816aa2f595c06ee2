"""A cache in a file: what a model has read of some tokens, to go on with another day.

Owns the file's form, a safetensors file, and the check that a file is of this model, run
in this way. What it says of itself is believed only where a cache that the model makes
anew has the same form. Which of its tokens still count is its reader's to find out.

    tokens         [n], the token ids that were read
    0, 1, ...      the arrays of the entries and of the marks
    __metadata__   "format", what must be the same ("model", "dtype", ...), and "entries" and
                   "marks": JSON of their states, with {"array": k} where an array was
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from checkpoint import disk
from checkpoint.dtypes import DTYPES
from checkpoint.header import Header, read_header
from checkpoint.json_file import parse
from configs.errors import SourceError
from inference.cache import Held, KvForm, SequenceCache
from inference.load import LoadedModel
from inference.marks import Mark
from inference.replacing import replace_file

_FORMAT = "mlx-ferry cache 1"
_NAMES = {getattr(mx, d.mlx): d.name for d in DTYPES.values() if not d.needs_scales}
_LOOKED_AT = 4096  # bytes of each tensor that tell one model from another
_CUT = ("KVCache", "QuantizedKVCache")  # kept without the room for tokens to come
_AGAIN = "save it anew"


def beside(path: Path) -> Path:
    """Where the cache of a saved chat lies."""
    return path.with_name(f"{path.name}.kv.safetensors")


def identity(loaded: LoadedModel, form: KvForm, load_bits: int | None) -> dict[str, str]:
    """What must be the same for a cache to be of use.

    Args:
        loaded: The model.
        form: Of the cache.
        load_bits: To which the weights were quantized when they were read.

    Raises:
        SourceError: A weight file is not what it was.
        DiskError: One can't be read.
    """
    folder = loaded.folder
    digest = hashlib.blake2b(json.dumps(folder.config, sort_keys=True).encode(), digest_size=16)
    for shard in folder.catalog.shards:
        with disk.reading(shard) as fd:
            for name, ref in folder.catalog.items():
                if ref.file != shard:
                    continue
                some = bytearray(min(ref.nbytes, _LOOKED_AT))
                disk.read_into(fd, shard, some, ref.offset + (ref.nbytes - len(some)) // 2)
                digest.update(f"{name} {ref.dtype} {ref.shape}".encode())
                digest.update(some)
    # Some models turn the positions of long texts otherwise than those of short ones.
    turned = hashlib.blake2b(digest_size=16)
    for path, module in loaded.model.named_modules():
        if isinstance(frequencies := getattr(module, "_freqs", None), mx.array):
            turned.update(f"{path} {frequencies.tolist()}".encode())
    return {
        "load_bits": str(load_bits),
        "adapter": "none" if folder.adapter is None else folder.adapter.digest,
        "model": digest.hexdigest(),
        "dtype": loaded.dtype,
        "kv_bits": str(form.bits),
        "kv_start": str(form.start),
        "position scaling": turned.hexdigest(),
    }


def save(path: Path, held: Held, marks: Sequence[Mark], same: Mapping[str, str]) -> None:
    """Write a cache, in one step.

    Args:
        path: The file.
        held: The cache.
        marks: Places to go back to.
        same: What `identity` gives.

    Raises:
        DiskError: It can't be written; what was there is still there.
    """
    arrays: list[mx.array] = []
    entries = [_encoded(_cut(entry), arrays) for entry in held.cache.layers]
    noted = [
        [mark.length, [None if e is None else _encoded(e.state, arrays) for e in mark.entries]]
        for mark in marks
    ]
    metadata = {
        "format": _FORMAT,
        **same,
        "entries": json.dumps(entries),
        "marks": json.dumps(noted),
    }
    named = {"tokens": mx.array(held.tokens, mx.int32)}
    named |= {str(index): array for index, array in enumerate(arrays)}
    replace_file(path, lambda new: _write(new, named, metadata))


def load(
    path: Path, model: nn.Module, form: KvForm, same: Mapping[str, str], mend: str = _AGAIN
) -> tuple[Held, list[Mark]]:
    """Read a cache.

    Args:
        path: The file.
        model: Whose cache it is.
        form: Of the cache.
        same: What `identity` gives.
        mend: What to do about a file that is of no use.

    Raises:
        SourceError: It is none, or of another model, dtype or kind of cache.
        DiskError: It can't be read.
    """
    header = read_header(path)
    if header.metadata.get("format") != _FORMAT:
        raise SourceError(path, "is no saved cache", mend)
    for name, value in same.items():
        if header.metadata.get(name) != value:
            raise SourceError(path, f"is of another {name}", mend)
    arrays: dict[str, mx.array] = mx.load(str(path), format="safetensors")  # type: ignore[assignment]
    for array in arrays.values():
        mx.eval(array)  # no computation later waits for the file
    read = _Reader(path, header, arrays, mend)
    tokens = read.tokens()
    made = _fresh(model, form, len(tokens)).layers
    layers = read.entries(read.json("entries"), made, len(tokens))
    marks = []
    for length, entries in read.marks(len(tokens)):
        if (place := Mark.of(_fresh(model, form, length))) is not None:
            filled = read.entries(entries, place.entries, length)
            marks.append(Mark.of_entries(length, tuple(filled)))
    return Held(tokens, SequenceCache.of(layers, len(tokens), form)), marks


def _fresh(model: nn.Module, form: KvForm, length: int) -> SequenceCache:
    """A cache that has read one token, with entries as they are after `length` of them."""
    cache = SequenceCache(model, form if length >= form.begins else KvForm())
    model(mx.array([[0]]), cache=cache.layers)
    cache.length += 1
    cache.compress()
    cache.evaluate()
    return cache


def _cut(entry: Any) -> Any:
    """An entry's state, without the room that it has for tokens to come."""
    if type(entry).__name__ not in _CUT or entry.keys is None:
        return entry.state
    keys, values = entry.keys_and_values()
    return (keys, values, *entry.state[2:])


def _encoded(state: Any, arrays: list[mx.array]) -> Any:
    if isinstance(state, mx.array):
        arrays.append(state)
        return {"array": len(arrays) - 1}
    if isinstance(state, (list, tuple)):
        return [_encoded(part, arrays) for part in state]
    return state


def _write(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        entries[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    fd = disk.create(path)
    try:
        disk.write_at(fd, path, struct.pack("<Q", len(text)) + text, 0)
        offset = 8 + len(text)
        for array in arrays.values():
            if array.nbytes:
                # The buffer protocol knows no bfloat16.
                flat = mx.contiguous(array).reshape(-1).view(mx.uint8)
                disk.write_at(fd, path, memoryview(flat), offset)  # type: ignore[arg-type]
            offset += array.nbytes
        disk.fsync(fd, path)
    finally:
        disk.close(fd, path)


class _Reader:
    """States read from a file, by the form of entries that the model made."""

    def __init__(
        self, path: Path, header: Header, arrays: Mapping[str, mx.array], mend: str
    ) -> None:
        self._path = path
        self._mend = mend
        self._metadata = header.metadata
        self._arrays = arrays

    def tokens(self) -> tuple[int, ...]:
        found = self._arrays.get("tokens")
        if found is None or found.dtype != mx.int32 or found.ndim != 1 or not found.size:
            raise self._refused()
        return tuple(found.tolist())  # type: ignore[arg-type]

    def json(self, name: str) -> Any:
        return parse(self._metadata.get(name, "").encode(), self._path)

    def marks(self, most: int) -> list[tuple[int, Any]]:
        found = self.json("marks")
        if not isinstance(found, list):
            raise self._refused()
        for mark in found:
            if not isinstance(mark, list) or len(mark) != 2:
                raise self._refused()
            if type(mark[0]) is not int or not 0 < mark[0] <= most:
                raise self._refused()
        return [(length, entries) for length, entries in found]

    def entries(self, states: Any, fresh: Sequence[Any], length: int) -> list[Any]:
        """The entries of the model's own, filled with the states after so many tokens."""
        if not isinstance(states, list) or len(states) != len(fresh):
            raise self._refused()
        for entry, state in zip(fresh, states, strict=True):
            if (entry is None) != (state is None):
                raise self._refused()
            if entry is not None:
                self._fill(entry, state, length)
        return list(fresh)

    def _fill(self, entry: Any, state: Any, length: int) -> None:
        entry.state = self._decoded(state, entry.state)
        if getattr(entry, "offset", length) != length:
            raise self._refused()
        if type(entry).__name__ in _CUT and any(
            array.shape[2] != length for array in _arrays(entry.state)
        ):
            raise self._refused()

    def _decoded(self, found: Any, like: Any) -> Any:
        if isinstance(like, mx.array):
            key = found.get("array") if isinstance(found, dict) else None
            array = self._arrays.get(str(key)) if type(key) is int else None
            if array is None or not _alike(array, like):
                raise self._refused()
            return array
        if isinstance(like, (list, tuple)):
            if not isinstance(found, list) or len(found) != len(like):
                raise self._refused()
            parts = [self._decoded(*each) for each in zip(found, like, strict=True)]
            return parts if isinstance(like, list) else tuple(parts)
        if type(found) is not type(like) or (isinstance(like, str) and found != like):
            raise self._refused()
        return found

    def _refused(self) -> SourceError:
        return SourceError(self._path, "does not hold a cache of this model", self._mend)


def _alike(array: mx.array, like: mx.array) -> bool:
    """Whether two arrays differ at most in the axis of tokens."""
    first, second = list(array.shape), list(like.shape)
    if array.dtype != like.dtype or len(first) != len(second):
        return False
    if len(first) == 4:
        first[2] = second[2] = 0
    return first == second


def _arrays(state: Any) -> list[mx.array]:
    if isinstance(state, mx.array):
        return [state]
    parts = state if isinstance(state, (list, tuple)) else ()
    return [array for part in parts for array in _arrays(part)]
