"""Recipes: any box of a traced tensor equals the same box of the tensor computed whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Box, Computed, Constant, box_shape, row_blocks, whole
from checkpoint.architecture.reshape import Reshape
from checkpoint.architecture.trace import Weights, copies, trace
from checkpoint.shards import read_catalog
from checkpoint.tensors import Catalog


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("source")
    mx.random.seed(0)
    tensors = {
        "a": mx.random.normal((6, 8)).astype(mx.bfloat16),
        "b": mx.random.normal((6, 8)).astype(mx.bfloat16),
        "row": mx.random.normal((8,)).astype(mx.float16),
        "cube": mx.random.normal((3, 4, 8)),
        "ids": mx.arange(12).reshape(3, 4),
        "scalar": mx.array(3.0),
        "unused": mx.zeros((2,)),
    }
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return read_catalog(folder)


OPERATIONS: dict[str, Callable[[Weights], mx.array]] = {
    "copy": lambda w: w["a"],
    "scalar": lambda w: w["scalar"],
    "integers": lambda w: w["ids"],
    "stack": lambda w: mx.stack([w["a"], w["b"]]),
    "stack inside": lambda w: mx.stack([w["a"], w["b"]], axis=1),
    "concatenate rows": lambda w: mx.concatenate([w["a"], w["b"], w["a"]]),
    "concatenate columns": lambda w: mx.concatenate([w["a"], w["b"]], axis=-1),
    "transpose": lambda w: w["a"].T,
    "swap axes": lambda w: w["cube"].swapaxes(-1, -2),
    "move axis": lambda w: mx.moveaxis(w["cube"], 2, 0),
    "contiguous": lambda w: mx.contiguous(w["a"].T),
    "rows": lambda w: w["a"][2:5],
    "every second column": lambda w: w["a"][:, 1::2],
    "every second row": lambda w: w["cube"][:, ::2],
    "one row": lambda w: w["cube"][1],
    "last row": lambda w: w["cube"][-1],
    "split": lambda w: mx.split(w["a"], [1, 4])[1],
    "reshape": lambda w: w["a"].reshape(4, 12),
    "reshape a transposed": lambda w: w["a"].T.reshape(2, 24),
    "unflatten": lambda w: mx.unflatten(w["a"], 0, (2, 3)),
    "flatten": lambda w: w["cube"].flatten(0, 1),
    "new axis": lambda w: w["a"][:, None],
    "squeeze": lambda w: w["cube"][:1].squeeze(0),
    "cast": lambda w: w["a"].astype(mx.float32),
    "plus one": lambda w: w["row"] + 1.0,
    "exponential": lambda w: -mx.exp(w["row"]),
    "broadcast": lambda w: w["a"] * w["row"].astype(mx.bfloat16),
    "fused experts": lambda w: mx.stack(
        [w["a"].reshape(2, 3, 8)[:, 1:], w["b"].reshape(2, 3, 8)[:, :2]]
    ),
    "interleaved": lambda w: w["cube"].reshape(3, 2, 2, 8).transpose(0, 2, 1, 3).reshape(3, 4, 8),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_box_equals_the_whole(name: str, catalog: Catalog) -> None:
    operation = OPERATIONS[name]
    recipe = trace(lambda w: {"out": operation(w)}, copies(catalog)).recipes["out"]
    expected = operation(dict(mx.load(str(catalog.shards[0]))))
    assert not any(isinstance(node, Computed) for node in [recipe, *recipe.inputs])
    assert (recipe.shape, recipe.dtype) == (tuple(expected.shape), expected.dtype)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        box = []
        for size in recipe.shape:
            low = data.draw(st.integers(0, size - 1))
            box.append((low, data.draw(st.integers(low + 1, size))))
        wanted = expected[tuple(slice(low, high) for low, high in box)]
        with TensorReader() as reader:
            got = recipe.read(tuple(box), reader)
            assert got.dtype == wanted.dtype
            assert mx.array_equal(got, wanted).item()

    check()


def test_a_block_reads_only_its_own_bytes(catalog: Catalog) -> None:
    stacked = trace(lambda w: {"out": mx.stack([w["a"], w["b"]])}, copies(catalog)).recipes["out"]
    with TensorReader() as reader:
        mx.eval(stacked.read(((1, 2), (2, 4), (0, 8)), reader))
        assert reader.bytes_read == 2 * 8 * 2


def test_unused_sources_are_named(catalog: Catalog) -> None:
    traced = trace(lambda w: {"x": w["a"], "y": w["ids"]}, copies(catalog))
    assert traced.unused == ("b", "cube", "row", "scalar", "unused")


@pytest.mark.parametrize(
    "operation",
    [
        lambda w: w["a"] @ w["b"].T,
        lambda w: mx.from_fp8(w["ids"].astype(mx.uint8), dtype=mx.bfloat16),
        lambda w: w["a"][:, ::-1],
    ],
    ids=["matmul", "not exportable", "reversed"],
)
def test_what_cannot_stream_is_computed_whole(
    operation: Callable[[Weights], mx.array], catalog: Catalog
) -> None:
    recipe = trace(lambda w: {"out": operation(w)}, copies(catalog)).recipes["out"]
    expected = operation(dict(mx.load(str(catalog.shards[0]))))
    made_from = sum(ref.nbytes for ref in recipe.sources())
    assert recipe.resident_bytes == expected.nbytes + made_from
    with TensorReader() as reader:
        for _ in range(2):  # once kept, and once made again after it was let go
            assert mx.array_equal(recipe.read(whole(recipe.shape), reader), expected).item()
            recipe.release()


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple),
    block=st.integers(1, 300),
)
def test_row_blocks_follow_each_other_and_cover_everything(
    shape: tuple[int, ...], block: int
) -> None:
    row = shape[-1] if len(shape) > 1 else 1
    array = mx.arange(math.prod(shape)).reshape(shape)
    pieces = []
    for box in row_blocks(shape, row, block):
        assert math.prod(box_shape(box)) <= max(block, row)
        pieces.append(array[tuple(slice(low, high) for low, high in box)].reshape(-1))
    assert mx.array_equal(mx.concatenate(pieces), mx.arange(math.prod(shape))).item()


def test_reader_goes_on_past_its_limit_of_open_files(tmp_path: Path) -> None:
    refs = []
    for number in range(70):
        folder = tmp_path / str(number)
        folder.mkdir()
        mx.save_safetensors(str(folder / "model.safetensors"), {"x": mx.array([number])})
        refs.append(read_catalog(folder)["x"])
    with TensorReader() as reader:
        for _ in range(2):
            got = [reader.read(ref, ((0, 1),)).item() for ref in refs]
            assert got == list(range(70))


@st.composite
def two_shapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes of as many elements, ones among their axes."""
    factors = draw(st.lists(st.sampled_from((1, 2, 2, 3, 5)), min_size=1, max_size=5))
    shapes: list[list[int]] = []
    for _ in range(2):
        cuts = sorted(draw(st.lists(st.integers(0, len(factors)), max_size=3)))
        ends = [0, *cuts, len(factors)]
        shapes.append([math.prod(factors[a:b]) for a, b in itertools.pairwise(ends)])
    return shapes[0], shapes[1]


