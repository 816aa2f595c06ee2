"""Known mixtures: which layer has how many bits, by its name and its place alone.

`mixed_L_H` are mlx-lm's: L bits, but H for the head, and in three of eight blocks for values and
down projections; they choose as `mlx_lm.convert --quant-predicate` does. Those with a `q` are
after llama.cpp's of that name, in the bits nearest to its types'. `ends_L_H` has H bits for the
embeddings and the head, and L for all between. Reads no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from configs.errors import UsageError
from convert.mixed.layers import Layer
from convert.plan import Quantization

_VALUES = ("v_proj", "v_a_proj", "v_b_proj")
_DOWN, _OUT, _HEAD = ("down_proj",), ("o_proj",), ("lm_head",)


def _always(index: int, blocks: int) -> bool:
    return True


def _more_bits(index: int, blocks: int) -> bool:
    """The first and last eighth of the blocks, and every third between."""
    first = blocks // 8
    return index < first or index >= 7 * blocks // 8 or (index - first) % 3 == 2


def _first_eighth(index: int, blocks: int) -> bool:
    return index < blocks // 8


def _first_sixteenth(index: int, blocks: int) -> bool:
    return index < blocks // 16


def _first_four(index: int, blocks: int) -> bool:
    return index < 4


class _Rule(NamedTuple):
    """What some layers have: those whose path holds one of the names, in some blocks."""

    names: tuple[str, ...]
    bits: int
    where: Callable[[int, int], bool] = _always


class _Recipe(NamedTuple):
    """The first rule that fits decides; `embeddings` are bits of a table of embeddings."""

    bits: int
    rules: tuple[_Rule, ...]
    embeddings: int | None = None


def _mixed(low: int, high: int) -> _Recipe:
    more = _Rule((*_VALUES, *_DOWN), high, _more_bits)
    return _Recipe(low, (more, _Rule(_HEAD, high)))


def _ends(low: int, high: int) -> _Recipe:
    return _Recipe(low, (_Rule(_HEAD, high),), high)


_HEAD_6 = _Rule(_HEAD, 6)
_RECIPES = {
    "mixed_2_6": _mixed(2, 6),
    "mixed_3_4": _mixed(3, 4),
    "mixed_3_6": _mixed(3, 6),
    "mixed_4_6": _mixed(4, 6),
    "ends_3_6": _ends(3, 6),
    "ends_4_6": _ends(4, 6),
    "ends_4_8": _ends(4, 8),
    "q2_k": _Recipe(2, (_Rule((*_VALUES, *_DOWN, *_OUT), 3), _HEAD_6)),
    "q3_k_m": _Recipe(
        3,
        (
            _Rule(_DOWN, 5, _first_sixteenth),
            _Rule((*_VALUES, *_DOWN, *_OUT), 4),
            _HEAD_6,
        ),
    ),
    "q4_k_s": _Recipe(4, (_Rule(_VALUES, 5, _first_four), _Rule(_DOWN, 5, _first_eighth), _HEAD_6)),
    "q4_k_m": _mixed(4, 6),
    "q5_k_m": _mixed(5, 6),
}


def from_recipe(
    name: str, layers: Sequence[Layer], blocks: int, group_size: int
) -> dict[str, Quantization]:
    """The form of each layer, by its path.

    Args:
        name: Of the recipe.
        layers: The layers.
        blocks: How many blocks the model has.
        group_size: For all of them.

    Raises:
        UsageError: the model's layers have none of the names that the recipe goes by.
    """
    recipe = _RECIPES[name]
    ends = any(layer.is_embedding or "lm_head" in layer.path for layer in layers)
    downs = any("down_proj" in layer.path for layer in layers)
    if not (downs if recipe.embeddings is None else ends):
        what = f"{name} goes by names that this model's layers do not have"
        raise UsageError("--recipe", what, "give a target, such as --target-bpw 4.5")
    return {
        layer.path: Quantization(_bits(recipe, layer, blocks), group_size, "affine")
        for layer in layers
        if not layer.shape[-1] % group_size
    }


def _bits(recipe: _Recipe, layer: Layer, blocks: int) -> int:
    if layer.is_embedding and recipe.embeddings is not None:
        return recipe.embeddings
    for rule in recipe.rules:
        if any(name in layer.path for name in rule.names) and rule.where(layer.number or 0, blocks):
            return rule.bits
    return recipe.bits
