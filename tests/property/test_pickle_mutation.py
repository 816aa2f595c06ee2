"""Whatever is changed in a PyTorch file or a pickle, it is read or refused, and nothing else."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import tempfile
import zipfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.dtypes import DTYPES
from checkpoint.pickles.archive import read_archive
from checkpoint.pickles.unpickle import load
from configs.errors import FerryError

CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**127), 2**127 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inner, max_size=4)
    ),
    max_leaves=20,
)


def saved() -> bytes:
    weight = torch.arange(24.0).reshape(4, 6)
    buffer = io.BytesIO()
    torch.save({"model": {"a": weight, "b": weight.t(), "c": weight.bfloat16()}, "n": 3}, buffer)
    return buffer.getvalue()


SAVED = saved()
PICKLED = zipfile.ZipFile(io.BytesIO(SAVED)).read("archive/data.pkl")


def changed(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    made = bytearray(data)
    for place, value in changes:
        made[place % len(made)] = value
    return bytes(made)


def read(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        path.write_bytes(content)
        try:
            found = read_archive(path)
        except FerryError:
            return
    for ref in found.tensors.values():
        assert 0 <= ref.offset <= ref.offset + ref.nbytes <= len(content)
        assert ref.nbytes == math.prod(ref.shape) * DTYPES[ref.dtype].itemsize
        assert ref.axes is None or sorted(ref.axes) == list(range(len(ref.shape)))


@settings(max_examples=200, deadline=None)
@given(changes=CHANGES)
def test_archives(changes: list[tuple[int, int]]) -> None:
    read(changed(SAVED, changes))


@settings(max_examples=200, deadline=None)
@given(changes=CHANGES)
def test_pickles_in_archives(changes: list[tuple[int, int]]) -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(SAVED)) as source,
        zipfile.ZipFile(buffer, "w") as target,
    ):
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, changed(data, changes) if name.endswith("data.pkl") else data)
    read(buffer.getvalue())


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | CHANGES.map(lambda changes: changed(PICKLED, changes)))
def test_pickles(data: bytes) -> None:
    with contextlib.suppress(FerryError):
        load(data, (), "x.pkl", persistent_ids=True)


@settings(deadline=None)
@given(value=VALUES, protocol=st.integers(2, 5))
def test_values(value: object, protocol: int) -> None:
    assert load(pickle.dumps(value, protocol), (), "x.pkl") == value
