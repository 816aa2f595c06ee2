"""Watches what the layers of a block take, and stands in for those whose outputs are known.

Layers that take the same input are one stage. Where a layer's output is only added to the
hidden state, what that state lacks already can be made good by the layer; where that is so
is seen from the numbers themselves, not from names. What is known of a layer's output is
given in its place, and as MLX computes nothing that is not asked for, what led to it is not
computed again. Owns those observations; knows nothing of codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from checkpoint.architecture.on_demand import intercept
from convert.calibration.hessian import Floats
from convert.calibration.routes import Routes

_SAME = 1e-4
INPUT = ""
"""The name of the block's own input, as a base."""

Known = Callable[[str], Floats | None]
"""Gives what a layer makes of its input, without its bias, [tokens, out]; None if not known."""


@dataclass(frozen=True)
class Stage:
    """Layers with the same input.

    Attributes:
        names: Of their weights.
        base: What the output is added to, if it is one layer's: a norm's name for what that
            takes, `INPUT`, or None.
        norm: What made the input, if a norm did.
        experts: Whether they are stacks of experts.
    """

    names: tuple[str, ...]
    base: str | None
    norm: str | None
    experts: bool = False


@dataclass(frozen=True)
class Taken:
    """What a stage takes.

    Attributes:
        x: Tokens, [tokens, in]; of experts, those of each expert together, in the experts' order.
        norms: What each norm before it took.
        counts: How many of the tokens each expert has; empty if there are none.
    """

    x: Floats
    norms: dict[str, mx.array] = field(default_factory=dict)
    counts: tuple[int, ...] = ()


class NotCalledError(Exception):
    """The layer that was asked for has no part in the run."""


class FoundError(Exception):
    """What was asked for is there; the rest of the block need not be computed."""


@dataclass
class _Call:
    name: str
    given: mx.array
    made: mx.array
    experts: bool


@dataclass
class _Seen:
    """What one run of a block has shown: every call, in order."""

    calls: list[_Call]
    norms: list[tuple[str, int, mx.array, mx.array]]


class Probe:
    """Intercepts a model's layers and norms, for good; silent until it is asked.

    Args:
        model: The model.
        layers: The shapes of the weights to watch, by name.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, tuple[int, ...]]) -> None:
        self._seen: _Seen | None = None
        self._wanted: str | None = None
        self._stop = True
        self._taken: tuple[mx.array, mx.array | None, int] | None = None
        self._norms: dict[str, mx.array] = {}
        self.known: Known = _nothing
        self._on_cpu = mx.default_device() == mx.Device(mx.cpu)
        for path, module in model.named_modules():
            name = f"{path}.weight"
            if name in layers:
                intercept(module, self._watch_layer(name, module, layers[name]))
            elif _is_norm(module):
                intercept(module, self._watch_norm(path))

    def stages(self, run: Callable[[], mx.array], hidden: mx.array) -> list[Stage]:
        """The stages of a block, in the order of their calls. No weight of theirs is read.

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
        grouped: list[list[_Call]] = []
        for call in seen.calls:
            for members in grouped:
                if members[0].given is call.given and members[0].experts == call.experts:
                    members.append(call)
                    break
            else:
                grouped.append([call])
        calls = [call.name for call in seen.calls]
        stages = []
        for members in grouped:
            names = tuple(call.name for call in members)
            if any(calls.count(name) > 1 for name in names):
                continue  # a layer that is called twice has two inputs
            first = members[0]
            alone = len(members) == 1 and not first.experts
            base = _base(first, seen, hidden, output) if alone else None
            norm = next((path for path, _, _, made in seen.norms if made is first.given), None)
            stages.append(Stage(names, base, norm, first.experts))
        return stages

    def input_of(self, name: str, run: Callable[[], object], *, stop: bool = True) -> Taken:
        """What a layer takes when a block runs, and what the norms before it take.

        Args:
            name: Of the layer's weight.
            run: Runs the block.
            stop: Whether the run may be left as soon as that is known; else the layer gives its
                input in place of its output.

        Raises:
            NotCalledError: it is not called.
        """
        self._wanted, self._stop, self._norms, self._taken = name, stop, {}, None
        try:
            run()
        except FoundError:
            pass
        finally:
            self._wanted = None
        if self._taken is None:
            raise NotCalledError(name)
        given, indices, experts = self._taken
        norms, self._taken, self._norms = self._norms, None, {}
        if indices is None:
            return Taken(flat(given), norms)
        routes = Routes(indices, experts)
        return Taken(routes.gather(given), norms, routes.counts)

    def _watch_layer(
        self, name: str, module: nn.Module, shape: tuple[int, ...]
    ) -> Callable[..., Any]:
        experts = shape[0] if len(shape) > 2 else 0

        def called(
            call: Callable[..., Any], given: mx.array, rest: tuple[Any, ...], named: dict[str, Any]
        ) -> Any:
            indices = (rest[0] if rest else named["indices"]) if experts else None
            if name == self._wanted:
                self._taken = (given, indices, experts)
                if self._stop:
                    raise FoundError
                return given
            if self._seen is not None:
                # Any numbers show how a block hangs together as well as the right ones.
                leading = given.shape[:-1] if indices is None else (*indices.shape, 1)
                key = mx.random.key(len(self._seen.calls))
                made = mx.random.normal((*leading, shape[-2]), key=key)
                self._seen.calls.append(_Call(name, given, made, experts > 0))
                return made
            known = self.known(name)
            if known is not None:
                return _in_place(module, known, given, indices, experts)
            if self._on_cpu and not experts:
                return linear(module, given)
            return call(given, *rest, **named)

        return called

    def _watch_norm(self, path: str) -> Callable[..., Any]:
        def called(
            call: Callable[..., Any], given: mx.array, rest: tuple[Any, ...], named: dict[str, Any]
        ) -> Any:
            if self._wanted is not None:
                self._norms[path] = given
            number = len(self._seen.calls) if self._seen is not None else 0
            made = call(given, *rest, **named)
            if self._seen is not None:
                self._seen.norms.append((path, number, given, made))
            return made

        return called


def linear(module: nn.Module, given: mx.array) -> mx.array:
    """What a linear layer makes of its input, by NumPy: several times faster than MLX on a CPU."""
    made = mx.array(np.asarray(given) @ np.asarray(module["weight"]).T)
    return made + module["bias"] if "bias" in module else made


def flat(array: mx.array) -> Floats:
    """Tokens of any number of rows, [tokens, columns]."""
    return np.array(array.astype(mx.float32)).reshape(-1, array.shape[-1])


def is_experts(module: nn.Module) -> bool:
    """Whether a module is mlx-lm's stack of experts: a weight [experts, out, in]."""
    return type(module).__name__ == "SwitchLinear"


def _nothing(name: str) -> None:
    return None


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Norm")


def _in_place(
    module: nn.Module, known: Floats, given: mx.array, indices: mx.array | None, experts: int
) -> mx.array:
    """A layer's output, of which all but the bias is known."""
    bias = module.get("bias", None)
    if indices is None:
        made = mx.array(known.reshape(*given.shape[:-1], known.shape[-1]))
        return made if bias is None else made + bias
    made = Routes(indices, experts).scatter(known)
    return made if bias is None else made + mx.expand_dims(bias[indices], -2)


def _base(call: _Call, seen: _Seen, hidden: mx.array, output: mx.array) -> str | None:
    """What a layer's output is added to, nothing else: told by what comes after it."""
    made = call.made
    at = next(place for place, other in enumerate(seen.calls) if other is call)
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
