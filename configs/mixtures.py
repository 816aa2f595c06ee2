"""How one number, or one name, stands for the bits of every layer: targets and recipes.

Owns the names, what goes against what, and which of them wins over what a weaker layer of
settings says. Knows nothing of how bits are then chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING

from configs.checks import InvalidValue

if TYPE_CHECKING:
    from configs.quantization import ConvertTable
    from configs.settings import Layer, Setting

TARGETS = ("target_bpw", "target_size", "fit")
"""Keys of `[convert]` that name a size; the bits of every layer follow from it."""

MIXTURES = (*TARGETS, "recipe")

RECIPES = (
    "mixed_2_6",
    "mixed_3_4",
    "mixed_3_6",
    "mixed_4_6",
    "ends_3_6",
    "ends_4_6",
    "ends_4_8",
    "q2_k",
    "q3_k_m",
    "q4_k_s",
    "q4_k_m",
    "q5_k_m",
)
"""The first four are mlx-lm's, those with a q are after llama.cpp's."""

_FORM = ("bits", "group_size", "mode")


def against(mixture: str) -> tuple[str, ...]:
    """The keys of `[convert]` that a mixture leaves nothing to decide."""
    form = ("bits", "mode") if mixture == "recipe" else _FORM
    return (*(other for other in MIXTURES if other != mixture), *form)


def mixture_name(table: ConvertTable) -> str:
    """What a folder of mixed bits is named for: `4.5bpw`, `4GB`, `fit-16GB` or a recipe."""
    if table.target_bpw is not None:
        return f"{table.target_bpw:g}bpw"
    if table.target_size is not None:
        return _size(table.target_size)
    return table.recipe or f"fit-{_size(table.fit or 0)}"


def _size(nbytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("GiB", 2**30), ("MB", 10**6)):
        if nbytes >= factor and not 100 * nbytes % factor:
            return f"{nbytes / factor:g}{unit}"
    return f"{nbytes}B"


def oust(chosen: MutableMapping[str, Setting], layer: Layer) -> None:
    """Drop what weaker layers of settings say and a stronger one makes void."""
    for mixture in MIXTURES:
        own = f"convert.{mixture}"
        for other in against(mixture):
            key = f"convert.{other}"
            if own in layer:
                chosen.pop(key, None)
            elif key in layer:
                chosen.pop(own, None)


def check_apart(chosen: Mapping[str, Setting]) -> tuple[str, Setting, InvalidValue] | None:
    """The first key that goes against a mixture given beside it: its name, setting, and why."""
    for mixture in MIXTURES:
        given = chosen.get(f"convert.{mixture}")
        if given is None:
            continue
        for other in against(mixture):
            setting = chosen.get(f"convert.{other}")
            if setting is not None:
                what = f"goes against {mixture} ({given.origin}), which decides it"
                return other, setting, InvalidValue(what, "leave one of them out")
    return None
