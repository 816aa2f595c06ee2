"""Named tensors to the parameters of mlx-lm's model for a config, strictly.

Owns the run of mlx-lm's `sanitize` and the check that every parameter gets a tensor of
its shape. Knows nothing of what a config means or of where the tensors lie.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx.utils import tree_flatten

from checkpoint.architecture.config_values import untagged
from checkpoint.architecture.mlx_lm_models import ArchitectureClasses, load_classes
from checkpoint.architecture.names import adapt_weights
from checkpoint.architecture.recipes import Recipe
from checkpoint.architecture.trace import Weights, trace
from configs.errors import ModelConfigError, SourceError

BUILD_ERRORS = (
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    IndexError,
    NotImplementedError,
)
"""What mlx-lm's code raises on a config that it can't be built from."""

_SHOWN = 5
_NO_PLACE = "zeros, for which the architecture has no place"


@dataclass(frozen=True)
class Carried:
    """What mlx-lm's model makes of some tensors.

    Attributes:
        architecture: The mlx-lm module's name.
        model: mlx-lm's model, its parameters not yet the tensors'.
        recipes: How each parameter is made, in the model's own order.
        unused: Tensors that no parameter is made from.
        reasons: Why some of those are left out.
    """

    architecture: str
    model: Any
    recipes: dict[str, Recipe]
    unused: tuple[str, ...]
    reasons: Mapping[str, str] = field(default_factory=dict)


def carry(
    config: Mapping[str, Any],
    sources: Mapping[str, Recipe],
    *,
    as_loaded: bool = False,
    is_empty: Callable[[Iterable[str]], bool] = lambda names: False,
) -> Carried:
    """Run mlx-lm's `sanitize` over placeholders and match what it gives with the model.

    Args:
        config: The config that mlx-lm reads.
        sources: How each tensor is made, by name.
        as_loaded: Do no more than mlx-lm does when it loads a folder of its own; else names
            and layouts that `sanitize` does not know are brought to those it does.
        is_empty: Asked of tensors that the architecture has no place for, whether there is
            nothing in them that would be missed.

    Raises:
        ArchitectureError: mlx-lm has no such architecture.
        ModelConfigError: the model can't be built, or disagrees with the tensors.
        SourceError: a parameter has no tensor, or a tensor no parameter.
    """
    classes = load_classes(config["model_type"], architectures_of(config))
    built: list[Any] = []
    reasons: dict[str, str] = {}

    def run(weights: Weights) -> Weights:
        model = build_model(classes, config)
        built[:] = [model]
        if not as_loaded:
            weights, left_out = adapt_weights(config, weights)
            reasons.update(_reason(line) for line in left_out)
        return model.sanitize(weights) if hasattr(model, "sanitize") else weights

    try:
        traced = trace(run, sources)
    except (KeyError, IndexError) as error:
        raise SourceError(
            "tensors",
            f"the checkpoint lacks {error} that {classes.name} needs",
            "is it complete, and its config.json its own?",
        ) from error
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        raise SourceError(
            "tensors",
            f"not in a layout that {classes.name} knows ({error})",
            "is config.json the checkpoint's own?",
        ) from error
    empty = _placeless(built[0], traced.recipes, is_empty)
    made = {name: recipe for name, recipe in traced.recipes.items() if name not in empty}
    reasons |= dict.fromkeys(itertools.chain.from_iterable(empty.values()), _NO_PLACE)
    recipes = _match(built[0], made, classes.name)
    unused = (*traced.unused, *itertools.chain.from_iterable(empty.values()))
    return Carried(classes.name, built[0], recipes, unused, reasons)


def _placeless(
    model: Any, made: Mapping[str, Recipe], is_empty: Callable[[Iterable[str]], bool]
) -> dict[str, tuple[str, ...]]:
    """Tensors without a parameter that may be left out, each with what it is made from."""
    places = dict(tree_flatten(model.parameters()))
    found = {}
    for name in made.keys() - places.keys():
        sources = tuple(ref.name for ref in made[name].sources())
        if sources and is_empty(sources):
            found[name] = sources
    return found


def build_model(classes: ArchitectureClasses, config: Mapping[str, Any]) -> Any:
    """mlx-lm's model for a config; its arrays are lazy, so nothing is allocated.

    Raises:
        ModelConfigError: it can't be built.
    """
    try:
        return classes.model(classes.args.from_dict(untagged(dict(config))))
    except KeyError as error:
        raise ModelConfigError("config.json", f"{error} is missing", "download it again") from error
    except BUILD_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise ModelConfigError(
            "config.json",
            f"mlx-lm's {classes.name} can't be built from it ({reason})",
            "is it the checkpoint's own?",
        ) from error


def architectures_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a config names."""
    listed = config.get("architectures") or ()
    return (listed,) if isinstance(listed, str) else tuple(map(str, listed))


def _reason(line: str) -> tuple[str, str]:
    name, _, reason = line.partition(": ")
    return name, reason


def _match(model: Any, made: dict[str, Recipe], architecture: str) -> dict[str, Recipe]:
    """The recipes in the model's order, each held against the parameter it fills."""
    parameters = dict(tree_flatten(model.parameters()))
    if missing := parameters.keys() - made.keys():
        raise SourceError(
            "tensors",
            f"{len(missing)} parameters of {architecture} have no tensor: {_some(missing)}",
            "is the checkpoint complete?",
        )
    if extra := made.keys() - parameters.keys():
        raise SourceError(
            "tensors",
            f"{len(extra)} tensors have no parameter in {architecture}: {_some(extra)}",
            "the config names another architecture than the weights, or mlx-lm lacks a part of it",
        )
    for name, parameter in parameters.items():
        if made[name].shape != tuple(parameter.shape):
            raise ModelConfigError(
                "config.json",
                f"says {name} is {list(parameter.shape)}, the tensor is {list(made[name].shape)}",
                "is it the checkpoint's own?",
            )
    return {name: made[name] for name in parameters}


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    shown = ", ".join(first[:_SHOWN])
    return shown if len(first) <= _SHOWN else f"{shown}, ..."
