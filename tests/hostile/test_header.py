"""Cases 1 to 11: a safetensors header that lies. Each is refused for its own reason."""

from __future__ import annotations

import json
import os
import socket
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from checkpoint.header import read_header
from configs.errors import HeaderError, SourceError
from tests.factories import safetensors_bytes

WEIGHT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = bytes(8)


def one(**fields: Any) -> bytes:
    """A file of one tensor with some of its fields changed."""
    return safetensors_bytes({"w": WEIGHT | fields}, DATA)


def two(first: list[int], second: list[int], data: int) -> bytes:
    """A file of two tensors with these ranges."""
    header = {
        name: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for name, (begin, end) in (("a", first), ("b", second))
    }
    return safetensors_bytes(header, bytes(data))


def with_text(text: str) -> bytes:
    return safetensors_bytes(text.encode(), DATA)


HTML = b"\n<!DOCTYPE html>\n<html><body>404</body></html>" + bytes(100)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n"
ENTRY = json.dumps(WEIGHT)

CASES = {
    # 1
    "no bytes": (b"", "truncated: 0 bytes"),
    "three bytes": (b"\x01\0\0", "truncated: 3 bytes"),
    "cut in the header": (one()[:20], "truncated: its header has"),
    "cut in the data": (one()[:-1], "'w' ends at byte"),
    # 2
    "length 2^63": (struct.pack("<Q", 2**63) + b"{}", "length of 9,223,372,036,854,775,808"),
    "length over the limit": (struct.pack("<Q", 100_000_001) + b"{}", "over 100,000,000"),
    "length 0": (struct.pack("<Q", 0) + b"{}", "a length of 0"),
    "length beyond the file": (struct.pack("<Q", 3) + b"{}", "header has 3 bytes, the file"),
    # 3, 4
    "LFS pointer": (LFS, "is a Git-LFS pointer"),
    "HTML": (HTML, "is an HTML page"),
    "HTML with a byte-order mark": (b"\xef\xbb\xbf<html>" + bytes(20), "is an HTML page"),
    "error message": (b'{"error":"Entry not found"}', "is a server's error message"),
    "zip": (b"PK\x03\x04" + bytes(60), "is a zip archive"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(60), "is a GGUF file"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(60), "is compressed"),
    # 5
    "bad UTF-8": (safetensors_bytes(b'{"\xff": {}}'), "not valid UTF-8 at byte 2"),
    "bad JSON": (with_text('{"w": '), "not valid JSON"),
    "trailing comma": (with_text(f'{{"w": {ENTRY},}}'), "not valid JSON"),
    "text after the object": (with_text(f'{{"w": {ENTRY}}} x'), "not valid JSON: Extra data"),
    "array": (with_text("[1, 2]"), "does not begin with {"),
    "space first": (with_text(" {}"), "does not begin with {"),
    "lone surrogate": (with_text(f'{{"\\ud800": {ENTRY}}}'), "half of a surrogate pair"),
    "lone surrogate in metadata": (
        with_text(f'{{"__metadata__": {{"a": "\\uDFFF"}}, "w": {ENTRY}}}'),
        "half of a surrogate pair",
    ),
    "control character": (with_text(f'{{"a\x01": {ENTRY}}}'), "Invalid control character"),
    "NaN": (with_text('{"w": NaN}'), "it has NaN"),
    "out of range": (with_text('{"w": 1e999}'), "out of range"),
    "endless number": (with_text(f'{{"w": {"9" * 5000}}}'), "a number of thousands of digits"),
    # 6
    "deep": (with_text('{"w":' + "[" * 100_000), "nested too deep"),
    "deep objects": (with_text('{"w":' * 100_000), "nested too deep"),
    # 7
    "name twice": (with_text(f'{{"w": {ENTRY}, "w": {ENTRY}}}'), "key 'w' is given twice"),
    "field twice": (with_text('{"w": {"dtype": "F32", "dtype": "F32"}}'), "key 'dtype' is given"),
    "metadata twice": (with_text('{"__metadata__": {}, "__metadata__": {}}'), "given twice"),
    "metadata key twice": (with_text('{"__metadata__": {"a": "", "a": ""}}'), "'a' is given twice"),
    # 8
    "overlap": (two([0, 5], [4, 8], 8), "tensor 'a' and tensor 'b' overlap"),
    "same range": (two([0, 8], [0, 8], 8), "tensor 'a' and tensor 'b' overlap"),
    "hole": (two([0, 3], [4, 8], 8), "1 bytes between tensor 'a' and tensor 'b'"),
    "hole at the start": (one(data_offsets=[8, 16]) + DATA, "8 bytes between the header and"),
    "bytes at the end": (one() + b"x", "1 bytes after tensor 'w'"),
    "bytes but no tensor": (safetensors_bytes({}, DATA), "8 bytes after the header"),
    "empty tensor inside another": (
        safetensors_bytes(
            {"w": WEIGHT, "z": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}}, DATA
        ),
        "tensor 'w' and tensor 'z' overlap",
    ),
    # 9
    "negative": (one(shape=[-2]), "dimension -2"),
    "minus zero": (with_text(f'{{"w": {ENTRY.replace("[2]", "[-0]")}}}'), "not an integer: -0.0"),
    "float": (one(shape=[2.0]), "not an integer: 2.0"),
    "bool": (one(shape=[2, True]), "not an integer: true"),
    "string": (one(shape=["2"]), 'not an integer: "2"'),
    "null": (one(shape=[None]), "not an integer: null"),
    "array in the shape": (one(shape=[[2]]), "not an integer: an array"),
    "beyond 2^31-1": (one(shape=[2**31, 0]), "dimension 2147483648"),
    "dimension of 4,000 digits": (one(shape=[10**4000]), "dimension 1000000000000000"),
    "too many dimensions": (one(shape=[1] * 65), "65 dimensions"),
    "shape not an array": (one(shape=2), "a shape that is a number"),
    # 10
    "wrapping product": (one(shape=[2**16, 2**16, 2**16, 2**16, 2]), "has 8 bytes, but F32"),
    "too few bytes": (one(shape=[3]), "has 8 bytes, but F32 [3] takes 12"),
    "too many bytes": (one(shape=[]), "has 8 bytes, but F32 [] takes 4"),
    "backwards": (one(data_offsets=[8, 0]), "two ascending byte offsets"),
    "negative offset": (one(data_offsets=[-8, 0]), "two ascending byte offsets"),
    "one offset": (one(data_offsets=[8]), "two ascending byte offsets"),
    "bool offset": (one(data_offsets=[False, 8]), "two ascending byte offsets"),
    "offset beyond 64 bits": (one(data_offsets=[2**64, 2**64 + 8]), "two ascending byte offsets"),
    # 11
    "unknown dtype": (one(dtype="F12"), "dtype 'F12', which is unknown"),
    "lower-case dtype": (one(dtype="f32"), "dtype 'f32', which is unknown"),
    "4-bit dtype": (one(dtype="F4", shape=[16]), "dtype 'F4', which MLX can't carry"),
    "6-bit dtype": (one(dtype="F6_E2M3", shape=[4]), "'F6_E2M3', which MLX can't carry"),
    "64-bit float": (one(dtype="F64", shape=[1]), "'F64', which MLX can't carry"),
    "dtype not a string": (one(dtype=["F32"]), "a dtype that is an array"),
    # and what the format does not name
    "no shape": (safetensors_bytes({"w": {"dtype": "F32", "data_offsets": [0, 8]}}), "no shape"),
    "unknown field": (one(strides=[1]), "unknown field 'strides'"),
    "tensor not an object": (safetensors_bytes({"w": ["F32", [2], [0, 8]]}, DATA), "an array"),
    "metadata not an object": (safetensors_bytes({"__metadata__": [], "w": WEIGHT}, DATA), "array"),
    "metadata not text": (
        safetensors_bytes({"__metadata__": {"a": 1}, "w": WEIGHT}, DATA),
        "'a' is a number",
    ),
}


