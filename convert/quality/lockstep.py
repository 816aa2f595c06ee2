"""Runs one architecture with several sets of weights side by side, a block at a time.

The first set is the reference. Every block is run with each other set twice: on what the
reference's block takes, for an error of its own, and on what the same set's blocks before it
made. In memory is one block's weights of one set, and the hidden states of all. Owns that
order; knows nothing of where weights come from or what the figures mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from checkpoint.architecture.on_demand import intercept
from checkpoint.architecture.streamer import Block, LayerStream
from convert.proof.errors import update_errors
from convert.proof.values import Values, read_whole

_LOGIT_BYTES = 64 << 20

Tell = Callable[[str, int, int], None]
"""Told what was done, its number from one, and how many there are."""


class Lockstep:
    """A model, and the sets of weights that it is run with.

    Args:
        model: mlx-lm's model, not quantized. It is changed for good.
        kinds: The sets by name, the reference first.
        tell: Told of every step.
    """

    def __init__(self, model: Any, kinds: Mapping[str, Values], tell: Tell) -> None:
        self._names, self._kinds = tuple(kinds), tuple(kinds.values())
        self._tell = tell
        self._at = 0
        self._rows = 0
        self._kept: dict[tuple[int, str], mx.array] | None = None
        self._counted: list[mx.array] = []
        self._errors: list[dict[str, mx.array]] = []
        self._stream = LayerStream(model, self._read)
        blocks = self._stream.blocks
        inside = {id(module) for block in blocks for module in block.modules()}
        for module in model.modules():
            if id(module) not in inside and _computes(module, inside):
                intercept(module, self._in_turn)

    def run(self, ids: mx.array, lengths: Sequence[int]) -> list[dict[str, mx.array]]:
        """Run every block.

        Args:
            ids: Token ids [rows, positions].
            lengths: How many positions of each row count; those after them pad it.

        Returns:
            For each block and each set but the first, the error of its update of the hidden
            state, given the reference's: [positions that count], relative to its length.

        Raises:
            ArchitectureError: the model can't be run block by block.
        """
        self._rows, self._errors = ids.shape[0], []
        self._counted = [mx.arange(length) for length in lengths]
        self._hidden = self._stream.run(mx.concatenate([ids] * len(self._kinds)), self._visit)
        self._ids, self._rows = ids, 0
        return self._errors

    def logits(self, name: str) -> Iterator[tuple[mx.array, mx.array]]:
        """The logits of the reference and of another set, after `run`, a part at a time.

        The weights of both heads are in memory until the last part.

        Yields:
            Both [1, some positions, vocabulary] float32, in the order of rows and positions.
        """
        other = self._names.index(name)
        self._kept = {}
        rows, total = len(self._counted), len(self._ids)
        try:
            for row in range(rows):
                low, length = 0, self._counted[row].size
                while low < length:
                    high = min(length, low + self._part_positions)
                    yield self._part(0, row, low, high), self._part(other, row, low, high)
                    low = high
                self._tell(f"logits, {name}", row + 1, total)
        finally:
            self._kept = None
            self._stream.free()

    @property
    def _part_positions(self) -> int:
        vocabulary = max(shape[0] for shape in self._stream.shapes.values() if len(shape) == 2)
        return max(1, _LOGIT_BYTES // (4 * vocabulary))

    def _part(self, kind: int, row: int, low: int, high: int) -> mx.array:
        self._take(kind)
        at = kind * len(self._counted) + row
        logits = self._stream.logits(
            self._ids[row : row + 1, low:high], self._hidden[at : at + 1, low:high]
        ).astype(mx.float32)
        mx.eval(logits)
        return logits

    def _take(self, kind: int) -> None:
        self._stream.free()
        self._at = kind

    def _read(self, name: str) -> mx.array:
        key = (self._at, name)
        if self._kept is not None and key in self._kept:
            return self._kept[key]
        value = read_whole(self._kinds[self._at], name, self._stream.shapes[name])
        if self._kept is not None:
            self._kept[key] = value
        return value

    def _visit(self, block: Block, hidden: mx.array) -> mx.array:
        count, rows = len(self._kinds), self._rows
        given = [hidden[kind * rows : (kind + 1) * rows] for kind in range(count)]
        forced, made = given[:], given[:]
        for kind in (*range(1, count), 0):  # the reference last: what it hands on is its own
            self._take(kind)
            if kind:
                forced[kind] = block(given[0])
            made[kind] = block(given[kind], kind * rows)
        taken, wanted = self._flat(given[0]), self._flat(made[0])
        errors = {
            name: update_errors(self._flat(forced[kind]), wanted, taken)
            for kind, name in enumerate(self._names)
            if kind
        }
        mx.eval(errors)
        self._errors.append(errors)
        self._tell("layers", block.number + 1, len(self._stream.blocks))
        return mx.concatenate(made)

    def _flat(self, hidden: mx.array) -> mx.array:
        """The positions that count, [tokens, hidden]."""
        rows = [hidden[row, : each.size] for row, each in enumerate(self._counted)]
        return mx.concatenate(rows).astype(mx.float32)

    def _in_turn(
        self,
        call: Callable[..., Any],
        given: mx.array,
        rest: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        """What is outside of the blocks, such as the embeddings: each set's for its own rows."""
        count, rows = len(self._kinds), self._rows
        if not rows or not isinstance(given, mx.array) or given.shape[0] != rows * count:
            return call(given, *rest, **named)
        parts = []
        for kind in range(count):
            self._take(kind)
            part = cast(mx.array, call(given[kind * rows : (kind + 1) * rows], *rest, **named))
            mx.eval(part)
            parts.append(part)
        self._take(0)
        return mx.concatenate(parts)


def _computes(module: nn.Module, blocks: set[int]) -> bool:
    """Whether a module has parameters of its own and is called with what they belong to."""
    own = any(isinstance(value, mx.array) for value in module.values())
    called = any("__call__" in vars(base) for base in type(module).__mro__)
    return own and called and not any(id(part) in blocks for part in module.modules())
