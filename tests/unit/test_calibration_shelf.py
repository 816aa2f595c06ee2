"""What is put aside comes back, from memory and from the disk, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert.calibration.shelf import Shelf


@pytest.mark.parametrize("in_memory", [0, 200, 1 << 20])
def test_arrays_come_back(tmp_path: Path, in_memory: int) -> None:
    shelf = Shelf(tmp_path / "shelf", in_memory)
    arrays = {
        ("x", number): np.random.default_rng(number).standard_normal((7, 5)).astype(np.float32)
        for number in range(4)
    }
    for key, values in arrays.items():
        shelf.put(key, values)
    shelf.reserve(("y", 0), (6, 2))
    shelf.write(("y", 0), np.ones((2, 2), np.float32), 3)
    files = len(list(tmp_path.glob("shelf/*")))
    assert files == {0: 5, 200: 3, 1 << 20: 0}[in_memory]
    for key, values in arrays.items():
        assert shelf.has(key)
        assert np.array_equal(shelf.read(key), values)
        assert np.array_equal(shelf.read(key, 2, 6), values[2:6])
        assert shelf.read(key, 3, 3).shape == (0, 5)
    assert shelf.read(("y", 0)).sum(1).tolist() == [0, 0, 0, 2, 2, 0]
    shelf.put(("x", 1), np.zeros((1, 5), np.float32))  # in place of the other
    assert shelf.read(("x", 1)).tolist() == [[0.0] * 5]
    shelf.drop(lambda key: key[0] == "x")
    assert not shelf.has(("x", 0)) and shelf.has(("y", 0))
    shelf.drop()
    assert not list(tmp_path.glob("shelf/*"))


def test_memory_that_was_given_back_is_used_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 100)
    for _ in range(3):
        shelf.put(("x",), np.zeros((5, 5), np.float32))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 0)
    shelf.put(("x",), np.zeros((5, 5), np.float32))
    (tmp_path / "00001.state").write_bytes(b"x")
    Shelf(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00001.state"]
