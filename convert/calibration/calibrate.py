"""Calibrates a model block by block, in the order in which a text goes through it.

Every block sees the text twice: as the source's blocks before it made it, and as those before it
made it that are quantized already. Each stage of layers is quantized on what it will take, to
give what the source's gives. Hidden states lie on the disk; in memory are some rows of them, one
layer's weights and one stage's moments. Owns that order; where results go is the caller's to
say.
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
from convert.calibration.block import BlockCalibration
from convert.calibration.hessian import Floats, Moments
from convert.calibration.inputs import Inputs
from convert.calibration.layer import Packed
from convert.calibration.probe import NotCalledError, Probe, is_experts
from convert.calibration.shelf import Shelf
from convert.calibration.state import Shape, State, States
from convert.calibration.tables import Tables, normal
from convert.calibration.ways import OURS, SOURCE
from convert.calibration.wide import WIDEST
from convert.plan import Parameter
from convert.proof.values import as_float32

_UNSEEN = 8
_ROWS = 4

Emit = Callable[[frozenset[str], Mapping[str, Packed]], None]
"""Given the names of finished parameters, and those of them that are packed already."""

Done = Callable[[frozenset[str]], bool]
"""Whether all of some parameters are written already."""


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
        self._forms = {name: form for name, form in forms.items() if form}
        self._values, self._states = values, states
        self._modules = dict(model.named_modules())
        self._stream = LayerStream(model, lambda name: as_float32(values.read(name)))
        shapes = self._stream.shapes
        self._outside = frozenset(shapes).difference(*self.names)
        self._tables = Tables(self._modules, self._outside, shapes, self._forms, values.read)
        self._layers = {
            name: shapes[name]
            for name in self._forms
            if _is_layer(self._modules.get(name.removesuffix(".weight")))
        }
        self._probe = Probe(model, self._layers)
        self._shelf = Shelf(states.folder)
        self._outcomes: dict[str, Any] = {}

    @property
    def names(self) -> list[frozenset[str]]:
        """The parameters of each block."""
        return [self._stream.names_of(number) for number in range(len(self._stream.blocks))]

    def run(self, ids: mx.array, done: Done, emit: Emit) -> dict[str, Any]:
        """Calibrate every block, and the head.

        Args:
            ids: Token ids [rows, positions]; the last eighth of the rows is to judge by.
            done: Tells what need not be made again.
            emit: Called with what is outside of the blocks, after every block, and with the head.

        Returns:
            How each layer came out, by the name of its weight.

        Raises:
            ArchitectureError: the model can't be run block by block.
            DiskError: reading or writing failed.
        """
        self._ids, count = ids, len(self._stream.blocks)
        rows = ids.shape[0]
        self._learnt = rows - max(1, rows // _UNSEEN)
        heads = self._outside & self._layers.keys()
        first, self._plain = self._look()
        for name in heads:  # a model whose head can't be reached is refused at once
            self._given_to_head(name, 0, mx.zeros(first.shape))
        self._stream.free()
        self._shape: Shape = (rows, first.shape[1], first.shape[2])
        start = 0
        while self._plain and start < count and done(self.names[start]):
            start += 1
        state = self._states.load(start, self._shape) if done(self._outside - heads) else None
        if state is None:
            start = 0
            self._embeddings(first)
            state = self._begin()
            emit(self._outside - heads, self._tables.made)
            self._tables.made.clear()
        self._state, self._outcomes = state, dict(state.outcomes)
        self._blocks(start, emit)
        for name in sorted(heads):
            self._head(name, emit)
        self._stream.free()
        return dict(sorted(self._outcomes.items()))

    def _look(self) -> tuple[mx.array, bool]:
        """What the first block takes of the first row, and whether each block takes just what
        the one before it gave."""
        given: list[mx.array] = []
        made: list[mx.array] = []

        def visit(block: Block, hidden: mx.array) -> mx.array:
            given.append(hidden)
            made.append(mx.zeros(hidden.shape))
            return made[-1]

        with self._tables.looking(SOURCE):
            self._stream.run(self._ids[:1], visit)
        plain = all(one is other for one, other in zip(given[1:], made, strict=False))
        return given[0], plain

    def _begin(self) -> State:
        """What the first block takes."""
        draft = self._states.begin(0, self._shape)
        for way in (SOURCE, OURS):
            with self._tables.looking(way):
                for low in range(0, self._shape[0], _ROWS):
                    found: list[mx.array] = []
                    self._stream.run(self._ids[low : low + _ROWS], partial(_first, found))
                    draft.write(way, low, np.array(found[0].astype(mx.float32)))
        return draft.finish(self._outcomes)

    def _blocks(self, start: int, emit: Emit) -> None:
        rows = self._shape[0]
        both = mx.concatenate([self._ids, self._ids])

        def visit(block: Block, hidden: mx.array) -> mx.array:
            number = block.number
            if number < start:
                return _nothing(hidden)
            forms = {name: self._forms[name] for name in sorted(block.names & self._forms.keys())}
            own = BlockCalibration(
                block,
                self._probe,
                forms,
                self._stream.shapes,
                self._values.read,
                rows - self._learnt,
                self._shelf,
            )

            def given(way: int, low: int, high: int) -> Floats:
                if self._plain:
                    return self._state.read(way, low, high)
                return np.array(hidden[way * rows + low : way * rows + high])

            draft = self._states.begin(number + 1, self._shape)
            own.run(rows, given, draft.write, second=0 if self._plain else rows)
            self._outcomes |= own.outcomes
            self._state = draft.finish(self._outcomes)
            emit(block.names, own.packed)
            self._states.tidy(number + 1)
            if self._plain:
                return _nothing(hidden)
            ways = [self._state.read(way, 0, rows) for way in (SOURCE, OURS)]
            return mx.array(np.concatenate(ways))

        with self._tables.looking(SOURCE, halves=not self._plain):
            self._stream.run(self._ids if self._plain else both, visit)

    def _embeddings(self, hidden: mx.array) -> None:
        """Tables, weighted by what the first block's layers make of them, and the head."""
        seen: list[Floats] = []

        def visit(block: Block, hidden: mx.array) -> mx.array:
            if not block.number:
                seen.append(self._seen_of(block, hidden))
            return _nothing(hidden)

        affine = [name for name in self._tables.names if name in self._forms]
        if not affine:
            return
        with self._tables.looking(SOURCE):
            self._stream.run(self._ids[:1], visit)
        heads = self._head_moments(hidden)
        for name in affine:
            made = self._tables.solve(name, seen[0], heads.get(name))
            if made is not None:
                self._tables.made[name], self._outcomes[name] = made

    def _seen_of(self, block: Block, hidden: mx.array) -> Floats:
        """What the layers that take a norm of the hidden state make of its errors, [in, in]."""
        columns = hidden.shape[2]
        total = np.zeros((columns, columns), np.float32)
        for stage in self._probe.stages(lambda: block(hidden), hidden):
            norm = {} if stage.norm is None else self._modules[stage.norm]
            scale = norm.get("weight", None)
            for name in stage.names:
                if stage.norm is None or stage.experts or self._layers[name][1] != columns:
                    continue
                weights = np.array(as_float32(self._values.read(name)))
                if scale is not None and scale.shape == (columns,):
                    weights *= np.array(scale)
                total += weights.T @ weights
        return normal(total)

    def _head_moments(self, first: mx.array) -> dict[str, tuple[Floats, Floats]]:
        """Where a table is the head: sums of x x^T of what it is given by the source, of the text
        to learn from and of that to judge by."""
        if any(_is_experts(self._modules, name) for name in self._layers):
            return {}  # whose stacks would all have to be in memory
        zeros = mx.zeros(first.shape)
        ids = self._ids
        found = self._tables.head_inputs(partial(self._stream.logits, ids[:1], zeros))
        self._stream.free()
        form = None if found is None else self._forms.get(found[0])
        if found is None or form is None or form.mode != "affine":
            return {}
        columns = found[1].shape[1]
        if columns > WIDEST:
            return {}
        with self._tables.looking(SOURCE):
            self._stream.run(ids, self._through)
        moments = Moments(columns, drifts=False), Moments(columns, drifts=False)
        for low in range(0, ids.shape[0], _ROWS):
            hidden = mx.array(self._shelf.read(("text", low)))
            for row in range(hidden.shape[0]):
                at = low + row
                logits = partial(self._stream.logits, ids[at : at + 1], hidden[row : row + 1])
                given = self._tables.head_inputs(logits)
                if given is None:
                    return {}
                moments[at >= self._learnt].add(given[1])
        self._stream.free()
        self._shelf.drop()
        return {found[0]: (moments[0].hessian, moments[1].hessian)}

    def _through(self, block: Block, hidden: mx.array) -> mx.array:
        """The visit that only runs the block, its hidden states on the shelf."""
        made: list[Floats] = []
        for low in range(0, hidden.shape[0], _ROWS):
            given = hidden[low : low + _ROWS]
            if self._plain and block.number:
                given = mx.array(self._shelf.read(("text", low)))
            values = np.array(block(given, low))
            self._shelf.put(("text", low), values)
            if not self._plain:
                made.append(values)
        return _nothing(hidden) if self._plain else mx.array(np.concatenate(made))

    def _head(self, name: str, emit: Emit) -> None:
        """A layer outside of the blocks that takes what the last block gave."""
        count, columns = self._layers[name]
        inputs = Inputs(self._shelf, self._learnt)
        for row in range(self._shape[0]):
            source, ours = (
                self._given_to_head(name, row, mx.array(self._state.read(way, row, row + 1)))
                for way in (SOURCE, OURS)
            )
            if source is None or ours is None:
                return emit(frozenset({name}), {})  # no head, but something beside the text
            inputs.add(row, source, ours, None)
        self._stream.free()
        rows = partial(self._some_rows, name)
        packed, outcome = inputs.solve(rows, (count, columns), self._forms[name])
        inputs.close()
        self._outcomes[name] = asdict(outcome)
        return emit(frozenset({name}), {name: packed})

    def _given_to_head(self, name: str, row: int, hidden: mx.array) -> Floats | None:
        logits = partial(self._stream.logits, self._ids[row : row + 1], hidden)
        try:
            return self._probe.input_of(name, logits, stop=False).x
        except NotCalledError:
            return None

    def _some_rows(self, name: str, low: int, high: int) -> mx.array:
        return self._values.read(name, (low, high))


def _first(found: list[mx.array], block: Block, hidden: mx.array) -> mx.array:
    """The visit that runs nothing."""
    if not block.number:
        mx.eval(hidden)
        found.append(hidden)
    return _nothing(hidden)


def _nothing(hidden: mx.array) -> mx.array:
    """In the place of hidden states that lie elsewhere: takes no memory."""
    return mx.broadcast_to(mx.zeros((1, 1, 1), hidden.dtype), hidden.shape)


def _is_layer(module: object) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Module) and is_experts(module))


def _is_experts(modules: Mapping[str, nn.Module], name: str) -> bool:
    return is_experts(modules[name.removesuffix(".weight")])
