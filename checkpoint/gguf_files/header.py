"""The header of one GGUF file: its metadata and where its tensors lie.

Owns the format, versions 2 and 3, and believes nothing in it: every count and length is
held to the bytes that are there. Reads no tensor. Knows nothing of what the metadata mean.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.json_file import quoted
from checkpoint.tensors import TensorRef
from configs.errors import HeaderError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_AGAIN = "download it again"
_CHUNK = 1 << 20
_LONGEST = 8 << 20  # of a string
_MOST_ITEMS = 1 << 23  # of an array
_MOST_TENSORS = 1 << 20
_HEADER_LIMIT = 1 << 28
_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
PLAIN = {0: ("F32", 4), 1: ("F16", 2), 30: ("BF16", 2)}
"""Types that are numbers as they are: safetensors' name, and bytes."""
BLOCKS = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}
"""Types in blocks: llama.cpp's name, weights of a block, bytes of a block."""
_OTHERS = {
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says it holds, checked.

    Attributes:
        metadata: By llama.cpp's keys.
        tensors: By llama.cpp's names. In blocks: [..., rows, blocks, bytes], the dtype the
            type's name.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]


def read_gguf(path: Path) -> GgufHeader:
    """Read and check a file's header.

    Raises:
        HeaderError: It is no GGUF file of a version and of types that can be read.
        DiskError: It can't be read.
    """
    with disk.reading(path) as descriptor:
        return _Parser(path, descriptor, disk.file_bytes(descriptor, path)).header()


class _Parser:
    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self._path, self._descriptor, self._size = path, descriptor, size
        self._at, self._start, self._chunk = 0, 0, b""

    def header(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise HeaderError(self._path, "is no GGUF file", _AGAIN)
        version, count, keys = self._numbers("IQQ")
        if version not in _VERSIONS:
            raise HeaderError(
                self._path, f"is GGUF of version {version}, not 2 or 3", "convert it anew"
            )
        if count > _MOST_TENSORS or keys > _MOST_TENSORS:
            raise self._invalid(f"{count:,} tensors and {keys:,} keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            if key in metadata:
                raise self._invalid(f"{quoted(key)} twice")
            metadata[key] = self._value(self._number("I"))
        told = [self._told() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20:
            raise self._invalid("an alignment that can't be")
        begin = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorRef] = {}
        for name, shape, kind, offset in told:
            if name in tensors:
                raise self._invalid(f"tensor {quoted(name)} twice")
            tensors[name] = self._ref(name, shape, kind, begin + offset)
        self._refuse_overlaps(tensors)
        return GgufHeader(metadata, dict(sorted(tensors.items())))

    def _told(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        axes = self._number("I")
        if not 1 <= axes <= 4:
            raise self._invalid(f"tensor {quoted(name)} of {axes} dimensions")
        sizes = self._numbers(f"{axes}Q")
        kind, offset = self._numbers("IQ")
        if any(not 0 < size < 1 << 31 for size in sizes) or offset > self._size:
            raise self._invalid(f"tensor {quoted(name)} with a shape or place that can't be")
        return name, tuple(reversed(sizes)), kind, offset

    def _ref(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorRef:
        if kind in PLAIN:
            dtype, item = PLAIN[kind]
            nbytes = math.prod(shape) * item
        elif kind in BLOCKS:
            dtype, weights, size = BLOCKS[kind]
            if shape[-1] % weights:
                raise self._invalid(f"tensor {quoted(name)} whose rows blocks don't divide")
            shape = (*shape[:-1], shape[-1] // weights, size)
            nbytes = math.prod(shape)
        else:
            names = [*(told[0] for told in PLAIN.values()), *(told[0] for told in BLOCKS.values())]
            known = ", ".join(names)
            raise HeaderError(
                self._path,
                f"holds {quoted(name)} as {_OTHERS.get(kind, f'type {kind}')}, which can't be read",
                f"take a file of these: {known}",
            )
        if offset + nbytes > self._size:
            raise HeaderError(self._path, f"is truncated: {quoted(name)} ends beyond it", _AGAIN)
        return TensorRef(self._path, name, dtype, shape, offset, nbytes)

    def _refuse_overlaps(self, tensors: Mapping[str, TensorRef]) -> None:
        end = 0
        for ref in sorted(tensors.values(), key=lambda ref: ref.offset):
            if ref.offset < end:
                raise self._invalid(f"tensor {quoted(ref.name)} that overlaps another")
            end = ref.offset + ref.nbytes

    def _value(self, kind: int) -> Any:
        if kind in _FORMATS:
            return self._number(_FORMATS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._invalid(f"a value of type {kind}")
        item, count = self._numbers("IQ")
        if count > _MOST_ITEMS or count > self._size or item not in (*_FORMATS, _STRING):
            raise self._invalid(f"an array of {count:,} values of type {item}")
        if item == _STRING:
            return [self._string() for _ in range(count)]
        return list(self._numbers(f"{count}{_FORMATS[item]}"))

    def _string(self) -> str:
        length = self._number("Q")
        if length > _LONGEST:
            raise self._invalid(f"a text of {length:,} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self._invalid("a text that is not UTF-8") from error

    def _number(self, form: str) -> Any:
        return self._numbers(form)[0]

    def _numbers(self, form: str) -> tuple[Any, ...]:
        form = f"<{form}"
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, count: int) -> bytes:
        """The next bytes."""
        stop = self._at + count
        if stop > min(self._size, _HEADER_LIMIT):
            raise HeaderError(self._path, "is truncated: its header ends beyond it", _AGAIN)
        if stop > self._start + len(self._chunk):
            buffer = bytearray(min(max(count, _CHUNK), self._size - self._at))
            disk.read_into(self._descriptor, self._path, buffer, self._at)
            self._start, self._chunk = self._at, bytes(buffer)
        piece = self._chunk[self._at - self._start : stop - self._start]
        self._at = stop
        return piece

    def _invalid(self, what: str) -> HeaderError:
        return HeaderError(self._path, f"has an invalid header: {what}", _AGAIN)
