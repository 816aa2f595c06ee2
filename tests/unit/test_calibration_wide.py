"""Layers solved some columns at a time come near to those solved whole."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from checkpoint.packing import Quantization
from convert.calibration import wide
from convert.calibration.inputs import Inputs
from convert.calibration.layer import Outcome, Packed
from convert.calibration.shelf import Shelf
from convert.calibration.wide import column_parts
from tests.unit.test_calibration_numbers import inputs, random


@pytest.mark.parametrize(
    ("columns", "widest", "parts"),
    [
        (4096, None, [(0, 4096)]),
        (5120, None, [(0, 5120)]),
        (8192, None, [(0, 4096), (4096, 8192)]),
        (14336, None, [(0, 4864), (4864, 9728), (9728, 14336)]),
        (18944, None, [(0, 4736), (4736, 9472), (9472, 14208), (14208, 18944)]),
        (704, 300, [(0, 256), (256, 512), (512, 704)]),
    ],
)
def test_parts_of_columns(columns: int, widest: int | None, parts: list[tuple[int, int]]) -> None:
    assert column_parts(columns, widest) == parts


def solved(
    tmp_path: Path, drift: float, lack: bool, bits: int = 3
) -> tuple[Packed, Outcome, float]:
    """A layer of 512 columns on drifted inputs, and what it loses on tokens unseen."""
    weights = mx.array(random(48, 512) * 0.05).astype(mx.bfloat16)
    source = inputs(1600, 512)
    ours = source * np.float32(1 - drift) + np.float32(drift) * inputs(1600, 512, seed=4)
    lacks = random(1600, 48, seed=9) * np.float32(0.1) if lack else None
    given = Inputs(Shelf(tmp_path, 0), 1200)
    for low in range(0, 1600, 400):
        cut = slice(low, low + 400)
        given.add(low, source[cut], ours[cut], None if lacks is None else lacks[cut])
    form = Quantization(bits, 64, "affine")
    packed, outcome = given.solve(lambda low, high: weights[low:high], (48, 512), form)
    given.close()
    assert not list(tmp_path.iterdir())
    wanted = source @ np.array(weights.astype(mx.float32)).T + (0 if lacks is None else lacks)
    error = ours @ np.array(packed.values()).T - wanted
    return packed, outcome, float(np.square(error[1200:]).sum())


@pytest.mark.parametrize("drift", [0.0, 0.1])
@pytest.mark.parametrize("lack", [False, True])
def test_in_parts_as_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drift: float, lack: bool
) -> None:
    _, whole, best = solved(tmp_path, drift, lack)
    monkeypatch.setattr(wide, "WIDEST", 128)
    monkeypatch.setattr(wide, "_ROWS_TOGETHER", 20)  # so that there are parts of rows, too
    packed, outcome, found = solved(tmp_path, drift, lack)
    assert outcome.method == whole.method == "calibrated"
    assert outcome.ratio is not None and outcome.ratio < 0.8
    assert found < 1.12 * best
    assert [part.shape for part in packed.parts] == [(48, 48), (48, 8), (48, 8)]
