"""Turns a function over weights, such as mlx-lm's `sanitize`, into recipes.

The function is run once on placeholders (no data is read) under
`mx.export_function`, whose callback tells every primitive that was recorded.
Primitives that only move elements, or work on each alone, become nodes that
stream; a tensor that needs any other is `Computed` by running the function over
lazily loaded arrays. Owns that translation; knows nothing of architectures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import (
    Broadcast,
    Computed,
    Concatenate,
    Constant,
    Copy,
    Elementwise,
    Recipe,
    Shape,
    Slice,
    Transpose,
    whole,
)
from checkpoint.architecture.reshape import Reshape
from checkpoint.dtypes import DTYPES
from checkpoint.folder import SAFETENSORS
from checkpoint.tensors import TensorRef
from configs.errors import ArchitectureError

Weights = dict[str, mx.array]

_RESHAPES = frozenset({"ExpandDims", "Squeeze", "Reshape", "Flatten", "Unflatten"})
_ELEMENTWISE: dict[str, Callable[..., mx.array]] = {
    "Abs": mx.abs,
    "Add": mx.add,
    "Divide": mx.divide,
    "Exp": mx.exp,
    "Multiply": mx.multiply,
    "Negative": mx.negative,
    "Subtract": mx.subtract,
}


@dataclass(frozen=True)
class Traced:
    """What a function over weights does.

    Attributes:
        recipes: Each tensor it returns, by name, in its order.
        unused: Source tensors that no returned tensor is made from.
    """

    recipes: dict[str, Recipe]
    unused: tuple[str, ...]


def mlx_dtype(ref: TensorRef) -> mx.Dtype:
    """The MLX dtype that a source tensor's elements are read as."""
    dtype: mx.Dtype = getattr(mx, DTYPES[ref.dtype].mlx)
    return dtype


def placeholder(shape: Shape, dtype: mx.Dtype) -> mx.array:
    """An array that has a shape and a dtype and is never evaluated."""
    return mx.broadcast_to(_zero(dtype), shape)


@cache
def _zero(dtype: mx.Dtype) -> mx.array:
    return mx.array(0, dtype)


def copies(refs: Mapping[str, TensorRef]) -> dict[str, Recipe]:
    """Source tensors as they are, to trace a function over."""
    return {name: Copy(ref.shape, mlx_dtype(ref), ref) for name, ref in refs.items()}


def trace(function: Callable[[Weights], Weights], sources: Mapping[str, Recipe]) -> Traced:
    """Run `function` on placeholders of `sources` and translate what it does.

    Args:
        function: Takes and returns named arrays; may look at names, shapes and
            dtypes, but not at values.
        sources: How each array that it is given is made, by name.

    Raises:
        ArchitectureError: an array would have to be computed whole out of sources that
            are no plain tensors.
    """
    order = list(sources)
    inputs = [placeholder(sources[name].shape, sources[name].dtype) for name in order]
    returned: list[str] = []
    graph = _Graph(list(sources.values()))

    def flat(*arrays: mx.array) -> list[mx.array]:
        weights = function(dict(zip(order, arrays, strict=True)))
        returned[:] = weights
        return list(weights.values())

    with _contiguous_is_identity():
        try:
            mx.export_function(graph.add, flat, *inputs)
            described = True
        except ValueError as error:
            if "Unable to get state for primitive" not in str(error):
                raise
            # A primitive MLX can't describe: every tensor has to be computed whole.
            described = False
    lazily = _LazyRun(function, sources)
    recipes: dict[str, Recipe] = {}
    for position, name in enumerate(returned):
        recipe = graph.output(position) if described else None
        if recipe is None:
            made_from = graph.refs(position) if described else _refs(sources.values())
            recipe = lazily.computed(name, made_from)
        recipes[name] = recipe
    used = {ref.name for ref in _refs(recipes.values())}
    return Traced(
        recipes,
        tuple(name for name in order if not any(r.name in used for r in sources[name].sources())),
    )


