"""What each layer loses in each form, measured on a text.

To second order the KL divergence that an error D of a weight brings is `1/2 * sum(F * D^2)` a
token, with F the diagonal of the Fisher information: the mean square of the gradient of the
log-likelihood of tokens that are drawn from the model's own distribution, not the text's. So
the model runs once forwards, block by block, and once backwards; for every window of text each
weight's gradient is squared and summed. Left out are products of errors of different weights.
F is kept for rows spread evenly over a weight, and for an embedding for the rows that were
looked up; what they lose is scaled to the whole weight.

In memory are one block's weights, one set of gradients of it, and the text's hidden states
before one block; those before the others are in a temporary file.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Recipe, whole
from checkpoint.architecture.streamer import Block, LayerStream
from configs.errors import ArchitectureError, DiskError
from convert.mixed.layers import Layer
from convert.mixed.sensitivity import errors_of, from_weights, sample_boxes, total
from convert.mixed.states import States
from convert.proof.values import as_float32
from convert.quantize import Quantizer

MOST_WINDOWS = 16
_FEWEST_WINDOWS = 4
_KEPT_BYTES = 1 << 30
_SQUARED = 1 << 23

Tell = Callable[[str, str, int, int], None]


def windows_of(ids: mx.array, blocks: int, hidden: int) -> mx.array:
    """The windows that are run, spread over those that there are: the disk holds no more.

    Args:
        ids: [windows, positions].
        blocks: How many the model has.
        hidden: Width of the hidden state.
    """
    one = 2 * ids.shape[1] * max(1, hidden) * max(1, blocks)
    most = min(ids.shape[0], MOST_WINDOWS, max(_FEWEST_WINDOWS, _KEPT_BYTES // one))
    chosen = [(2 * at + 1) * ids.shape[0] // (2 * most) for at in range(most)]
    return ids[mx.array(chosen)]


class Fisher:
    """One run over a model, forwards and backwards.

    Args:
        model: mlx-lm's model, not quantized. It is changed for good.
        recipes: How each parameter is read.
        layers: Whose forms are to be judged.
        tell: Told of every block.
    """

    def __init__(
        self, model: Any, recipes: Mapping[str, Recipe], layers: Sequence[Layer], tell: Tell
    ) -> None:
        self._recipes, self._layers, self._tell = recipes, layers, tell
        self._reader = TensorReader()
        self._stream = LayerStream(model, self._read)
        self._names = {f"{layer.path}.weight": layer for layer in layers}
        self._found: dict[str, _Squares] = {}

    def errors(self, ids: mx.array, quantizer: Quantizer) -> dict[str, list[float]]:
        """Nats of KL divergence a token, of each form of each layer.

        Args:
            ids: Token ids [windows, positions].
            quantizer: The method's.

        Raises:
            ArchitectureError: the model can't be run block by block, or not backwards, or
                it gives no finite values.
            DiskError: the source can't be read, or the temporary file not be written.
        """
        with self._reader, tempfile.TemporaryFile() as file:
            try:
                self._backwards(ids, States(file))
            except (RuntimeError, ValueError) as error:
                what = f"can't be run backwards through mlx-lm's code ({error})"
                raise ArchitectureError("model", what, "leave --calibrate out") from error
            except OSError as error:
                where, mend = tempfile.gettempdir(), "free some space, or set TMPDIR"
                raise DiskError(where, f"can't hold states ({error.strerror})", mend) from error
        tokens = math.prod(ids.shape)
        made = {}
        for done, layer in enumerate(self._layers, 1):
            squares = self._found.get(layer.path)
            if squares is not None:
                made[layer.path] = _lost(layer, squares, self._recipes, quantizer, tokens)
            self._tell("weights", layer.path, done, len(self._layers))
        if not all(math.isfinite(error) for each in made.values() for error in each):
            what = "gives infinite or NaN values on the text"
            raise ArchitectureError("model", what, "leave --calibrate out")
        return _others(self._layers, made, self._recipes, quantizer)

    def _read(self, name: str) -> mx.array:
        recipe = self._recipes[name]
        value = as_float32(recipe.read(whole(recipe.shape), self._reader))
        mx.eval(value)
        recipe.release()
        return value

    def _backwards(self, ids: mx.array, states: States) -> None:
        blocks: list[Block] = []
        count = len(self._stream.blocks)

        def visit(block: Block, hidden: mx.array) -> mx.array:
            states.push(hidden)
            blocks.append(block)
            self._tell("forwards", "", block.number + 1, count)
            return block(hidden)

        last = self._stream.run(ids, visit)
        gradient = self._head(ids, last)
        for done, block in enumerate(reversed(blocks), 1):
            hidden = states.pop()
            gradient = self._block(block, hidden, gradient)
            self._tell("backwards", "", done, count)
            if block.number == 0:
                self._lookups(ids, hidden, gradient)

    def _head(self, ids: mx.array, hidden: mx.array) -> mx.array:
        """The gradient before the last norm, and what the head's weights have of it."""
        mx.eval(self._stream.logits(ids[:1], hidden[:1]))  # reads what it needs
        blocks = range(len(self._stream.blocks))
        inside = frozenset().union(*(self._stream.names_of(number) for number in blocks))
        outside = [name for name in self._names if name not in inside]
        held = {name: value for name in outside if (value := self._stream.held(name)) is not None}
        gradients = []
        for row in range(ids.shape[0]):
            tokens, part = ids[row : row + 1], hidden[row : row + 1]
            drawn = mx.random.categorical(
                self._stream.logits(tokens, part).astype(mx.float32), key=mx.random.key(row)
            )
            mx.eval(drawn)

            def likelihood(
                part: mx.array, values: dict[str, mx.array], ids: mx.array, drawn: mx.array
            ) -> mx.array:
                for name, value in values.items():
                    self._stream.hold(name, value)
                logits = self._stream.logits(ids, part).astype(mx.float32)
                chosen = mx.take_along_axis(logits, drawn[..., None], -1)[..., 0]
                return mx.sum(chosen - mx.logsumexp(logits, -1))

            own, weights = mx.grad(likelihood, argnums=(0, 1))(part, held, tokens, drawn)
            mx.eval(own, weights)
            self._add(weights)
            del weights
            gradients.append(own)
            for name, value in held.items():
                self._stream.hold(name, value)
        self._stream.free()
        return mx.concatenate(gradients)

    def _block(self, block: Block, hidden: mx.array, gradient: mx.array) -> mx.array:
        """The gradient before a block; its weights' own is added up."""
        values = {name: block.weight(name) for name in sorted(block.names & self._names.keys())}
        gradients = []
        for row in range(hidden.shape[0]):
            after = gradient[row : row + 1]

            def projected(
                part: mx.array, values: dict[str, mx.array], after: mx.array, row: int
            ) -> mx.array:
                for name, value in values.items():
                    block.replace(name, value)
                return mx.sum(block.lazily(part, row) * after)

            part = hidden[row : row + 1]
            own, weights = mx.grad(projected, argnums=(0, 1))(part, values, after, row)
            mx.eval(own, weights)
            self._add(weights)
            del weights
            gradients.append(own)
        self._stream.free()
        return mx.concatenate(gradients)

    def _add(self, gradients: Mapping[str, mx.array]) -> None:
        for name, gradient in gradients.items():
            layer = self._names[name]
            if layer.path not in self._found:
                self._found[layer.path] = _Squares(layer.shape)
            self._found[layer.path].add(gradient)

    def _lookups(self, ids: mx.array, hidden: mx.array, gradient: mx.array) -> None:
        """What the embeddings of the text's tokens have of the gradient before all blocks."""
        for layer in self._layers:
            width = hidden.shape[-1]
            if not layer.is_embedding or layer.number is not None or layer.shape[-1] != width:
                continue
            squares = self._found.setdefault(layer.path, _Squares(layer.shape))
            rows, places = np.unique(np.array(ids), return_inverse=True)
            weights = _rows(self._recipes[f"{layer.path}.weight"], rows, self._reader)
            taken, states = weights[places.ravel()], np.array(hidden).reshape(-1, width)
            # Some models scale what they look up.
            scale = float((taken * states).sum() / max(1e-30, float((taken * taken).sum())))
            of_rows = np.zeros_like(weights)
            for row, own in enumerate(places.reshape(ids.shape)):
                found = np.zeros_like(weights)
                np.add.at(found, own, np.array(gradient[row]))
                of_rows += np.square(found * np.float32(scale))
            squares.rows, squares.of_rows = rows, of_rows
            return