@settings(max_examples=150, deadline=None)
@given(shapes=two_shapes(), data=st.data())
def test_reshapes_of_reshapes(shapes: tuple[list[int], list[int]], data: st.DataObject) -> None:
    inner, outer = shapes
    value = mx.arange(math.prod(inner)).astype(mx.float32)
    flat = Constant(tuple(value.shape), mx.float32, value)
    recipe = Reshape(tuple(outer), mx.float32, Reshape(tuple(inner), mx.float32, flat))
    box = tuple(
        (low, data.draw(st.integers(low, size)))
        for size in outer
        for low in [data.draw(st.integers(0, size))]
    )
    with TensorReader() as reader:
        found = recipe.read(box, reader)
    assert mx.array_equal(found, value.reshape(outer)[tuple(slice(*cut) for cut in box)]).item()


def test_a_reshape_reads_little_more_than_it_gives() -> None:
    """A column of a matrix under another shape is not read with all that lies between."""
    seen: list[int] = []

    class Watched(Constant):
        def read(self, box: Box, reader: TensorReader) -> mx.array:
            seen.append(math.prod(box_shape(box)))
            return super().read(box, reader)

    rows = Watched((4096, 512), mx.float32, mx.zeros((4096, 512)))
    with TensorReader() as reader:
        for recipe, box in (
            (Reshape((64, 64, 512), mx.float32, rows), ((0, 64), (0, 1), (3, 4))),
            (Reshape((4096 * 512,), mx.float32, rows), ((5, 6),)),
            (Reshape((1024, 2048), mx.float32, rows), ((0, 1024), (0, 1))),
        ):
            seen.clear()
            assert recipe.read(box, reader).shape == box_shape(box)
            assert sum(seen) <= 4096