def _refs(recipes: Iterable[Recipe]) -> tuple[TensorRef, ...]:
    """The source tensors that any of the recipes reads, each once."""
    found = {ref.name: ref for recipe in recipes for ref in recipe.sources()}
    return tuple(found.values())


@contextlib.contextmanager
def _contiguous_is_identity() -> Iterator[None]:
    """`mx.contiguous` changes only the layout in memory, and its primitive can't be exported."""
    from unittest import mock  # it imports asyncio and ssl, which a plain run has no use for

    with mock.patch.object(mx, "contiguous", lambda array, *_, **__: array):
        yield


class _Graph:
    """The recorded primitives, translated; None where a tensor can't stream."""

    def __init__(self, sources: list[Recipe]) -> None:
        self._sources = sources
        self._outputs: list[tuple[str, Shape, mx.Dtype]] = []
        self._recipes: dict[str, Recipe | None] = {}
        self._inputs: dict[str, list[str]] = {}

    def add(self, event: dict[str, Any]) -> None:
        """Take in what `mx.export_function` tells its callback: ends first, then primitives."""
        match event["type"]:
            case "inputs":
                for (label, *_), source in zip(event["inputs"], self._sources, strict=True):
                    self._recipes[label] = source
            case "outputs":
                self._outputs = event["outputs"]
            case "constants":
                for label, value in event["constants"]:
                    self._recipes[label] = Constant(tuple(value.shape), value.dtype, value)
            case "primitive":
                self._add_primitive(event)

    def _add_primitive(self, event: dict[str, Any]) -> None:
        labels = [label for label, *_ in event["inputs"]]
        parts = [recipe for recipe in map(self._recipes.get, labels) if recipe is not None]
        outputs = [label for label, *_ in event["outputs"]]
        translated = len(parts) == len(labels)
        made = _translate(event, parts) if translated else [None] * len(outputs)
        for label, recipe in zip(outputs, made, strict=True):
            self._recipes[label] = recipe
            if recipe is None:
                self._inputs[label] = labels

    def output(self, position: int) -> Recipe | None:
        """The recipe of the nth returned array, or None when it can't stream."""
        return self._recipes[self._outputs[position][0]]

    def refs(self, position: int) -> tuple[TensorRef, ...]:
        """The source tensors that the nth returned array is made from."""
        found: dict[str, TensorRef] = {}
        waiting, seen = [self._outputs[position][0]], set[str]()
        while waiting:
            label = waiting.pop()
            if label in seen:
                continue
            seen.add(label)
            recipe = self._recipes[label]
            if recipe is None:
                waiting.extend(self._inputs[label])
            else:
                found.update((ref.name, ref) for ref in recipe.sources())
        return tuple(found.values())


def _translate(event: dict[str, Any], parts: list[Recipe]) -> list[Recipe | None]:
    """The recipes of one primitive's outputs; None where it can't stream."""
    name, arguments = event["name"], event["arguments"]
    outputs = [(tuple(shape), dtype) for _, shape, dtype in event["outputs"]]
    shape, dtype = outputs[0]
    if name in _RESHAPES:
        return [Reshape(shape, dtype, parts[0])]
    if name == "Transpose":
        return [Transpose(shape, dtype, parts[0], tuple(arguments[0]))]
    if name == "Broadcast":
        return [Broadcast(shape, dtype, parts[0])]
    if name == "Concatenate":
        return [Concatenate(shape, dtype, tuple(parts), arguments[0] % len(shape))]
    if name == "Slice":
        start, _, step = arguments
        if all(stride > 0 for stride in step):
            return [Slice(shape, dtype, parts[0], tuple(start), tuple(step))]
    if name == "Split":
        return _split(outputs, parts[0], arguments[1] % len(shape))
    if name == "Gather":
        return [_row(shape, dtype, parts, arguments)]
    if name == "AsType":
        return [Elementwise(shape, dtype, (parts[0],), _cast_to(dtype))]
    if name in _ELEMENTWISE:
        return [Elementwise(shape, dtype, tuple(parts), _ELEMENTWISE[name])]
    return [None] * len(outputs)


