"""The state between blocks: read back to the bit, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert.calibration.state import State, States

SHAPE = (2, 3, 5, 4)


def state(number: int) -> State:
    hidden = np.random.default_rng(number).standard_normal(SHAPE).astype(np.float32)
    return State(number, hidden, {"a.weight": {"method": "search", "ratio": None}})


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    states = States(tmp_path / "states")
    assert states.load(1, SHAPE) is None
    states.save(state(1))
    found = States(tmp_path / "states").load(1, SHAPE)
    assert found is not None
    assert np.array_equal(found.hidden, state(1).hidden)
    assert (found.number, found.outcomes) == (1, state(1).outcomes)
    assert states.load(1, (2, 3, 5, 3)) is None


def test_two_are_kept(tmp_path: Path) -> None:
    states = States(tmp_path)
    for number in (0, 1, 2, 2, 3):
        states.save(state(number))
    assert [states.load(number, SHAPE) is not None for number in range(4)] == [0, 0, 1, 1]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("how", ["cut", "longer", "empty", "flipped", "head", "length"])
def test_a_damaged_state_is_none(tmp_path: Path, how: str) -> None:
    states = States(tmp_path)
    states.save(state(4))
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    damaged = {
        "cut": data[:-1],
        "longer": data + b"x",
        "empty": b"",
        "flipped": flipped,
        "head": data[:9] + b"\xff" + data[10:],
        "length": b"\xff" * 8 + data[8:],
    }
    path.write_bytes(damaged[how])
    assert states.load(4, SHAPE) is None