class _Squares:
    """Sums of squares of a weight's gradients: of some rows each, and of all together."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        columns = shape[-1]
        flat = [_flat(shape, box) for box in sample_boxes(shape)]
        self._places = mx.array(flat)
        self.sampled = mx.zeros((len(flat), columns))
        self.all = 0.0
        self.rows: np.ndarray[Any, Any] | None = None
        self.of_rows: np.ndarray[Any, Any] | None = None

    def add(self, gradient: mx.array) -> None:
        """Add one, evaluated; a part at a time, since its squares are as large again."""
        rows = gradient.reshape(-1, gradient.shape[-1])
        self.sampled = self.sampled + mx.square(rows[self._places])
        mx.eval(self.sampled)
        step = max(1, _SQUARED // rows.shape[-1])
        for low in range(0, rows.shape[0], step):
            self.all += total(mx.square(rows[low : low + step]))


def _flat(shape: tuple[int, ...], box: Sequence[tuple[int, int]]) -> int:
    """Which row a box of one row is, counted over all leading axes."""
    flat = 0
    for size, (low, _) in zip(shape[:-1], box, strict=False):
        flat = flat * size + low
    return flat


def _rows(
    recipe: Recipe, rows: np.ndarray[Any, Any], reader: TensorReader
) -> np.ndarray[Any, np.dtype[np.float32]]:
    columns = (0, recipe.shape[-1])
    read = [
        np.array(as_float32(recipe.read(((int(row), int(row) + 1), columns), reader)))
        for row in rows
    ]
    recipe.release()
    return np.concatenate(read)


def _lost(
    layer: Layer,
    squares: _Squares,
    recipes: Mapping[str, Recipe],
    quantizer: Quantizer,
    tokens: int,
) -> list[float]:
    """Of each form: half of the squared errors by the squared gradients, a token."""
    recipe = recipes[f"{layer.path}.weight"]
    lost = np.zeros(len(layer.forms))
    with TensorReader() as reader:
        if squares.all:
            sample = mx.concatenate(
                [
                    recipe.read(box, reader).reshape(-1, layer.shape[-1])
                    for box in sample_boxes(layer.shape)
                ]
            )
            scale = squares.all / max(1e-30, total(squares.sampled))
            lost += scale * np.array(list(_weighed(sample, squares.sampled, layer, quantizer)))
        if squares.rows is not None and squares.of_rows is not None:
            rows = mx.concatenate(
                [
                    recipe.read(((int(row), int(row) + 1), (0, recipe.shape[-1])), reader)
                    for row in squares.rows
                ]
            )
            lost += np.array(list(_weighed(rows, mx.array(squares.of_rows), layer, quantizer)))
    recipe.release()
    return [float(each) / (2 * tokens) for each in lost]


def _weighed(
    rows: mx.array, squares: mx.array, layer: Layer, quantizer: Quantizer
) -> Iterator[float]:
    mx.eval(rows)
    for error in errors_of(rows, layer.forms, quantizer):
        yield total(mx.square(error) * squares)


def _others(
    layers: Sequence[Layer],
    made: dict[str, list[float]],
    recipes: Mapping[str, Recipe],
    quantizer: Quantizer,
) -> dict[str, list[float]]:
    """With those that the text did not reach: as much as the middle one of those it did."""
    rest = [layer for layer in layers if layer.path not in made]
    if not rest:
        return made
    if not made:
        what = "has no layer that a text was seen to reach"
        raise ArchitectureError("model", what, "leave --calibrate out")
    largest = median(max(each) for each in made.values())
    for path, errors in from_weights(rest, recipes, quantizer).items():
        most = max(errors) or 1.0
        made[path] = [largest * error / most for error in errors]
    return made
