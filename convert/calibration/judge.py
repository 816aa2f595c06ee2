"""What quantized weights lose where the calibration has not looked.

Judges are asked about some rows of a layer at a time. `Unseen` compares outputs on tokens that
were kept back; `Evenly` is for tables, whose rows are looked up and which have no inputs.
Owns those two measures; knows nothing of how weights are made.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from convert.calibration.hessian import Floats


class Judge(Protocol):
    """Tells losses."""

    @property
    def sound(self) -> bool:
        """Whether it has anything to judge by, and only numbers."""

    def wanted(self, weights: Floats, first_row: int) -> Floats:
        """What `loss` compares with for some rows of the source's weights, [rows, in]."""

    def loss(self, made: Floats, wanted: Floats) -> float:
        """The squared error of some rows, [rows, in], in all."""


class Unseen:
    """Tokens of a layer that were kept back.

    Args:
        x: Inputs that the layer will have, [tokens, in], in parts.
        source: Those in the source, as many; None where they are the same.
        lack: What the source's stream holds beyond ours, [tokens, out], if anything.
    """

    def __init__(
        self,
        x: list[Floats],
        source: list[Floats] | None = None,
        lack: list[Floats] | None = None,
    ) -> None:
        self._x = _joined(x)
        self._source = self._x if source is None else _joined(source)
        self._lack = _joined(lack) if lack else None

    @property
    def tokens(self) -> int:
        """How many."""
        return len(self._x)

    @property
    def sound(self) -> bool:
        every = [self._x, self._source, *([] if self._lack is None else [self._lack])]
        return bool(self._x.any()) and all(np.isfinite(each).all() for each in every)

    def wanted(self, weights: Floats, first_row: int) -> Floats:
        """The outputs that there should be, [tokens, rows]."""
        made: Floats = self._source @ weights.T
        if self._lack is not None:
            made += self._lack[:, first_row : first_row + len(weights)]
        return made

    def loss(self, made: Floats, wanted: Floats) -> float:
        apart = self._x @ made.T
        apart -= wanted
        return float(np.sum(np.square(apart, out=apart), dtype=np.float64))


class Evenly:
    """Every row alike, columns by a matrix.

    Args:
        hessian: How much errors of columns, and pairs of them, count, [in, in].
    """

    def __init__(self, hessian: Floats) -> None:
        self._hessian = hessian

    @property
    def sound(self) -> bool:
        return bool(self._hessian.any() and np.isfinite(self._hessian).all())

    def wanted(self, weights: Floats, first_row: int) -> Floats:
        """The weights themselves."""
        return weights

    def loss(self, made: Floats, wanted: Floats) -> float:
        error = made - wanted
        return float(np.sum((error @ self._hessian) * error, dtype=np.float64))


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