@pytest.mark.parametrize(("content", "reason"), CASES.values(), ids=CASES.keys())
def test_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert caught.value.where == str(path)
    assert reason in caught.value.what
    assert caught.value.mend
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("content", "mend"),
    [(LFS, "git lfs pull"), (HTML, "download it again"), (one(dtype="F4"), "BF16, F32")],
)
def test_how_to_mend(tmp_path: Path, content: bytes, mend: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert mend in caught.value.mend


def test_long_name_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"n" * 1_000_000: WEIGHT | {"dtype": "?"}}, DATA))
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert len(str(caught.value)) < 700


def test_nothing_is_allocated_on_the_headers_word(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**41)  # sparse: a length that the file could hold
    tracemalloc.start()
    with pytest.raises(HeaderError, match="over 100,000,000"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("value", ["[]", "{}", "1.5", "999", '"a"'])
def test_more_values_than_memory(tmp_path: Path, value: str) -> None:
    """A short text that would parse to gigabytes is refused before it is parsed."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_text('{"w": [' + f"{value}," * 2_000_000 + "0]}"))
    with pytest.raises(HeaderError, match="holds more than 2,000,000 values"):
        read_header(path)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "socket"])
def test_not_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Case 14: refused at once; a FIFO that nobody writes to would wait for ever."""
    path = tmp_path / "model.safetensors"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    with pytest.raises(SourceError, match="not a file"):
        read_header(path)
