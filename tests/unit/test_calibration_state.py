"""The state between blocks: read back to the bit, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert.calibration.hessian import Floats
from convert.calibration.state import Draft, State, States

SHAPE = (3, 5, 4)
OUTCOMES = {"a.weight": {"method": "search", "ratio": None}}


def values(number: int) -> Floats:
    return np.random.default_rng(number).standard_normal((2, *SHAPE)).astype(np.float32)


def draft(states: States, number: int) -> Draft:
    made = states.begin(number, SHAPE)
    for low, high in ((0, 2), (2, 3)):
        for side in (0, 1):
            made.write(side, low, values(number)[side, low:high])
    return made


def save(states: States, number: int) -> State:
    made = draft(states, number).finish(OUTCOMES)
    states.tidy(number)
    return made


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    states = States(tmp_path / "states")
    assert states.load(1, SHAPE) is None
    written = save(states, 1)
    found = States(tmp_path / "states").load(1, SHAPE)
    assert found == written
    for side in (0, 1):
        assert np.array_equal(found.read(side, 0, 3), values(1)[side])
        assert np.array_equal(found.read(side, 1, 3), values(1)[side, 1:])
    assert found.outcomes == OUTCOMES
    assert states.load(1, (3, 5, 3)) is None


def test_two_are_kept(tmp_path: Path) -> None:
    states = States(tmp_path)
    for number in (0, 1, 2, 2, 3):
        save(states, number)
    assert [states.load(number, SHAPE) is not None for number in range(4)] == [0, 0, 1, 1]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("part", ["closing", "rows"])
def test_a_state_that_was_never_finished_is_none(tmp_path: Path, part: str) -> None:
    states = States(tmp_path)
    made = draft(states, 4) if part == "closing" else states.begin(4, SHAPE)
    if part == "rows":
        made.write(0, 0, values(4)[0])
        made.finish(OUTCOMES)
    assert states.load(4, SHAPE) is None


@pytest.mark.parametrize("how", ["cut", "longer", "empty", "flipped", "head", "length"])
def test_a_damaged_state_is_none(tmp_path: Path, how: str) -> None:
    states = States(tmp_path)
    save(states, 4)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    damaged = {
        "cut": data[:-1],
        "longer": data + b"x",
        "empty": b"",
        "flipped": data[:9] + bytes([data[9] ^ 1]) + data[10:],
        "head": data[:-12] + b"\xff" + data[-11:],
        "length": data[:-8] + b"\xff" * 8,
    }
    path.write_bytes(damaged[how])
    assert states.load(4, SHAPE) is None
