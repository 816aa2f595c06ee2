"""Calibrates a model block by block, in the order in which a text goes through it.

Every block sees the text twice: as the source's blocks before it made it, and as those before it
made it that are quantized already. Each stage of linear layers is quantized on what it will
take, to give what the source's gives. In memory are one block's weights of both, one stage's
moments and the hidden states of the text. Owns that order; where results go is the
caller's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Recipe, whole
from checkpoint.architecture.streamer import Block, LayerStream
from convert.calibration.block import BlockCalibration, flat, searched
from convert.calibration.hessian import Floats, Moments
from convert.calibration.layer import WIDEST, Packed, Solver
from convert.calibration.probe import NotCalledError, Probe
from convert.calibration.state import State, States
from convert.plan import Parameter
from convert.proof.values import as_float32
from convert.search import search

_UNSEEN = 8
# How much each error of an embedding counts beside what the first block makes of it, on average.
_EVENLY = np.float32(0.3)

Emit = Callable[[frozenset[str], Mapping[str, Packed]], None]
"""Given the names of finished parameters, and those of them that are packed already."""


class Weights:
    """The source's weights, in the dtype that they are written in.

    Args:
        recipes: How each is made.
        reader: Reads the source.
    """

    def __init__(self, recipes: Mapping[str, Recipe], reader: TensorReader) -> None:
        self._recipes, self._reader = recipes, reader

    def read(self, name: str, rows: tuple[int, int] | None = None) -> mx.array:
        """A weight, or some rows of it, evaluated: no GPU ever waits for a file."""
        recipe = self._recipes[name]
        box = whole(recipe.shape)
        value = recipe.read((rows, *box[1:]) if rows else box, self._reader)
        mx.eval(value)
        if rows is None:
            recipe.release()
        return value


class Calibration:
    """One run over a model.

    Args:
        model: mlx-lm's model, not quantized. It is changed for good.
        parameters: The plan's.
        values: The source's weights.
        states: Where to note how far it is.
    """

    def __init__(
        self,
        model: Any,
        parameters: tuple[Parameter, ...],
        values: Weights,
        states: States,
    ) -> None:
        forms = {each.name: each.quantization for each in parameters}
        self._forms = {name: form for name, form in forms.items() if form and form.mode == "affine"}
        self._values, self._states = values, states
        modules = dict(model.named_modules())
        self._linear = {
            name: modules[name.removesuffix(".weight")]
            for name in self._forms
            if isinstance(modules.get(name.removesuffix(".weight")), nn.Linear)
        }
        self._rounded = False
        self._stream = LayerStream(model, self._read)
        self._probe = Probe(model, self._linear)
        self._outcomes: dict[str, Any] = {}
        self._made: Mapping[str, Packed] = {}
        self._modules = modules

    @property
    def names(self) -> list[frozenset[str]]:
        """The parameters of each block."""
        return [self._stream.names_of(number) for number in range(len(self._stream.blocks))]

    def run(self, ids: mx.array, start: int, emit: Emit) -> dict[str, Any]:
        """Calibrate every block, and the head.

        Args:
            ids: Token ids [rows, positions]; the last eighth of the rows is to judge by.
            start: The first block of which something is not written yet.
            emit: Called after every block, and with the head.

        Returns:
            How each layer came out, by the name of its weight.

        Raises:
            ArchitectureError: the model can't be run block by block.
        """
        self._ids, self._outcomes = ids, {}
        count = len(self._stream.blocks)
        self._unseen = max(1, ids.shape[0] // _UNSEEN)
        outside = frozenset(self._stream.shapes).difference(*self.names)
        heads = [name for name in self._linear if name in outside]
        embeddings = self._embeddings(ids[:1]) if heads else {}
        first: list[mx.array] = []
        self._made = embeddings
        self._rounded = True
        self._stream.run(ids, lambda block, hidden: _kept(first, hidden))
        self._rounded, self._made = False, {}
        self._ours = first[0]
        shape = (2, *first[0].shape)
        state = self._states.load(start, shape) if start else None
        self._start = start if state else 0
        if state is not None:
            self._outcomes = state.outcomes
        emit(outside - set(heads), embeddings)
        del embeddings

        def visit(block: Block, hidden: mx.array) -> mx.array:
            if block.number < self._start:
                return hidden
            if state is not None and block.number == self._start:
                hidden, self._ours = (mx.array(each) for each in state.hidden)
            self._save(block.number, hidden)
            return self._block(block, hidden, emit)

        hidden = self._stream.run(ids, visit)
        if state is not None and self._start == count:
            hidden, self._ours = (mx.array(each) for each in state.hidden)
        self._save(count, hidden)
        for name in heads:
            self._head(name, hidden, emit)
        self._stream.free()
        return dict(sorted(self._outcomes.items()))

    def _save(self, number: int, hidden: mx.array) -> None:
        both = np.stack([np.array(each.astype(mx.float32)) for each in (hidden, self._ours)])
        self._states.save(State(number, both, self._outcomes))

    def _read(self, name: str) -> mx.array:
        """A parameter for the stream: the source's, or while `_rounded`, searched."""
        form = self._forms.get(name)
        if self._rounded and form is not None:
            made = self._made.get(name) or searched(self._values.read(name), form)
            return made.values().reshape(self._stream.shapes[name])
        return as_float32(self._values.read(name))

    def _embeddings(self, ids: mx.array) -> dict[str, Packed]:
        """The embeddings, weighted by what the first block's layers make of them."""
        seen: list[Floats] = []

        def visit(block: Block, hidden: mx.array) -> mx.array:
            if not block.number:
                seen.append(self._seen_of(block, hidden))
            return hidden

        self._stream.run(ids, visit)
        made = {}
        for path, module in self._modules.items():
            name = f"{path}.weight"
            form = self._forms.get(name)
            columns = seen[0].shape[0]
            if form is None or not isinstance(module, nn.Embedding):
                continue
            shape = self._stream.shapes[name]
            if shape[1] != columns or columns > WIDEST:
                continue
            moments = Moments(columns)
            moments.hessian += seen[0]
            read = partial(self._some_rows, name)
            made[name], outcome = Solver(moments, moments, search).solve(read, shape[0], form)
            self._outcomes[name] = asdict(outcome)
        return made

    def _some_rows(self, name: str, low: int, high: int) -> mx.array:
        return self._values.read(name, (low, high))

    def _seen_of(self, block: Block, hidden: mx.array) -> Floats:
        """What the layers that take a norm of the hidden state make of its errors, [in, in]."""
        columns = hidden.shape[2]
        total = np.zeros((columns, columns), np.float32)
        for stage in self._probe.stages(lambda: block(hidden), hidden):
            norm = {} if stage.norm is None else self._modules[stage.norm]
            scale = norm.get("weight", None)
            for name in stage.names:
                weights = np.array(block.weight(name))
                if stage.norm is None or weights.shape[1] != columns:
                    continue
                if scale is not None and scale.shape == (columns,):
                    weights *= np.array(scale)
                total += weights.T @ weights
        mean = float(np.mean(np.diag(total))) or 1.0
        return total / np.float32(mean) + np.eye(columns, dtype=np.float32) * _EVENLY

    def _block(self, block: Block, hidden: mx.array, emit: Emit) -> mx.array:
        forms = {name: self._forms[name] for name in sorted(block.names & self._forms.keys())}
        linear = frozenset(self._linear)
        own = BlockCalibration(block, self._probe, forms, linear, self._values.read, self._unseen)
        made, self._ours = own.run(hidden, self._ours)
        self._outcomes |= own.outcomes
        emit(block.names, own.packed)
        return made

    def _head(self, name: str, hidden: mx.array, emit: Emit) -> None:
        """A layer outside of the blocks that takes what the last block gave."""
        shape = self._stream.shapes[name]
        if shape[1] > WIDEST:
            return emit(frozenset({name}), {})
        seen, unseen = Moments(shape[1]), Moments(shape[1], whole=True)
        learnt = hidden.shape[0] - self._unseen
        for row in range(hidden.shape[0]):
            taken = []
            for given in (hidden, self._ours):
                part = given[row : row + 1]
                logits = partial(self._stream.logits, self._ids[row : row + 1], part)
                try:
                    found, _ = self._probe.input_of(name, logits, stop=False)
                except NotCalledError:  # no head, but something beside the text
                    return emit(frozenset({name}), {})
                taken.append(flat(found))
            (seen if row < learnt else unseen).add(taken[1], taken[0])
        self._stream.free()
        solver = Solver(seen, unseen, search)

        rows = partial(self._some_rows, name)
        made, outcome = solver.solve(rows, shape[0], self._forms[name])
        self._outcomes[name] = asdict(outcome)
        emit(frozenset({name}), {name: made})
        return None


def _kept(found: list[mx.array], hidden: mx.array) -> mx.array:
    """The visit that runs nothing."""
    if not found:
        mx.eval(hidden)
        found.append(hidden)
    return hidden
