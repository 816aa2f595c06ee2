"""The proof that a way there and back moves nothing: right moves pass, wrong ones don't."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest

from checkpoint.architecture.places import probes_of, same_places
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Constant
from checkpoint.architecture.trace import trace

Move = Callable[[mx.array], mx.array]

NOTHING: dict[str, Move] = {
    "left alone": lambda x: x,
    "transposed twice": lambda x: x.swapaxes(1, 2).swapaxes(1, 2),
    "cut and joined": lambda x: mx.concatenate([x[:, :2], x[:, 2:]], axis=1),
    "taken apart and stacked": lambda x: mx.stack([x[n] for n in range(4)]),
    "taken apart by turns": lambda x: mx.stack([x[:, ::2], x[:, 1::2]], 2).reshape(4, 4, 4),
    "flattened and back": lambda x: x.reshape(-1).reshape(4, 4, 4),
}
SOMETHING: dict[str, Move] = {
    "transposed": lambda x: x.swapaxes(1, 2),
    "experts swapped": lambda x: mx.stack([x[0], x[2], x[1], x[3]]),
    "an expert twice": lambda x: mx.stack([x[0], x[1], x[1], x[3]]),
    "halves swapped": lambda x: mx.concatenate([x[:, 2:], x[:, :2]], axis=1),
    "columns shifted": lambda x: mx.concatenate([x[..., 1:], x[..., :1]], axis=2),
    "gates for ups": lambda x: mx.stack([x[:, 1::2], x[:, ::2]], 2).reshape(4, 4, 4),
    "one added": lambda x: x + 1,
    "cast": lambda x: x.astype(mx.float32),
    "cut": lambda x: x[:, :2],
    "one row for all": lambda x: mx.broadcast_to(x[:, :1], (4, 4, 4)),
}


def comes_back(move: Move) -> bool:
    constant = Constant((4, 4, 4), mx.bfloat16, mx.zeros((4, 4, 4), mx.bfloat16))
    probes = probes_of({"w": constant})
    back = trace(lambda weights: {"w": move(weights["w"])}, probes).recipes["w"]
    with TensorReader() as reader:
        return same_places(back, probes["w"], reader)


@pytest.mark.parametrize("name", NOTHING)
def test_what_changes_nothing(name: str) -> None:
    assert comes_back(NOTHING[name])


@pytest.mark.parametrize("name", SOMETHING)
def test_what_changes_something(name: str) -> None:
    assert not comes_back(SOMETHING[name])


def test_another_tensor_of_the_same_shape() -> None:
    constant = Constant((4, 4), mx.bfloat16, mx.zeros((4, 4), mx.bfloat16))
    probes = probes_of({"a": constant, "b": constant})
    with TensorReader() as reader:
        assert not same_places(probes["a"], probes["b"], reader)
