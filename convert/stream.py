"""Streams parameters from the source into shards, row block by row block.

Reading, computing and writing overlap: while blocks are computed on MLX's
streams, the next is read here and the one before is written. Owns that overlap;
what a block is comes from the recipe and the plan.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from checkpoint import disk
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Recipe, row_blocks
from configs.errors import DiskError, SourceError
from convert.plan import Parameter, Plan
from convert.planner import BLOCK_BYTES
from convert.quantize import is_finite, largest_exponent, round_to_nearest
from convert.shard_file import ShardFile, as_stored, open_shard

_SHOWN = 3

Progress = Callable[[str, int], None]
"""Told a parameter's name and how many bytes of it were just written."""


@dataclass(frozen=True)
class _Block:
    """A block whose values are being computed."""

    parameter: Parameter
    stored: tuple[mx.array, ...]
    exponent: mx.array
    dtype: mx.Dtype


def stream_tensors(
    plan: Plan, recipes: Mapping[str, Recipe], folder: Path, progress: Progress
) -> dict[str, int]:
    """Write every shard of the plan.

    Args:
        plan: What to write.
        recipes: How each parameter is made.
        folder: The staged folder; it holds none of the shards yet.
        progress: Called after every block.

    Returns:
        The CRC-32 of every tensor written.

    Raises:
        DiskError: reading or writing failed.
        SourceError: a tensor holds infinities or NaN.
    """
    checksums: dict[str, int] = {}
    done = 0

    def tell(name: str, nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(name, nbytes)

    streams = _streams()
    # Memory that MLX keeps for reuse counts as ours; a few blocks' worth is enough.
    before = mx.set_cache_limit(4 * BLOCK_BYTES)
    try:
        with TensorReader() as reader:
            for shard in plan.shards:
                with open_shard(folder, shard) as file:
                    for block in _compute(shard.parameters, recipes, reader, streams):
                        _write(block, file, tell)
                checksums |= file.checksums
    except DiskError as error:
        if not disk.is_full(error):
            raise
        total = plan.tensor_bytes
        what = f"the disk is full after {done:,} of {total:,} bytes"
        raise DiskError(error.where, what, error.mend) from error
    finally:
        mx.set_cache_limit(before)
    return checksums


def _compute(
    parameters: Iterable[Parameter],
    recipes: Mapping[str, Recipe],
    reader: TensorReader,
    streams: Sequence[mx.Stream],
) -> Iterator[_Block]:
    """Blocks in order, each given out once the ones after it are under way."""
    turns = itertools.cycle(streams)
    waiting: deque[_Block] = deque()
    for parameter in parameters:
        recipe = recipes[parameter.name]
        row_bytes = recipe.dtype.size * (recipe.shape[-1] if len(recipe.shape) > 1 else 1)
        for box in row_blocks(recipe.shape, row_bytes, BLOCK_BYTES):
            with mx.stream(next(turns)):
                values = recipe.read(box, reader)
                made = (
                    round_to_nearest(values, parameter.quantization)
                    if parameter.quantization
                    else (values,)
                )
                exponent = largest_exponent(values)
                if parameter.quantization and parameter.quantization.mode == "affine":
                    # A group that spans more than its dtype holds has no finite scale.
                    exponent = mx.maximum(exponent, largest_exponent(made[1]))
                stored = tuple(as_stored(array) for array in made)
            mx.async_eval(exponent, *stored)
            waiting.append(_Block(parameter, stored, exponent, recipe.dtype))
            del values, made, stored
            if len(waiting) > len(streams):
                yield waiting.popleft()
        recipe.release()
    yield from waiting


def _streams() -> tuple[mx.Stream, ...]:
    """A CPU stream is one thread, so there are two; a GPU fills itself from one."""
    if mx.default_device() == mx.Device(mx.cpu):
        return mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)
    return (mx.default_stream(mx.default_device()),)


def _write(block: _Block, file: ShardFile, progress: Progress) -> None:
    if not is_finite(block.exponent, block.dtype):
        parameter = block.parameter
        narrowed = parameter.operation != "copy" and block.dtype == mx.float16
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
    for tensor, array in zip(block.parameter.outputs, block.stored, strict=True):
        progress(block.parameter.name, file.append(tensor.name, array))
