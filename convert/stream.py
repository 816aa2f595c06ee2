"""Streams parameters from the source into shards, row block by row block.

Reading, computing and writing overlap: while blocks are computed on MLX's
streams, the next is read here and the one before is written. Owns that overlap;
what a block is comes from the recipe and the plan, and which are finished from the
journal.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import mlx.core as mx

from checkpoint import disk
from checkpoint.architecture.kept import kept
from checkpoint.architecture.low_rank import Adapted
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, Recipe, walk
from configs.errors import DiskError, SourceError
from convert.blocks import Block, Blocks
from convert.journal import Journal
from convert.plan import Parameter, Shard
from convert.planner import BLOCK_BYTES
from convert.quantize import Quantizer, is_finite, largest_exponent
from convert.schedule import Turn
from convert.shard_file import ShardFiles, as_stored

_SHOWN = 3

Progress = Callable[[str, int], None]
"""Told a parameter's name and how many bytes of it were just written."""


class Supply(Protocol):
    """Brings source files when they are needed, and lets go of them when they are not."""

    def turns(self, left: Sequence[Parameter]) -> Sequence[Turn]:
        """The order in which to make the parameters that are not finished, each once."""

    def fetch(self, files: Sequence[Path]) -> None:
        """Called before the first of these files is read."""

    def release(self, files: Sequence[Path]) -> None:
        """Called once all that is made of these files is written; they are closed."""


class Parts(Protocol):
    """A weight that is packed already."""

    def read(self, box: Box, reader: TensorReader) -> tuple[mx.array, ...]:
        """Codes, scales and perhaps biases of whole rows."""


class AllThere:
    """The supply of a source that lies on the disk as a whole: the model's order."""

    def turns(self, left: Sequence[Parameter]) -> Sequence[Turn]:
        return [Turn(parameter.name, (), ()) for parameter in left]

    def fetch(self, files: Sequence[Path]) -> None:
        pass

    def release(self, files: Sequence[Path]) -> None:
        pass


@dataclass(frozen=True)
class _Made:
    """A block whose values are being computed.

    Attributes:
        block: Which one.
        stored: What goes to the files.
        exponents: The largest of the values, and of the scales.
        dtype: Of the values.
        wide: Whether the source holds more than float16 does.
    """

    block: Block
    stored: tuple[mx.array, ...]
    exponents: tuple[mx.array, mx.array]
    dtype: mx.Dtype
    wide: bool


def stream_tensors(
    blocks: Blocks,
    recipes: Mapping[str, Recipe],
    quantizer: Quantizer,
    journal: Journal,
    files: ShardFiles,
    progress: Progress,
    finished: Callable[[Shard], None],
    supply: Supply,
    packed: Mapping[str, Parts] | None = None,
    *,
    again: bool = False,
) -> None:
    """Make every block that is not finished.

    Args:
        blocks: What to make.
        recipes: How each parameter is made.
        quantizer: Packs what is to be quantized.
        journal: Which blocks are finished; told of every block that is written.
        files: The staged shards.
        progress: Called after every block.
        finished: Called with every shard once it is complete and synced.
        supply: Says which and in which order, and is told which source files are needed.
        packed: Weights that need no packing any more, by name.
        again: Whether this was called for the same shards before.

    Raises:
        DiskError: reading or writing failed.
        SourceError: a tensor holds infinities or NaN.
    """
    plan = blocks.plan
    # Memory that MLX keeps for reuse counts as ours; a few blocks' worth is enough.
    before = mx.set_cache_limit(4 * BLOCK_BYTES)
    try:
        left = {
            shard.file: sum(not journal.has(b) for b in blocks.in_shard(shard))
            for shard in plan.shards
        }
        for shard in plan.shards:
            if not left[shard.file] and not again:
                _finish(shard, blocks, journal, files, finished)
        with TensorReader() as reader:
            for made in _compute(blocks, recipes, quantizer, journal, reader, supply, packed or {}):
                shard = blocks.shard_of(made.block.parameter)
                _write(made, shard, files, journal)
                progress(made.block.parameter.name, made.block.nbytes)
                left[shard.file] -= 1
                if not left[shard.file]:
                    _finish(shard, blocks, journal, files, finished)
    except DiskError as error:
        if not disk.is_full(error):
            raise
        what = f"the disk is full after {journal.finished_bytes:,} of {plan.tensor_bytes:,} bytes"
        raise DiskError(error.where, what, error.mend) from error
    finally:
        mx.set_cache_limit(before)


