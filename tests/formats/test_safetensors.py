"""Right safetensors files: read exactly as the safetensors library and MLX read them."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from checkpoint import disk
from checkpoint.dtypes import DTYPES, NOT_CARRIED, Dtype
from checkpoint.header import read_header
from checkpoint.tensors import TensorRef
from tests.factories import safetensors_bytes


def content(ref: TensorRef) -> bytes:
    buffer = bytearray(ref.nbytes)
    with disk.reading(ref.file) as fd:
        disk.read_into(fd, ref.file, buffer, ref.offset)
    return bytes(buffer)


def test_equal_to_the_library(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "half": torch.randn(3, 5, generator=generator).half(),
        "brain": torch.randn(7, generator=generator).bfloat16(),
        "full": torch.randn(2, 2, 2, generator=generator),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "字": torch.arange(5, dtype=torch.uint8),
    }
    save_file(tensors, path, {"format": "pt", "who": "wir"})
    header = read_header(path)
    assert header.metadata == {"format": "pt", "who": "wir"}
    assert header.tensors.keys() == tensors.keys()
    assert header.file_bytes == path.stat().st_size
    for name, view in safetensors.deserialize(path.read_bytes()):
        ref = header.tensors[name]
        assert (ref.name, ref.dtype, list(ref.shape)) == (name, view["dtype"], view["shape"])
        assert content(ref) == bytes(view["data"])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_dtypes_are_those_of_mlx(tmp_path: Path, dtype: Dtype) -> None:
    """Every type of the table loads in MLX, with the item size and name that we give it."""
    nbytes = 3 * dtype.itemsize
    path = tmp_path / "model.safetensors"
    tensor = {"dtype": dtype.name, "shape": [3], "data_offsets": [0, nbytes]}
    path.write_bytes(safetensors_bytes({"w": tensor}, bytes(nbytes)))
    loaded = mx.load(str(path))["w"]
    assert loaded.dtype == getattr(mx, dtype.mlx)
    assert loaded.nbytes == nbytes
    assert mx.issubdtype(loaded.dtype, mx.floating) == dtype.is_float
    assert read_header(path).tensors["w"].nbytes == nbytes


def test_every_dtype_of_the_library_is_known(tmp_path: Path) -> None:
    """The library names all its types when it meets one that it does not know."""
    path = tmp_path / "model.safetensors"
    tensor = {"dtype": "X", "shape": [1], "data_offsets": [0, 1]}
    path.write_bytes(safetensors_bytes({"w": tensor}, b"0"))
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.safe_open(path, "np")
    named = str(caught.value).split("expected one of ")[1].split(" at line")[0]
    assert {name.strip("`") for name in named.split(", ")} == DTYPES.keys() | NOT_CARRIED


@pytest.mark.parametrize("dtype", sorted(NOT_CARRIED))
def test_mlx_carries_no_other_dtype(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "model.safetensors"
    bits = {"F4": 4, "F64": 64}.get(dtype, 6 if dtype.startswith("F6") else 8)
    tensor = {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}
    path.write_bytes(safetensors_bytes({"w": tensor}, bytes(bits)))
    with pytest.raises(RuntimeError, match="unsupported dtype"):
        mx.load(str(path))


@pytest.mark.parametrize("padding", [b"", b" ", b"     ", b"\n"])
def test_padding_and_alignment(tmp_path: Path, padding: bytes) -> None:
    """The format asks for no alignment, and lets spaces follow the header's object."""
    tensors = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [3, 7]},
    }
    path = tmp_path / "model.safetensors"
    text = json.dumps(tensors).encode() + padding
    path.write_bytes(safetensors_bytes(text, b"abc" + b"\0\0\x80\x3f"))
    header = read_header(path)
    assert header.data_offset == 8 + len(text)
    assert content(header.tensors["b"]) == b"\0\0\x80\x3f"
    assert safetensors.safe_open(path, "np").keys() == ["a", "b"]


def test_order_of_the_header_does_not_matter(tmp_path: Path) -> None:
    tensors = {
        "late": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
        "early": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "empty": {"dtype": "U8", "shape": [0], "data_offsets": [1, 1]},
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(tensors, b"abc"))
    header = read_header(path)
    assert list(header.tensors) == ["early", "empty", "late"]
    assert content(header.tensors["late"]) == b"bc"


def test_header_that_looks_like_another_format(tmp_path: Path) -> None:
    """A header length whose bytes spell gzip's magic is a header length all the same."""
    path = tmp_path / "model.safetensors"
    text = b"{}" + b" " * (0x08_8B_1F - 2)
    path.write_bytes(safetensors_bytes(text))
    assert path.read_bytes().startswith(b"\x1f\x8b\x08")
    assert read_header(path).tensors == {}
