"""An MLX folder as a source: its weights seen plain, its names left as they are.

Owns the rule that such a folder is read as mlx-lm reads it, and the refusal of those
that mlx-lm would change once more on loading what is made of them. Knows nothing of
how the result is packed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from checkpoint.architecture.carry import Carried, carry
from checkpoint.architecture.explicit import ExplicitConfig, make_explicit
from checkpoint.architecture.packed import Dequantize, plain_view
from checkpoint.architecture.places import probes_of, same_places
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Computed, Constant, Elementwise, Recipe, walk
from checkpoint.packing import Quantization
from checkpoint.tensors import Catalog
from configs.errors import ArchitectureError

_QUANTIZATION_KEYS = ("quantization", "quantization_config")
_CHANGES = (Elementwise, Computed, Constant)
_CONVERT_THE_SOURCE = "convert the checkpoint that it was made from"


def map_folder(
    config: Mapping[str, Any], catalog: Catalog, dtype: mx.Dtype | None
) -> tuple[ExplicitConfig, dict[str, Recipe], Carried]:
    """Map an MLX folder onto the architecture that it is of.

    Args:
        config: config.json as read.
        catalog: The folder's tensors.
        dtype: What packed weights become; None for that of their scales.

    Returns:
        The config without its quantization, the folder's tensors seen plain, and what the
        architecture makes of them.

    Raises:
        ArchitectureError: mlx-lm has no such architecture, or changes a tensor each time.
        ModelConfigError: the config can't be, or disagrees with the tensors.
        SourceError: tensors and architecture don't fit each other.
    """
    if config.get("quantize_activations"):
        raise ArchitectureError(
            "config.json", "quantize_activations can't be carried over", _CONVERT_THE_SOURCE
        )
    sources = plain_view(config, catalog, dtype)
    told = {key: value for key, value in config.items() if key not in _QUANTIZATION_KEYS}
    explicit = _explicit(told, sources)
    carried = carry(explicit.config, sources, as_loaded=True)
    _refuse_changes(explicit.config, carried)
    forms = Counter(recipe.form for recipe in sources.values() if isinstance(recipe, Dequantize))
    notes = explicit.notes if not forms else (*explicit.notes, _history(forms))
    return ExplicitConfig(explicit.config, notes), sources, carried


def _explicit(config: Mapping[str, Any], sources: Mapping[str, Recipe]) -> ExplicitConfig:
    """The config made explicit; as it is where that can't be, since mlx-lm reads it so already."""
    try:
        return make_explicit(config, {name: recipe.shape for name, recipe in sources.items()})
    except ArchitectureError as error:
        note = f"config.json is kept as it is, and what it means to transformers is not: {error}"
        return ExplicitConfig(dict(config), (note,))


def _refuse_changes(config: Mapping[str, Any], carried: Carried) -> None:
    """Refuse parameters whose values depend on how often a folder was saved and loaded."""
    probes = probes_of(carried.recipes)
    again = carry(config, probes, as_loaded=True)
    with TensorReader() as reader:
        for name, recipe in carried.recipes.items():
            changed = any(isinstance(node, _CHANGES) for node in walk(recipe))
            if changed or not same_places(again.recipes[name], probes[name], reader):
                raise ArchitectureError(
                    name,
                    f"can't be carried over from an MLX folder: mlx-lm's {carried.architecture} "
                    "changes it each time it loads one",
                    _CONVERT_THE_SOURCE,
                )


def _history(forms: Counter[Quantization]) -> str:
    told = "; ".join(f"{count} weights: {form}" for form, count in forms.most_common())
    return f"the source was quantized already ({told}): the result is no better than that"
