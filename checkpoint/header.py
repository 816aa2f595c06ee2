"""Reads the header of one safetensors file, and believes nothing in it.

Owns the format's rules, all of those the safetensors library holds files to and a few
more: no field twice, no unknown field, no dimension MLX could not index. Nothing is
allocated on a header's word, and no tensor's bytes are read. Knows nothing of shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from checkpoint import disk
from checkpoint.dtypes import DTYPES, NOT_CARRIED, Dtype, carried_names
from checkpoint.json_file import json_type, json_value, parse, quoted
from checkpoint.tensors import TensorRef
from configs.errors import HeaderError

# The safetensors library's own limit.
HEADER_LIMIT = 100_000_000
# MLX counts a dimension in 32 bits with a sign.
_LARGEST_DIMENSION = 2**31 - 1
_LENGTH_BYTES = 8
_MOST_DIMENSIONS = 64
_FIELDS = ("dtype", "shape", "data_offsets")
_AGAIN = "download it again"

# How files that are something else begin, in lower case.
_OTHER_FORMATS = {
    b"version https://git-lfs": (
        "is a Git-LFS pointer, not the file itself",
        "run `git lfs pull` in its folder",
    ),
    b"<!doctype html": ("is an HTML page, not a safetensors file", _AGAIN),
    b"<html": ("is an HTML page, not a safetensors file", _AGAIN),
    b"<?xml": ("is an XML page, not a safetensors file", _AGAIN),
    b'{"error"': ("is a server's error message, not a safetensors file", _AGAIN),
    b"pk\x03\x04": ("is a zip archive (a PyTorch file?)", "save it as safetensors"),
    b"gguf": ("is a GGUF file", "use the safetensors checkpoint it was made from"),
    b"\x1f\x8b": ("is compressed with gzip", "unpack it first"),
}


@dataclass(frozen=True)
class Header:
    """What one safetensors file says it holds, checked.

    Attributes:
        tensors: By name, in the order of their bytes.
        metadata: The free text under `__metadata__`.
        data_offset: Where the first tensor's bytes begin.
        file_bytes: The size of the file.
    """

    tensors: dict[str, TensorRef]
    metadata: dict[str, str]
    data_offset: int
    file_bytes: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        HeaderError: The file is not a safetensors file that MLX can carry.
        SourceError: It is not a regular file.
        DiskError: It can't be read.
    """
    with disk.reading(path) as fd:

        def read(count: int, offset: int) -> bytearray:
            buffer = bytearray(count)
            disk.read_into(fd, path, buffer, offset)
            return buffer

        return parse_header(path, disk.file_bytes(fd, path), read)


def parse_header(path: Path, file_bytes: int, read: Callable[[int, int], bytearray]) -> Header:
    """As `read_header`, for a file whose bytes come from elsewhere.

    Args:
        path: Where the file lies or will lie; it is not opened.
        file_bytes: Its size.
        read: Gives so many bytes from an offset.

    Raises:
        HeaderError: The file is not a safetensors file that MLX can carry.
    """
    start = read(min(file_bytes, 64), 0)
    starts_well = start[_LENGTH_BYTES:].startswith(b"{")
    if not starts_well:
        _refuse_other_formats(path, start)
    length = _header_length(path, start, file_bytes)
    if not starts_well:
        raise _invalid(path, "it does not begin with {")
    text = read(length, _LENGTH_BYTES)
    entries = parse(text, path, _InvalidHeaderError)
    del text
    metadata = _metadata(path, entries.pop("__metadata__", {}))
    data_offset = _LENGTH_BYTES + length
    refs = [_tensor(path, name, entry, data_offset) for name, entry in entries.items()]
    refs.sort(key=lambda ref: (ref.offset, ref.nbytes))
    _refuse_gaps(path, refs, data_offset, file_bytes)
    return Header({ref.name: ref for ref in refs}, metadata, data_offset, file_bytes)


class _InvalidHeaderError(HeaderError):
    """The header's text is not JSON: said as such, since the file as a whole is not text."""

    def __init__(self, where: Path, what: str, mend: str = "") -> None:
        super().__init__(where, f"has an invalid header: it {what}", mend or _AGAIN)


def _invalid(path: Path, what: str) -> HeaderError:
    return HeaderError(path, f"has an invalid header: {what}", _AGAIN)


def _refuse_other_formats(path: Path, start: bytearray) -> None:
    begins = bytes(start).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, (what, mend) in _OTHER_FORMATS.items():
        if begins.startswith(magic):
            raise HeaderError(path, what, mend)


