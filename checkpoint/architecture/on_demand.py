"""Makes the modules of a model ask for their parameters, and tell of their calls.

Owns how one module is given methods of its own while its class, which others share, stays
as it is. Knows nothing of where weights come from, or of what a call is for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def watch(model: nn.Module, names: Container[str], fetch: Callable[[str], mx.array]) -> set[str]:
    """Make every module ask for its parameters each time that it uses them.

    Args:
        model: The model; it is changed for good.
        names: The parameters to ask for, by their names in the whole model.
        fetch: Gives a parameter by such a name.

    Returns:
        The names that will be asked for. Parameters in plain lists or dicts, which are few and
        small, can't be watched.
    """
    watched: set[str] = set()
    seen: set[int] = set()
    for path, module in model.named_modules():
        if id(module) in seen:
            continue
        seen.add(id(module))
        own = {key: f"{path}.{key}" if path else key for key in module}
        own = {key: name for key, name in own.items() if name in names}
        if own:
            watched.update(own.values())
            _become(module, _on_demand(type(module), own, fetch))
    return watched


def intercept(
    module: nn.Module,
    run: Callable[[Callable[..., Any], mx.array, tuple[Any, ...], dict[str, Any]], Any],
    method: str = "__call__",
) -> None:
    """Put a function in the place of a module's call, or of another of its methods, for good.

    Args:
        module: The module.
        run: Given the module's own call, the call's first argument, its other positional ones
            and its named ones; what it returns is the call's result.
        method: The method's name.
    """
    base = type(module)
    own = getattr(base, method)
    _, first, *_ = inspect.signature(own).parameters

    def called(self: Any, *args: Any, **named: Any) -> Any:
        hidden, rest = (args[0], args[1:]) if args else (named.pop(first), ())

        def call(*args: Any, **kwargs: Any) -> Any:
            return own(self, *args, **kwargs)

        return run(call, hidden, rest, named)

    _become(module, {method: called})


def _on_demand(
    base: type[Any], own: Mapping[str, str], fetch: Callable[[str], mx.array]
) -> dict[str, Any]:
    """Methods of a module whose items of some keys are fetched each time."""

    def __getitem__(self: Any, key: str) -> Any:  # noqa: N807
        return fetch(own[key]) if key in own else base.__getitem__(self, key)

    def get(self: Any, key: str, default: Any = None) -> Any:
        return fetch(own[key]) if key in own else base.get(self, key, default)

    return {"__getitem__": __getitem__, "get": get}


def _become(module: nn.Module, methods: dict[str, Any]) -> None:
    """Give one module methods of its own; its class, which others share, stays as it is."""
    base = type(module)
    module.__class__ = type(base.__name__, (base,), methods)