def _compute(
    blocks: Blocks,
    recipes: Mapping[str, Recipe],
    quantizer: Quantizer,
    journal: Journal,
    reader: TensorReader,
    supply: Supply,
    packed: Mapping[str, Parts],
) -> Iterator[_Made]:
    """The unfinished blocks, each given out once the ones after it are under way.

    Where source files come or go, all that was made before is given out first.
    """
    unfinished = {
        parameter.name: parameter
        for parameter in blocks.plan.parameters
        if not all(journal.has(block) for block in blocks.of(parameter))
    }
    streams = itertools.cycle(own := _streams())
    waiting: deque[_Made] = deque()
    for turn in supply.turns(tuple(unfinished.values())):
        if turn.fetch:
            while waiting:
                yield waiting.popleft()
            supply.fetch(turn.fetch)
        recipe = recipes[turn.name]
        parameter = unfinished[turn.name]
        keeps = parameter.quantization and parameter.operation != "quantize"
        parts = packed.get(turn.name) or (kept(recipe) if keeps else None)
        for block in blocks.of(parameter):
            if journal.has(block):
                continue
            with mx.stream(next(streams)):
                waiting.append(_make(block, recipe, parts, quantizer, own, reader))
            if len(waiting) > len(own):
                yield waiting.popleft()
        recipe.release()
        if turn.release:
            while waiting:
                yield waiting.popleft()
            reader.forget(turn.release)
            supply.release(turn.release)
    yield from waiting


def _make(
    block: Block,
    recipe: Recipe,
    parts: Parts | None,
    quantizer: Quantizer,
    streams: Sequence[mx.Stream],
    reader: TensorReader,
) -> _Made:
    """Set a block's computation going; with `parts`, the codes are the source's own."""
    quantization = block.parameter.quantization
    made: tuple[mx.array, ...]
    if parts is not None:
        made = parts.read(block.box, reader)
        values = made[-1]
    else:
        values = recipe.read(block.box, reader)
        made = quantizer(values, quantization, streams) if quantization else (values,)
    # A group that spans more than its dtype holds has no finite scale.
    affine = quantization is not None and quantization.mode == "affine"
    exponents = (largest_exponent(values), largest_exponent(made[1] if affine else values))
    stored = tuple(as_stored(array) for array in made)
    mx.async_eval(*exponents, *stored)
    adapted = any(isinstance(node, Adapted) for node in walk(recipe))
    wide = adapted or any(ref.dtype != "F16" for ref in recipe.sources())
    return _Made(block, stored, exponents, recipe.dtype, wide)


def _streams() -> tuple[mx.Stream, ...]:
    """A CPU stream is one thread, so there are two; a GPU fills itself from one."""
    if mx.default_device() == mx.Device(mx.cpu):
        return _two_cpu_streams()
    return (mx.default_stream(mx.default_device()),)


@cache
def _two_cpu_streams() -> tuple[mx.Stream, mx.Stream]:
    """The same ones for every conversion of a process: a stream's thread never ends."""
    return mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)


def _write(made: _Made, shard: Shard, files: ShardFiles, journal: Journal) -> None:
    block = made.block
    finite = [is_finite(exponent, made.dtype) for exponent in made.exponents]
    if not all(finite):
        parameter = block.parameter
        narrowed = made.dtype == mx.float16 and (made.wide or finite[0])
        made_from = ", ".join(parameter.sources[:_SHOWN])
        raise SourceError(
            made_from,
            "infinite or NaN values"
            if made_from == parameter.name
            else f"infinite or NaN values, for {parameter.name}",
            "they may be too large for float16: try --dtype bfloat16"
            if narrowed
            else "the checkpoint is damaged: download it again",
        )
    pairs = zip(block.pieces, made.stored, strict=True)
    journal.add(block, [files.write(shard, piece, rows) for piece, rows in pairs])


def _finish(
    shard: Shard,
    blocks: Blocks,
    journal: Journal,
    files: ShardFiles,
    finished: Callable[[Shard], None],
) -> None:
    try:
        files.finish(shard)
    except DiskError:
        for block in blocks.in_shard(shard):
            journal.forget(block)
        raise
    finished(shard)
