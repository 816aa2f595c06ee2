"""Mutated safetensors files: a typed error, or exactly what the safetensors library reads.

What the library refuses, we refuse; we never raise anything but our own error.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint import disk
from checkpoint.dtypes import DTYPES
from checkpoint.header import read_header
from configs.errors import HeaderError
from tests.factories import safetensors_bytes

HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "empty": {"dtype": "U8", "shape": [0, 7], "data_offsets": [32, 32]},
    "scalar": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
}
DATA = bytes(range(40))
VALID = safetensors_bytes(HEADER, DATA)

words = st.sampled_from(
    [
        *(b"{ } [ ] , : - 0 1e0 null true NaN".split()),
        *(b'"', b'"a":0,', b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0", b"\n"),
    ]
)
bytes_of_interest = st.binary(min_size=1, max_size=9) | words
numbers = st.one_of(
    st.integers(-2, 50),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**30, 0.0, -0.0, 4.0]),
)
values = st.one_of(
    numbers,
    st.none(),
    st.booleans(),
    st.text(max_size=4),
    st.sampled_from(["F32", "F16", "U8", "F4", "F8_E4M3", "f32", "C64"]),
    st.lists(numbers, max_size=4),
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), numbers, max_size=3),
)

tensors = st.tuples(
    st.text().filter(lambda name: name != "__metadata__"),
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(0, 4), max_size=4),
)


@st.composite
def mutated_bytes(draw: st.DrawFn) -> bytes:
    """The valid file with a few bytes flipped, cut out, put in, or cut off."""
    content = bytearray(VALID)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["flip", "replace", "insert", "delete", "truncate", "append"])):
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "replace":
                new = draw(bytes_of_interest)
                content[at : at + len(new)] = new
            case "insert":
                new = draw(bytes_of_interest)
                content[at:at] = new
                if draw(st.booleans()):  # keep the header's length right, to come further
                    length = int.from_bytes(content[:8], "little") + len(new)
                    content[:8] = (length % 2**64).to_bytes(8, "little")
            case "delete":
                del content[at : at + draw(st.integers(1, 9))]
            case "truncate":
                del content[at:]
            case _:
                content += draw(bytes_of_interest)
    return bytes(content)


@st.composite
def mutated_header(draw: st.DrawFn) -> bytes:
    """A well-formed file whose header says other things: fields changed, gone, added, moved."""
    header = json.loads(json.dumps(HEADER))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(header)))
        entry = header[name]
        match draw(st.sampled_from(["field", "item", "drop", "rename", "whole", "add"])):
            case "field" if isinstance(entry, dict):
                field = draw(st.sampled_from([*entry, "extra"]))
                entry[field] = draw(values)
            case "item" if isinstance(entry, dict):
                lists = [value for value in entry.values() if isinstance(value, list) and value]
                if lists:
                    chosen = draw(st.sampled_from(lists))
                    chosen[draw(st.integers(0, len(chosen) - 1))] = draw(numbers)
            case "drop" if len(header) > 1:
                del header[name]
            case "rename":
                header[draw(st.text(max_size=3))] = header.pop(name)
            case "whole":
                header[name] = draw(values)
            case _:
                header[draw(st.text(max_size=3))] = json.loads(json.dumps(entry))
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    data = draw(st.sampled_from([DATA, DATA[:32], DATA[:24], DATA + b"x", b""]))
    return safetensors_bytes(text + b" " * draw(st.integers(0, 2)), data)


@settings(max_examples=400, deadline=None)
@given(mutated_bytes())
def test_bytes(content: bytes) -> None:
    check(content)


@settings(max_examples=400, deadline=None)
@given(mutated_header())
def test_header(content: bytes) -> None:
    check(content)


@settings(max_examples=100, deadline=None)
@given(st.lists(tensors, max_size=5, unique_by=lambda tensor: tensor[0]), st.randoms())
def test_valid(described: list[tuple[str, str, list[int]]], order: random.Random) -> None:
    """Any names, shapes and types, in any order of the header: read, and read alike."""
    header, data = {}, b""
    for name, dtype, shape in described:
        nbytes = math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + nbytes],
        }
        data += order.randbytes(nbytes)
    shuffled = list(header.items())
    order.shuffle(shuffled)
    read = check(safetensors_bytes(dict(shuffled), data))
    assert read is not None
    assert read.keys() == header.keys()


def check(content: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """Read by both; what we read, or None where we refuse."""
    expected = read_by_library(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        try:
            ours = read_by_us(path)
        except HeaderError as error:
            assert str(error).startswith(str(path))
            str(error).encode()  # no lone surrogate reaches the terminal
            return None
    assert ours == expected
    return ours


def read_by_us(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    read = {}
    for name, ref in read_header(path).tensors.items():
        buffer = bytearray(ref.nbytes)
        with disk.reading(path) as fd:
            disk.read_into(fd, path, buffer, ref.offset)
        read[name] = (ref.dtype, list(ref.shape), bytes(buffer))
    return read


def read_by_library(content: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    try:
        views = safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return None
    return {name: (view["dtype"], view["shape"], bytes(view["data"])) for name, view in views}
