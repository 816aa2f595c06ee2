"""From a checkpoint's catalog to the parameters of mlx-lm's architecture, strictly.

Every parameter of the architecture has a recipe, and every source tensor is
used or named as dropped. Owns that check; the meaning of the config is in
`explicit`, the streaming in `recipes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from checkpoint.architecture.config_values import untagged
from checkpoint.architecture.explicit import make_explicit
from checkpoint.architecture.mlx_lm_models import ArchitectureClasses, load_classes
from checkpoint.architecture.names import adapt_weights, explain_drop
from checkpoint.architecture.reader import same_bytes
from checkpoint.architecture.recipes import Elementwise, Recipe
from checkpoint.architecture.trace import Weights, placeholder, trace
from checkpoint.tensors import Catalog
from configs.errors import ModelConfigError, SourceError

_SHOWN = 5
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "embeddings.weight")


@dataclass(frozen=True)
class Dropped:
    """A source tensor that the architecture has no use for, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ModelMap:
    """What a checkpoint becomes in MLX.

    Attributes:
        config: config.json with every value the architecture needs made explicit.
        architecture: The mlx-lm module's name.
        model: mlx-lm's model, its parameters placeholders of the right shape and dtype.
        recipes: How each parameter is made, in the model's own order.
        dropped: Source tensors without a use.
        notes: What was made explicit or assumed, for the receipt.
    """

    config: dict[str, Any]
    architecture: str
    model: Any
    recipes: dict[str, Recipe]
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]


def map_model(config: dict[str, Any], catalog: Catalog, dtype: str | None = None) -> ModelMap:
    """Map a checkpoint onto mlx-lm's architecture.

    Args:
        config: config.json as read.
        catalog: The source tensors.
        dtype: `float16`, `bfloat16` or `float32` to cast floating parameters to,
            where the architecture allows it; None keeps each tensor's own.

    Raises:
        ArchitectureError: mlx-lm has no such architecture, or can't honour a value.
        ModelConfigError: the config lacks something, or disagrees with the tensors.
        SourceError: a parameter has no tensor, or a tensor no parameter.
    """
    explicit = make_explicit(config, {name: ref.shape for name, ref in catalog.items()})
    classes = load_classes(explicit.config["model_type"], _architectures(explicit.config))
    build = _builder(classes, explicit.config)
    built: list[Any] = []
    reasons: dict[str, str] = {}

    def carry(weights: Weights) -> Weights:
        model = build()
        built[:] = [model]
        adapted, left_out = adapt_weights(explicit.config, weights)
        for line in left_out:
            name, _, reason = line.partition(": ")
            reasons[name] = reason
        return model.sanitize(adapted) if hasattr(model, "sanitize") else adapted

    try:
        traced = trace(carry, catalog)
    except (KeyError, IndexError) as error:
        raise SourceError(
            "tensors", f"the checkpoint lacks {error} that {classes.name} needs"
        ) from error
    except ValueError as error:
        raise SourceError(
            "tensors", f"not in a layout that {classes.name} knows ({error})"
        ) from error
    model = built[0]
    recipes = _match(model, traced.recipes, classes.name)
    if dtype is not None:
        recipes = _cast(model, recipes, getattr(mx, dtype))
    model.update(
        tree_unflatten(
            [(name, placeholder(recipe.shape, recipe.dtype)) for name, recipe in recipes.items()]
        )
    )
    _check_tied_head(traced.unused, catalog)
    dropped = tuple(
        Dropped(
            name,
            reasons.get(name) or explain_drop(name) or f"not used by mlx-lm's {classes.name}",
        )
        for name in traced.unused
    )
    return ModelMap(explicit.config, classes.name, model, recipes, dropped, explicit.notes)


def _check_tied_head(unused: Iterable[str], catalog: Catalog) -> None:
    """A head that is left out, because the config ties it, must really be the embeddings."""
    for name in unused:
        if not name.endswith("lm_head.weight"):
            continue
        head = catalog[name]
        twins = [
            ref
            for ref in catalog.values()
            if ref.name.endswith(_EMBEDDINGS) and (ref.dtype, ref.shape) == (head.dtype, head.shape)
        ]
        if not any(same_bytes(head, twin) for twin in twins):
            raise ModelConfigError(
                "config.json",
                f"ties the head to the embeddings, but {name} is another tensor",
                'set "tie_word_embeddings" to false in the source if the head is its own',
            )


def _architectures(config: dict[str, Any]) -> tuple[str, ...]:
    listed = config.get("architectures") or ()
    return (listed,) if isinstance(listed, str) else tuple(listed)


def _builder(classes: ArchitectureClasses, config: dict[str, Any]) -> Callable[[], Any]:
    def build() -> Any:
        try:
            return classes.model(classes.args.from_dict(untagged(config)))
        except KeyError as error:
            raise ModelConfigError("config.json", f"{error} is missing") from error
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise ModelConfigError(
                "config.json", f"mlx-lm's {classes.name} can't be built from it ({error})"
            ) from error

    return build


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
            )
    return {name: made[name] for name in parameters}


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    shown = ", ".join(first[:_SHOWN])
    return shown if len(first) <= _SHOWN else f"{shown}, ..."


def _cast(model: Any, recipes: dict[str, Recipe], dtype: mx.Dtype) -> dict[str, Recipe]:
    """Floating parameters cast to a dtype, but for those the architecture keeps."""
    allows: Callable[[str], bool] = getattr(model, "cast_predicate", lambda _: True)

    def cast(name: str, recipe: Recipe) -> Recipe:
        if recipe.dtype == dtype or not mx.issubdtype(recipe.dtype, mx.floating):
            return recipe
        if not allows(name):
            return recipe
        return Elementwise(recipe.shape, dtype, (recipe,), lambda array: array.astype(dtype))

    return {name: cast(name, recipe) for name, recipe in recipes.items()}
