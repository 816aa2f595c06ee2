"""Reads boxes of source tensors into MLX arrays, through one reused buffer.

`mx.load` would do, but evaluating a slice of what it gives reads the whole
tensor. Owns the open files and the buffer; knows nothing of recipes.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import mlx.core as mx

from checkpoint import disk
from checkpoint.tensors import TensorRef
from configs.errors import FerryError

_OPEN_FILES = 64
_COMPARED = 4 << 20
_UNSIGNED: dict[int, tuple[Literal["B", "H", "I", "Q"], mx.Dtype]] = {
    1: ("B", mx.uint8),
    2: ("H", mx.uint16),
    4: ("I", mx.uint32),
    8: ("Q", mx.uint64),
}


class TensorReader:
    """Reads source tensors; a context manager that closes its files at the end.

    Attributes:
        bytes_read: Bytes asked of the file system so far.
    """

    def __init__(self) -> None:
        self.bytes_read = 0
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as closing:  # all of them, even if one can't be
            while self._files:
                path, descriptor = self._files.popitem()
                closing.callback(disk.close, descriptor, path)

    def read(self, ref: TensorRef, box: tuple[tuple[int, int], ...]) -> mx.array:
        """The box of a tensor, as unsigned integers of its item size.

        A tensor whose bytes lie in another order of axes is brought into its own.

        Raises:
            DiskError: the file can't be read.
            SourceError: it ends too early.
        """
        if ref.axes is not None:
            lying = replace(ref, shape=tuple(ref.shape[axis] for axis in ref.axes), axes=None)
            cut = self.read(lying, tuple(box[axis] for axis in ref.axes))
            return cut.transpose([ref.axes.index(axis) for axis in range(len(ref.axes))])
        shape = tuple(high - low for low, high in box)
        count = math.prod(shape)
        item = ref.nbytes // max(1, math.prod(ref.shape))
        code, unsigned = _UNSIGNED[item or 1]
        if count == 0:
            return mx.zeros(shape, unsigned)
        needed = count * item
        if len(self._buffer) < needed:
            self._buffer = bytearray(needed)
        view = memoryview(self._buffer)[:needed]
        descriptor = self._open(ref.file)
        at = 0
        try:
            for start, length in _runs(ref.shape, box):
                piece = view[at : at + length * item]
                disk.read_into(descriptor, ref.file, piece, ref.offset + start * item)
                at += len(piece)
        except FerryError as error:
            raise type(error)(f"{ref.file} ({ref.name})", error.what, error.mend) from error
        self.bytes_read += needed
        # MLX's stubs leave out that it takes buffers.
        return mx.array(view.cast(code)).reshape(shape)  # type: ignore[arg-type]

    def forget(self, paths: Iterable[Path]) -> None:
        """Close files that may be removed; a removed file takes room until it is closed."""
        for path in paths:
            if (descriptor := self._files.pop(path, None)) is not None:
                disk.close(descriptor, path)

    def _open(self, path: Path) -> int:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        if len(self._files) >= _OPEN_FILES:
            oldest, descriptor = self._files.popitem(last=False)
            disk.close(descriptor, oldest)
        self._files[path] = disk.open_read(path)
        return self._files[path]


def same_bytes(one: TensorRef, other: TensorRef) -> bool:
    """Whether two source tensors of one size hold the same bytes in the same order."""
    if one.axes != other.axes:
        return False
    buffers = memoryview(bytearray(_COMPARED)), memoryview(bytearray(_COMPARED))
    with disk.reading(one.file) as first, disk.reading(other.file) as second:
        for at in range(0, one.nbytes, _COMPARED):
            size = min(_COMPARED, one.nbytes - at)
            disk.read_into(first, one.file, buffers[0][:size], one.offset + at)
            disk.read_into(second, other.file, buffers[1][:size], other.offset + at)
            if bytes(buffers[0][:size]) != bytes(buffers[1][:size]):
                return False
    return True


def _runs(
    shape: tuple[int, ...], box: tuple[tuple[int, int], ...]
) -> list[tuple[int, int]] | itertools.starmap[tuple[int, int]]:
    """Contiguous runs of elements that a box covers: (first element, length), in C order."""
    axis = len(shape) - 1
    length = 1
    while axis >= 0 and box[axis] == (0, shape[axis]):
        length *= shape[axis]
        axis -= 1
    if axis < 0:
        return [(0, length)]
    low, high = box[axis]
    inner = length
    strides = [math.prod(shape[later + 1 :]) for later in range(axis)]

    def run(*index: int) -> tuple[int, int]:
        before = sum(at * stride for at, stride in zip(index, strides, strict=True))
        return before + low * inner, (high - low) * inner

    return itertools.starmap(run, itertools.product(*(range(*cut) for cut in box[:axis])))
