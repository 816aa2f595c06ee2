"""The embeddings of a model: looked up row by row, and quantized by what becomes of their errors.

A table's rows are looked up, and so weigh alike; how much each column counts is told by what
the first block's layers make of it and, where the table is also the head, by what the head is
given. Owns that, and the reading of those rows alone that a text has; knows nothing of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from checkpoint.architecture.on_demand import intercept
from checkpoint.packing import Quantization
from convert.calibration.hessian import Floats, Moments
from convert.calibration.judge import Evenly
from convert.calibration.layer import Packed, Solver, candidates, chosen, search_of
from convert.calibration.probe import flat
from convert.calibration.ways import OURS, SOURCE, ReadWeight
from convert.calibration.wide import WIDEST

_VALUES_TOGETHER = 1 << 24
# How much each error of an embedding counts beside what the first block makes of it, on average.
_EVENLY = np.float32(0.3)


class Tables:
    """A model's embeddings, intercepted for good.

    Args:
        modules: The model's modules by path.
        names: Of the weights that are of no block.
        shapes: Of its parameters.
        forms: How its weights are to be packed, by name.
        read: Gives weights.

    Attributes:
        made: Tables that are packed, by name.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        names: Container[str],
        shapes: Mapping[str, tuple[int, ...]],
        forms: Mapping[str, Quantization],
        read: ReadWeight,
    ) -> None:
        self._shapes, self._forms, self._read = shapes, forms, read
        self._way, self._halves, self._looks = SOURCE, False, False
        self.made: dict[str, Packed] = {}
        self.names: list[str] = []
        self._given: list[mx.array] | None = None
        for path, module in modules.items():
            name = f"{path}.weight"
            if isinstance(module, nn.Embedding) and name in names:
                self.names.append(name)
                intercept(module, self._watch(name))
                intercept(module, self._watch_head(name), method="as_linear")
        self._head = ""

    @contextmanager
    def looking(self, way: int, *, halves: bool = False) -> Iterator[None]:
        """While it lasts, lookups are answered here; else by the model itself.

        Args:
            way: Whose rows are looked up.
            halves: Whether the first half of the ids is for the source's and the second for ours.
        """
        self._way, self._halves, self._looks = way, halves, True
        try:
            yield
        finally:
            self._looks = False

    def head_inputs(self, run: Callable[[], object]) -> tuple[str, Floats] | None:
        """The table that is the head, and what it is given; None if none is.

        Args:
            run: Makes logits.
        """
        self._given, self._head = [], ""
        try:
            run()
            given = self._given
        finally:
            self._given = None
        if len(given) != 1:
            return None
        return self._head, flat(given[0])

    def solve(
        self, name: str, seen: Floats, head: tuple[Floats, Floats] | None
    ) -> tuple[Packed, dict[str, Any]] | None:
        """Quantize a table; None where it is left to search.

        Args:
            name: Of the table.
            seen: What the first block makes of errors, [in, in], a mean of one on its diagonal.
            head: Where the table is the head: sums of x x^T, [in, in], of the tokens to learn
                from, and of those to judge by.
        """
        form, shape = self._forms.get(name), self._shapes[name]
        if form is None or form.mode != "affine" or shape[1] != len(seen) or shape[1] > WIDEST:
            return None
        evenly = seen + np.eye(len(seen), dtype=np.float32) * _EVENLY
        moments = Moments(len(seen), drifts=False)
        moments.hessian += evenly
        judged = evenly
        if head is not None:
            moments.hessian += normal(head[0])
            judged = evenly + normal(head[1])
        if not moments.sound:
            return None
        pack = partial(Solver(moments).pack, form)
        rows = partial(self._rows, name)
        found = candidates(rows, (shape[0], shape[1]), form, Evenly(judged), pack)
        packed, outcome = chosen(found, form)
        return packed, asdict(outcome)

    def _rows(self, name: str, low: int, high: int) -> mx.array:
        return self._read(name, (low, high))

    def _watch(self, name: str) -> Callable[..., Any]:
        def called(
            call: Callable[..., Any], given: mx.array, rest: tuple[Any, ...], named: dict[str, Any]
        ) -> Any:
            if not self._looks:
                return call(given, *rest, **named)
            if not self._halves:
                return self._looked_up(name, given, self._way)
            half = given.shape[0] // 2
            both = (
                self._looked_up(name, given[:half], SOURCE),
                self._looked_up(name, given[half:], OURS),
            )
            return mx.concatenate(list(both))

        return called

    def _watch_head(self, name: str) -> Callable[..., Any]:
        def called(
            call: Callable[..., Any], given: mx.array, rest: tuple[Any, ...], named: dict[str, Any]
        ) -> Any:
            if self._given is None:
                return call(given, *rest, **named)
            self._given.append(given)
            self._head = name
            return given

        return called

    def _looked_up(self, name: str, ids: mx.array, way: int) -> mx.array:
        """Rows of a table, in float32; no more of it is in memory than a part."""
        rows, columns = self._shapes[name]
        wanted = np.array(ids)
        unique, places = np.unique(wanted, return_inverse=True)
        step = max(1, _VALUES_TOGETHER // columns)
        found = np.empty((wanted.size, columns), np.float32)
        places = places.reshape(-1)
        for low in range(0, rows, step):
            own = (unique >= low) & (unique < low + step)
            if own.any():
                values = np.asarray(self._values(name, low, min(rows, low + step), way))
                here = own[places]
                found[here] = values[unique[places[here]] - low]
        return mx.array(found.reshape(*wanted.shape, columns))

    def _values(self, name: str, low: int, high: int, way: int) -> mx.array:
        form = self._forms.get(name)
        if way == SOURCE or form is None:
            return self._read(name, (low, high)).astype(mx.float32)
        if name in self.made:
            parts = tuple(part[low:high] for part in self.made[name].parts)
        else:
            parts = search_of(self._read(name, (low, high)), form)
        return Packed(parts, form).values()


def normal(hessian: Floats) -> Floats:
    """A mean of one on the diagonal."""
    mean = float(np.mean(np.diag(hessian)))
    return hessian / np.float32(mean or 1.0)
