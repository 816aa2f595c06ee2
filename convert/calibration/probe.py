"""Watches what the linear layers of a block take, and what stands beside them.

Layers that take the same input are one stage. Where a layer's output is only added to the
hidden state, what that state lacks already can be made good by the layer; where that is so
is seen from the numbers themselves, not from names. Owns those observations; knows nothing
of weights or codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from checkpoint.architecture.on_demand import intercept

_SAME = 1e-4
INPUT = ""
"""The name of the block's own input, as a base."""


@dataclass(frozen=True)
class Stage:
    """Linear layers with the same input.

    Attributes:
        names: Of their weights.
        base: What the output is added to, if it is one layer's: a norm's name for what that
            takes, `INPUT`, or None.
        norm: What made the input, if a norm did.
    """

    names: tuple[str, ...]
    base: str | None
    norm: str | None


@dataclass(frozen=True)
class Taken:
    """What one run of a block has shown.

    Attributes:
        inputs: What each layer took that was asked for, by name.
        norms: What each norm took.
        output: What the block gave.
    """

    inputs: dict[str, mx.array]
    norms: dict[str, mx.array]
    output: mx.array

    @property
    def nbytes(self) -> int:
        """Of all that is held."""
        every = (*self.inputs.values(), *self.norms.values(), self.output)
        return sum(array.nbytes for array in every)


class NotCalledError(Exception):
    """The layer that was asked for has no part in the run."""


class FoundError(Exception):
    """What was asked for is there; the rest of the block need not be computed."""


@dataclass
class _Seen:
    """What one run of a block has shown: name, input and output of every call, in order."""

    linear: list[tuple[str, mx.array, mx.array]]
    norms: list[tuple[str, int, mx.array, mx.array]]


class Probe:
    """Intercepts a model's linear layers and norms, for good; silent until it is asked.

    Args:
        model: The model.
        linear: The names of the weights to watch.
    """

    def __init__(self, model: nn.Module, linear: Mapping[str, object]) -> None:
        self._seen: _Seen | None = None
        self._wanted: str | None = None
        self._stop = True
        self._input: mx.array | None = None
        self._norms: dict[str, mx.array] = {}
        self._names: frozenset[str] = frozenset()
        self._several: dict[str, mx.array] = {}
        self._on_cpu = mx.default_device() == mx.Device(mx.cpu)
        for path, module in model.named_modules():
            name = f"{path}.weight"
            if isinstance(module, nn.Linear) and name in linear:
                intercept(module, self._watch_linear(name, module))
            elif _is_norm(module):
                intercept(module, self._watch_norm(path))

    def stages(self, run: Callable[[], mx.array], hidden: mx.array) -> list[Stage]:
        """The stages of a block, in the order of their calls.

        Args:
            run: Runs the block, on few tokens.
            hidden: What it runs on.
        """
        self._seen = _Seen([], [])
        try:
            output = run()
            seen = self._seen
        finally:
            self._seen = None
        grouped: list[tuple[mx.array, list[tuple[str, mx.array]]]] = []
        for name, given, made in seen.linear:
            for other, members in grouped:
                if other is given:
                    members.append((name, made))
                    break
            else:
                grouped.append((given, [(name, made)]))
        calls = [name for name, _, _ in seen.linear]
        stages = []
        for given, members in grouped:
            names = tuple(name for name, _ in members)
            if any(calls.count(name) > 1 for name in names):
                continue  # a layer that is called twice has two inputs
            base = _base(members[0], seen, hidden, output) if len(members) == 1 else None
            norm = next((path for path, _, _, made in seen.norms if made is given), None)
            stages.append(Stage(names, base, norm))
        return stages

    def input_of(
        self, name: str, run: Callable[[], object], *, stop: bool = True
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """What a layer takes when a block runs, [..., in], and what the norms before it take.

        Args:
            name: Of the layer's weight.
            run: Runs the block.
            stop: Whether the run may be left as soon as that is known; else the layer gives its
                input in place of its output.

        Raises:
            NotCalledError: it is not called.
        """
        self._wanted, self._stop, self._norms, self._input = name, stop, {}, None
        try:
            run()
        except FoundError:
            pass
        finally:
            self._wanted = None
        if self._input is None:
            raise NotCalledError(name)
        found, norms, self._input, self._norms = self._input, self._norms, None, {}
        return found, norms

    def inputs_of(self, names: frozenset[str], run: Callable[[], mx.array]) -> Taken:
        """What some layers take when a block runs, to its end."""
        self._several, self._norms = {}, {}
        self._names = names
        try:
            output = run()
        finally:
            self._names = frozenset()
        taken = Taken(self._several, self._norms, output)
        mx.eval(taken.inputs, taken.norms)
        self._several, self._norms = {}, {}
        return taken

    def _watch_linear(self, name: str, module: nn.Module) -> Callable[..., Any]:
        def called(
            call: Callable[..., Any], given: mx.array, rest: tuple[Any, ...], named: dict[str, Any]
        ) -> Any:
            if name == self._wanted:
                self._input = given
                if self._stop:
                    raise FoundError
                return given
            if name in self._names:
                self._several[name] = given
            made = linear(module, given) if self._on_cpu else call(given, *rest, **named)
            if self._seen is not None:
                self._seen.linear.append((name, given, made))
            return made

        return called

    def _watch_norm(self, path: str) -> Callable[..., Any]:
        def called(
            call: Callable[..., Any], given: mx.array, rest: tuple[Any, ...], named: dict[str, Any]
        ) -> Any:
            if self._wanted is not None or self._names:
                self._norms[path] = given
            number = len(self._seen.linear) if self._seen is not None else 0
            made = call(given, *rest, **named)
            if self._seen is not None:
                self._seen.norms.append((path, number, given, made))
            return made

        return called


def linear(module: nn.Module, given: mx.array) -> mx.array:
    """What a linear layer makes of its input, by NumPy: several times faster than MLX on a CPU."""
    made = mx.array(np.asarray(given) @ np.asarray(module["weight"]).T)
    return made + module["bias"] if "bias" in module else made


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Norm")


def _base(
    layer: tuple[str, mx.array], seen: _Seen, hidden: mx.array, output: mx.array
) -> str | None:
    """What a layer's output is added to, nothing else: told by what comes after it."""
    name, made = layer
    at = next(place for place, (other, _, _) in enumerate(seen.linear) if other == name)
    before = [
        (INPUT, hidden),
        *((path, given) for path, number, given, _ in seen.norms if number <= at),
    ]
    after = [*(given for _, number, given, _ in seen.norms if number > at), output]
    for base, value in before:
        if value.shape != made.shape:
            continue
        total = value + made
        for found in after:
            if found.shape == total.shape and _same(found, total):
                return base
    return None


def _same(one: mx.array, other: mx.array) -> bool:
    apart = mx.max(mx.abs(one - other))
    return bool((apart <= _SAME * mx.max(mx.abs(other))).item())