def _split(outputs: list[tuple[Shape, mx.Dtype]], part: Recipe, axis: int) -> list[Recipe | None]:
    pieces: list[Recipe | None] = []
    at = 0
    for shape, dtype in outputs:
        start = tuple(at if index == axis else 0 for index in range(len(shape)))
        pieces.append(Slice(shape, dtype, part, start, (1,) * len(shape)))
        at += shape[axis]
    return pieces


def _row(shape: Shape, dtype: mx.Dtype, parts: list[Recipe], arguments: list[Any]) -> Recipe | None:
    """`array[i]` for a plain number i, which MLX records as a gather of one slice."""
    axes, sizes = arguments
    index = parts[1] if len(parts) == 2 else None
    if not isinstance(index, Constant) or index.value.ndim or len(axes) != 1:
        return None
    start = [0] * len(sizes)
    start[axes[0]] = cast(int, index.value.item())
    cut = Slice(tuple(sizes), dtype, parts[0], tuple(start), (1,) * len(sizes))
    return Reshape(shape, dtype, cut)


@cache
def _cast_to(dtype: mx.Dtype) -> Callable[[mx.array], mx.array]:
    return lambda array: array.astype(dtype)


class _LazyRun:
    """The function run over lazily loaded arrays, when a tensor has to be computed whole."""

    def __init__(
        self, function: Callable[[Weights], Weights], sources: Mapping[str, Recipe]
    ) -> None:
        self._function = function
        self._sources = sources
        self._result: Weights = {}

    def computed(self, name: str, refs: tuple[TensorRef, ...]) -> Computed:
        """A recipe for a tensor that can't stream."""
        if any(ref.file.suffix != SAFETENSORS for ref in refs):
            return self._read_by_ourselves(name, refs)
        array = self._array(name)
        return Computed(tuple(array.shape), array.dtype, refs, lambda: self._take(name), [])

    def _read_by_ourselves(self, wanted: str, refs: tuple[TensorRef, ...]) -> Computed:
        """The same, of files that `mx.load` can't read: what it is made from is read when it is."""
        needed = {ref.name for ref in refs}

        def run(reader: TensorReader | None) -> mx.array:
            weights = {
                name: source.read(whole(source.shape), reader)
                if reader is not None and any(ref.name in needed for ref in source.sources())
                else placeholder(source.shape, source.dtype)
                for name, source in self._sources.items()
            }
            return self._function(weights)[wanted]

        def compute() -> mx.array:
            with TensorReader() as reader:
                return run(reader)

        made = run(None)
        return Computed(tuple(made.shape), made.dtype, refs, compute, [])

    def _array(self, name: str) -> mx.array:
        if name not in self._result:
            self._result = self._function(self._load(name))
        return self._result[name]

    def _take(self, name: str) -> mx.array:
        """The lazy array, no longer held here, so that its value can be freed after use."""
        array = self._array(name)
        del self._result[name]
        return array

    def _load(self, wanted: str) -> Weights:
        files: dict[Path, Weights] = {}
        weights = {}
        for name, source in self._sources.items():
            if not isinstance(source, Copy):
                raise ArchitectureError(
                    wanted,
                    f"has to be computed whole, which can't be done while {name} is packed",
                    "convert the checkpoint that this one was quantized from",
                )
            ref = source.ref
            if ref.file not in files:
                # On the CPU: a GPU's command buffer that waits for a file is ended by Metal.
                files[ref.file] = mx.load(str(ref.file), stream=mx.cpu)  # type: ignore[assignment]
            weights[name] = files[ref.file][ref.name]
        return weights
