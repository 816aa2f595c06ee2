"""Runs a model of mlx-lm with the weights of one block in memory at a time.

The model's own forward pass drives it, so that whatever an architecture does between its
layers is done: its decoder layers ("blocks") are intercepted, and each parameter is read
when the model asks for it and forgotten after the block. The interface:

    stream = LayerStream(model, read)        # read(name) -> the parameter, evaluated
    hidden = stream.run(ids)                 # ids [rows, positions] -> [rows, positions, hidden]
    logits = stream.logits(some_ids, some_hidden)   # last norm and head, for a part of both
    stream.free()                            # forgets the head

`run(ids, visit)` hands every block to `visit(block, hidden)`, in order, with its weights to be
had; what that returns goes on to the next block. `block(hidden)` runs it, as often as wanted
(`block(hidden, first_row)` on some rows of the run), `block.weight(name)` and
`block.replace(name, array)` get and set a parameter for as long as the block is there,
`block.names` are its parameters, and `block.module` is mlx-lm's module, whose parts can be
intercepted (`on_demand.intercept`).

Rows are whole windows of text, each on its own and from position 0; a block runs a few of them
at a time, so that what it computes in between stays small. Owns that; knows nothing of where
weights come from or what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from checkpoint.architecture.on_demand import intercept, watch
from configs.errors import ArchitectureError

_PIECE_TOKENS = 2048

Read = Callable[[str], mx.array]
Visit = Callable[["Block", mx.array], mx.array]


class Block:
    """A decoder layer, for as long as `visit` has it.

    Attributes:
        number: From zero.
        module: mlx-lm's module.
        names: Its parameters, by their names in the whole model.
    """

    def __init__(
        self,
        stream: LayerStream,
        number: int,
        call: Callable[..., Any],
        shape: tuple[int, int],
        given: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        self.number, self.module = number, stream.blocks[number]
        self.names = stream.names_of(number)
        self._stream, self._call, self._shape, self._given = stream, call, shape, given
        self._beside: dict[int, tuple[Any, ...]] = {}

    def __call__(self, hidden: mx.array, first_row: int = 0) -> mx.array:
        """Run the block on the input of some rows, or of all, evaluated.

        Args:
            hidden: [some rows, positions, hidden].
            first_row: Which row of the run the first of them is.
        """
        step = max(1, self._stream.piece_tokens // self._shape[1])
        pieces = []
        for low in range(0, hidden.shape[0], step):
            piece = hidden[low : low + step]
            at = first_row + low
            rest, named = _cut(self._given, self._shape, at, at + piece.shape[0])
            made = self._call(piece, *rest, **named)
            mx.eval(made)
            if isinstance(made, tuple):
                made, *beside = made
                self._beside[at] = tuple(beside)
            pieces.append(made)
            mx.clear_cache()
        return mx.concatenate(pieces) if len(pieces) > 1 else cast(mx.array, pieces[0])

    def lazily(self, hidden: mx.array, first_row: int) -> mx.array:
        """The same, all rows at once and not evaluated, so that it can be differentiated."""
        rest, named = _cut(self._given, self._shape, first_row, first_row + hidden.shape[0])
        made = self._call(hidden, *rest, **named)
        return cast(mx.array, made[0] if isinstance(made, tuple) else made)

    @property
    def beside(self) -> tuple[Any, ...] | None:
        """What the block gave beside its output, of all rows; the last that each row gave."""
        if not self._beside:
            return None
        found = [self._beside[row] for row in sorted(self._beside)]
        return tuple(_joined(parts) for parts in zip(*found, strict=True))

    def weight(self, name: str) -> mx.array:
        """A parameter of the block."""
        return self._stream.fetch(name)

    def replace(self, name: str, value: mx.array) -> None:
        """Let the block run with another value of a parameter, until it is left."""
        self._stream.hold(name, value)


def forward(block: Block, hidden: mx.array) -> mx.array:
    """The visit that only runs the block."""
    return block(hidden)


class LayerStream:
    """A model that is run block by block; see the module.

    Args:
        model: mlx-lm's model, whose own weights are never used. It is changed for good.
        read: Gives a parameter by its name, evaluated: no GPU may wait for a file.
        piece_tokens: About how many tokens a block is given at a time; whole rows.

    Attributes:
        blocks: The decoder layers, in order.
        shapes: Of every parameter, by name.
    """

    def __init__(self, model: Any, read: Read, *, piece_tokens: int = _PIECE_TOKENS) -> None:
        self._model, self.read, self.piece_tokens = model.eval(), read, piece_tokens
        self.blocks: list[nn.Module] = list(model.layers)
        flat = cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
        self.shapes = {name: tuple(array.shape) for name, array in flat}
        self._dtypes = {name: array.dtype for name, array in flat}
        self._names = _names_by_block(model, self.blocks, self.shapes)
        self._held: dict[str, mx.array] = {}
        self._visit: Visit | None = None
        self._last: mx.array | None = None
        self._done = 0
        self._beside: dict[int, tuple[Any, ...]] = {}
        self._poisoned = False
        self._ids_shape = (0, 0)
        watched = watch(model, self.shapes.keys(), self.fetch)
        self._unwatched = [name for name in self.shapes if name not in watched]
        for number, layer in enumerate(self.blocks):
            intercept(layer, lambda *given, number=number: self._run_layer(number, *given))

    def names_of(self, number: int) -> frozenset[str]:
        """The parameters of a block."""
        return self._names[number]

    def run(self, ids: mx.array, visit: Visit = forward) -> mx.array:
        """Run every block.

        Args:
            ids: Token ids [rows, positions], int32.
            visit: Given each block and its input; returns its output.

        Returns:
            What the last block gave, [rows, positions, hidden], evaluated.

        Raises:
            ArchitectureError: the model does not run its layers once each and in order, or hands
                them something else than one hidden state a position.
        """
        self.free()
        self._visit, self._last, self._done, self._beside = visit, None, 0, {}
        self._poisoned, self._ids_shape = False, (ids.shape[0], ids.shape[1])
        self._fill_unwatched()
        try:
            self._model(ids)
        except _StoppedError:
            if self._last is None:
                raise
        finally:
            self.free()
        if self._last is None or self._done != len(self.blocks):
            raise self._refusal("it does not run every layer once")
        return self._last

    def logits(self, ids: mx.array, hidden: mx.array) -> mx.array:
        """The last norm and the head, lazy, after `run`.

        Their weights stay in memory until `free`.

        Args:
            ids: Any part of what was run, [rows, positions]; its shape alone counts.
            hidden: What `run` gave for that part, [rows, positions, hidden].

        Returns:
            [rows, positions, vocabulary].

        Raises:
            ArchitectureError: the model makes its logits of more than the last hidden state.
        """
        first = not self._held
        self._visit, self._last, self._done, self._poisoned = None, hidden, 0, True
        self._ids_shape = (ids.shape[0], ids.shape[1])
        if first:
            self._fill_unwatched()
        logits = cast(mx.array, self._model(ids))
        # All else that the model has is NaN here: what depends on it shows.
        if first and mx.isnan(logits[:1, :1]).any().item() and mx.isfinite(hidden).all().item():
            raise self._refusal("its logits are made of more than its last layer's output")
        return logits

    def free(self) -> None:
        """Forget every weight that was read."""
        self._held.clear()
        mx.clear_cache()

    def fetch(self, name: str) -> mx.array:
        """A parameter, read unless it is held."""
        if self._poisoned:
            dtype = self._dtypes[name]
            poison = mx.nan if mx.issubdtype(dtype, mx.floating) else 0
            return mx.broadcast_to(mx.array(poison, dtype), self.shapes[name])
        if name not in self._held:
            self._held[name] = self.read(name)
        return self._held[name]

    def held(self, name: str) -> mx.array | None:
        """A parameter that is in memory; None if it is not."""
        return self._held.get(name)

    def hold(self, name: str, value: mx.array) -> None:
        """Take a value for a parameter until weights are forgotten."""
        if tuple(value.shape) != self.shapes[name]:
            raise ValueError(f"{name} has shape {self.shapes[name]}, not {tuple(value.shape)}")
        self._held[name] = value

    def _fill_unwatched(self) -> None:
        if self._unwatched:
            self._model.update(
                tree_unflatten([(name, self.read(name)) for name in self._unwatched])
            )

    def _run_layer(
        self,
        number: int,
        call: Callable[..., Any],
        hidden: mx.array,
        rest: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        if number != self._done:
            raise self._refusal("it does not run every layer once and in order")
        if self._visit is None:
            return self._skip(number, hidden)
        if hidden.ndim != 3 or tuple(hidden.shape[:2]) != self._ids_shape:
            raise self._refusal(f"its layers take {list(hidden.shape)}")
        # What was computed so far holds on to weights that it no longer needs once it is there.
        mx.eval(hidden, rest, named)
        self.free()
        block = Block(self, number, call, self._ids_shape, (rest, named))
        output = self._visit(block, hidden)
        mx.eval(output)
        self.free()
        self._done += 1
        beside = block.beside
        if beside is not None:
            self._beside[number] = tree_map(_like_nan, beside)
        if self._done == len(self.blocks):
            self._last = output
            raise _StoppedError
        return output if beside is None else (output, *beside)

    def _skip(self, number: int, hidden: mx.array) -> Any:
        """A layer's place on the way to the head: nothing is read before the last."""
        self._done += 1
        output = hidden
        if self._done == len(self.blocks):
            self._poisoned = False
            output = cast(mx.array, self._last)
        beside = self._beside.get(number)
        return output if beside is None else (output, *beside)

    def _refusal(self, what: str) -> ArchitectureError:
        name = type(self._model).__module__.rpartition(".")[2]
        return ArchitectureError(
            "model", f"mlx-lm's {name} can't be run layer by layer: {what}", "leave that out"
        )


