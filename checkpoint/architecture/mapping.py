"""From a checkpoint's catalog to the parameters of mlx-lm's architecture, strictly.

Every parameter of the architecture has a recipe, and every source tensor is
used or named as dropped. Owns that check; the meaning of the config is in
`explicit`, the way of the tensors in `carry`, the streaming in `recipes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from checkpoint.adapters.adapter import Adapter
from checkpoint.architecture.adapted import (
    adapt,
    check_used,
    updates_of_model,
    updates_of_sources,
)
from checkpoint.architecture.carry import carry
from checkpoint.architecture.explicit import make_explicit
from checkpoint.architecture.kept import kept, same_weights
from checkpoint.architecture.low_rank import Adapted
from checkpoint.architecture.mlx_folder import map_folder
from checkpoint.architecture.names import explain_drop
from checkpoint.architecture.recipes import Elementwise, Recipe
from checkpoint.architecture.trace import placeholder
from checkpoint.folder import is_mlx
from checkpoint.packing import Quantization
from checkpoint.quantized.registry import plain_source
from checkpoint.tensors import Catalog
from configs.errors import ModelConfigError

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

    @property
    def packed(self) -> dict[str, Quantization]:
        """How the source has the modules packed whose form could be kept as it is."""
        return {
            name.removesuffix(".weight"): found.form
            for name, recipe in self.recipes.items()
            if name.endswith(".weight")
            and (found := kept(recipe.part if isinstance(recipe, Adapted) else recipe)) is not None
        }


def map_model(
    config: dict[str, Any],
    catalog: Catalog,
    dtype: str | None = None,
    bring: Callable[[Iterable[Path]], None] = lambda files: None,
    adapter: Adapter | None = None,
) -> ModelMap:
    """Map a checkpoint, or an MLX folder, onto mlx-lm's architecture.

    Args:
        config: config.json as read.
        catalog: The source tensors.
        dtype: `float16`, `bfloat16` or `float32` to cast floating parameters to,
            where the architecture allows it; None keeps each tensor's own.
        bring: Called with the shards whose values must be looked at, seldom any.
        adapter: What is to be added to the weights.

    Raises:
        AdapterError: the adapter does not fit the model.
        ArchitectureError: mlx-lm has no such architecture, or can't honour a value.
        ModelConfigError: the config lacks something, or disagrees with the tensors.
        SourceError: a parameter has no tensor, or a tensor no parameter.
    """
    cast_to: mx.Dtype | None = getattr(mx, dtype) if dtype else None
    left_out: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    if is_mlx(config, catalog.metadata):
        explicit, sources, carried = map_folder(config, catalog, cast_to)
    else:
        plain = plain_source(config, catalog, cast_to, bring)
        sources, left_out, notes = plain.recipes, plain.dropped, plain.notes
        shapes = {name: recipe.shape for name, recipe in sources.items()}
        explicit = make_explicit(plain.config, shapes)
        adapted = sources
        if adapter is not None and adapter.format == "peft":
            updates = updates_of_sources(adapter, explicit.config, sources)
            adapted = adapt(sources, updates)
        carried = carry(explicit.config, adapted, is_empty=plain.is_empty)
    model, recipes = carried.model, carried.recipes
    if adapter is not None:
        if adapter.format == "mlx" or is_mlx(config, catalog.metadata):
            recipes = adapt(recipes, updates_of_model(adapter, explicit.config, model))
        check_used(adapter, recipes.values(), carried.architecture)
    if cast_to is not None:
        recipes = _cast(model, recipes, cast_to)
    model.update(
        tree_unflatten(
            [(name, placeholder(recipe.shape, recipe.dtype)) for name, recipe in recipes.items()]
        )
    )
    _check_tied_head(carried.unused, sources, bring)
    dropped = tuple(
        Dropped(
            name,
            carried.reasons.get(name)
            or explain_drop(name)
            or f"not used by mlx-lm's {carried.architecture}",
        )
        for name in carried.unused
    )
    dropped += tuple(Dropped(name, reason) for name, reason in left_out.items())
    return ModelMap(
        explicit.config,
        carried.architecture,
        model,
        recipes,
        dropped,
        (*explicit.notes, *notes),
    )


def _check_tied_head(
    unused: tuple[str, ...],
    sources: Mapping[str, Recipe],
    bring: Callable[[Iterable[Path]], None],
) -> None:
    """A head that is left out, because the config ties it, must really be the embeddings."""
    for name in unused:
        if not name.endswith("lm_head.weight"):
            continue
        twins = [recipe for other, recipe in sources.items() if other.endswith(_EMBEDDINGS)]
        bring({ref.file for recipe in (sources[name], *twins) for ref in recipe.sources()})
        if not any(same_weights(sources[name], twin) for twin in twins):
            raise ModelConfigError(
                "config.json",
                f"ties the head to the embeddings, but {name} is another tensor",
                'set "tie_word_embeddings" to false in the source if the head is its own',
            )


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
