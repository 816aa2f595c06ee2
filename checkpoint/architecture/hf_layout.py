"""Back from mlx-lm's layout to the one that transformers saves, proved before it is used.

Owns the proof: what `hf_names` proposes is carried forward again as any checkpoint is,
and every parameter must come out as it went in, element by element. Nothing is guessed:
an architecture without a reviewed way back, or a way that is not one, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from checkpoint.architecture.carry import carry
from checkpoint.architecture.hf_names import WAYS, to_hugging_face
from checkpoint.architecture.mapping import ModelMap
from checkpoint.architecture.packed import same_tensors
from checkpoint.architecture.places import probes_of, same_places
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Recipe
from checkpoint.architecture.trace import trace
from configs.errors import ArchitectureError

_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "embeddings.weight")


def hugging_face_layout(model_map: ModelMap) -> ModelMap:
    """The same model, its tensors named and laid out as transformers saves them.

    Args:
        model_map: An MLX folder mapped onto its architecture.

    Raises:
        ArchitectureError: there is no way back for the architecture, or it could not be
            proved.
    """
    config = model_map.config
    model_type = str(config["model_type"])
    if model_type not in WAYS:
        what = f"has no reviewed way from mlx-lm's layout back to transformers' ({model_type})"
        raise ArchitectureError("config.json", what, "use the checkpoint it was made from")
    tied = _tied_head(config, model_map.recipes)
    _prove(config, model_map.recipes, tied)
    wanted = {name: recipe for name, recipe in model_map.recipes.items() if name not in tied}
    traced = trace(lambda weights: to_hugging_face(config, weights), wanted)
    return replace(model_map, recipes=traced.recipes)


def _tied_head(config: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """A head that repeats the embeddings, as {head: embeddings}; transformers does not save it."""
    if not config.get("tie_word_embeddings"):
        return {}
    heads = [name for name in recipes if name.endswith(_HEADS)]
    embeddings = [name for name in recipes if name.endswith(_EMBEDDINGS)]
    for head in heads:
        if not any(same_tensors(recipes[head], recipes[name]) for name in embeddings):
            raise ArchitectureError(
                head,
                "is tied to the embeddings by config.json, and the folder holds another tensor",
                "use the checkpoint it was made from",
            )
    return dict.fromkeys(heads, embeddings[0]) if heads else {}


def _prove(
    config: Mapping[str, Any], recipes: Mapping[str, Recipe], tied: Mapping[str, str]
) -> None:
    """Carry numbered places there and back again.

    Raises:
        ArchitectureError: a parameter comes back changed, or not at all.
    """
    probes = probes_of({name: recipe for name, recipe in recipes.items() if name not in tied})
    there = trace(lambda weights: to_hugging_face(config, weights), probes)
    back = carry(config, there.recipes)
    if lost := (*there.unused, *back.unused):
        raise _unproved(lost[0])
    with TensorReader() as reader:
        for name, recipe in back.recipes.items():
            if not same_places(recipe, probes[tied.get(name, name)], reader):
                raise _unproved(name)


def _unproved(name: str) -> ArchitectureError:
    what = "does not come back the same from transformers' layout"
    return ArchitectureError(name, what, "use the checkpoint that the folder was made from")