class _StoppedError(Exception):
    """The last block has run; what the model does after it is not wanted."""


def _names_by_block(
    model: Any, blocks: list[nn.Module], names: dict[str, tuple[int, ...]]
) -> list[frozenset[str]]:
    paths = {id(module): path for path, module in model.named_modules()}
    prefixes = [f"{paths[id(block)]}." for block in blocks]
    return [frozenset(name for name in names if name.startswith(each)) for each in prefixes]


def _cut(given: Any, shape: tuple[int, int], low: int, high: int) -> Any:
    """The part of a call's other arguments that belongs to some rows."""
    if low == 0 and high == shape[0]:
        return given

    def part(value: Any) -> Any:
        return value[low:high] if _has_rows(value, shape) else value

    return tree_map(part, given)


def _has_rows(value: Any, shape: tuple[int, int]) -> bool:
    """Whether an array has an entry for every row: a mask [positions, positions] has not."""
    if not isinstance(value, mx.array) or value.ndim < 2 or value.shape[0] != shape[0]:
        return False
    return value.ndim > 2 or tuple(value.shape) == shape != (shape[1], shape[1])


def _joined(parts: tuple[Any, ...]) -> Any:
    """Results of some rows each, as the result of all."""
    if isinstance(parts[0], mx.array) and parts[0].ndim > 2:
        return mx.concatenate(list(parts))
    if isinstance(parts[0], (tuple, list)):
        return type(parts[0])(_joined(each) for each in zip(*parts, strict=True))
    return parts[0]


def _like_nan(value: Any) -> Any:
    """In an array's place one of NaN, in no memory."""
    if not isinstance(value, mx.array):
        return value
    poison = mx.nan if mx.issubdtype(value.dtype, mx.floating) else 0
    return mx.broadcast_to(mx.array(poison, value.dtype), value.shape)