def _header_length(path: Path, start: bytearray, file_bytes: int) -> int:
    if file_bytes < _LENGTH_BYTES:
        what = f"is truncated: {file_bytes} bytes can't hold even the header's length"
        raise HeaderError(path, what, _AGAIN)
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > HEADER_LIMIT:
        raise _invalid(path, f"a length of {length:,} bytes, over {HEADER_LIMIT:,}")
    if length > file_bytes - _LENGTH_BYTES:
        what = f"is truncated: its header has {length:,} bytes, the file only {file_bytes:,}"
        raise HeaderError(path, what, _AGAIN)
    if length < 2:
        raise _invalid(path, f"a length of {length}")
    return length


def _metadata(path: Path, value: object) -> dict[str, str]:
    if value is None:  # as mx.save_safetensors writes it when it is given none
        return {}
    if not isinstance(value, dict):
        raise _invalid(path, f"__metadata__ is {json_type(value)}, not an object")
    for key, text in value.items():
        if not isinstance(text, str):
            raise _invalid(path, f"__metadata__ {quoted(key)} is {json_type(text)}, not a string")
    return value


def _tensor(path: Path, name: str, entry: object, data_offset: int) -> TensorRef:
    """One entry of the header, checked by itself."""
    if not isinstance(entry, dict):
        raise _refusal(path, name, f"is {json_type(entry)}, not an object")
    for field in entry:
        if field not in _FIELDS:
            raise _refusal(path, name, f"has an unknown field {quoted(field)}")
    for field in _FIELDS:
        if field not in entry:
            raise _refusal(path, name, f"has no {field}")
    dtype = _dtype(path, name, entry["dtype"])
    shape = _shape(path, name, entry["shape"])
    begin, end = _offsets(path, name, entry["data_offsets"])
    nbytes = math.prod(shape) * dtype.itemsize
    if end - begin != nbytes:
        what = f"has {end - begin:,} bytes, but {dtype.name} {list(shape)} takes {nbytes:,}"
        raise _refusal(path, name, what)
    return TensorRef(path, name, dtype.name, shape, data_offset + begin, nbytes)


def _dtype(path: Path, name: str, value: object) -> Dtype:
    if not isinstance(value, str):
        raise _refusal(path, name, f"has a dtype that is {json_type(value)}, not a string")
    dtype = DTYPES.get(value)
    if dtype is None:
        why = "which MLX can't carry" if value in NOT_CARRIED else "which is unknown"
        mend = f"save it as one of {carried_names()}"
        raise HeaderError(path, f"tensor {quoted(name)} has dtype {quoted(value)}, {why}", mend)
    return dtype


def _shape(path: Path, name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _refusal(path, name, f"has a shape that is {json_type(value)}, not an array")
    if len(value) > _MOST_DIMENSIONS:
        raise _refusal(path, name, f"has {len(value):,} dimensions, over {_MOST_DIMENSIONS}")
    for dimension in value:
        if type(dimension) is not int:
            what = f"has a dimension that is not an integer: {json_value(dimension)}"
            raise _refusal(path, name, what)
        if not 0 <= dimension <= _LARGEST_DIMENSION:
            what = f"has the dimension {json_value(dimension)}, outside 0 to {_LARGEST_DIMENSION}"
            raise _refusal(path, name, what)
    return tuple(value)


def _offsets(path: Path, name: str, value: object) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2:
        begin, end = value
        if type(begin) is int and type(end) is int and 0 <= begin <= end < 2**63:
            return begin, end
    raise _refusal(path, name, "has data_offsets that are not two ascending byte offsets")


def _refusal(path: Path, name: str, what: str) -> HeaderError:
    return HeaderError(path, f"tensor {quoted(name)} {what}", _AGAIN)


def _refuse_gaps(path: Path, refs: list[TensorRef], data_offset: int, file_bytes: int) -> None:
    """Hold the tensors, in the order of their bytes, to fill the file exactly."""
    end, last = data_offset, None
    for ref in refs:
        if ref.offset != end:
            before, here = _called(last), _called(ref)
            if ref.offset < end:
                raise HeaderError(path, f"{before} and {here} overlap", _AGAIN)
            hole = f"{ref.offset - end:,} bytes between {before} and {here}"
            raise HeaderError(path, f"has a hole: {hole} belong to no tensor", _AGAIN)
        end, last = end + ref.nbytes, ref
    if end > file_bytes:
        what = f"is truncated: {_called(last)} ends at byte {end:,}, the file at {file_bytes:,}"
        raise HeaderError(path, what, _AGAIN)
    if end < file_bytes:
        what = f"has {file_bytes - end:,} bytes after {_called(last)}, which belong to no tensor"
        raise HeaderError(path, what, _AGAIN)


def _called(ref: TensorRef | None) -> str:
    return "the header" if ref is None else f"tensor {quoted(ref.name)}"
