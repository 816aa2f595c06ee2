"""Chooses the form of every layer, as the options ask: the way from a target to a mixture.

The order of it: which layers there are, how many bytes there may be, what each form of each
layer loses, and then the choice that loses least. The bytes are the plan's own, so that the
result is never larger than was asked for. The same input gives the same choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checkpoint.architecture.mapping import ModelMap
from configs.errors import UsageError
from configs.quantization import ConvertTable
from convert.mixed.allocate import Option, allocate, hull
from convert.mixed.budget import Budget, budget_of
from convert.mixed.layers import Layer, layers_of
from convert.mixed.mixture import Mixture
from convert.mixed.recipes import from_recipe
from convert.mixed.sensitivity import Errors, from_weights
from convert.plan import Quantization
from convert.planner import make_plan
from convert.quantize import QUANTIZERS
from convert.show import gigabytes

# Formats of floats must be better by this much: affine codes run everywhere.
_FLOATS_COUNT = 1.02
_TRIES = 8


@dataclass(frozen=True)
class Measured:
    """What layers lose as a text shows it.

    Attributes:
        name: Of the text.
        errors: Given the layers, nats a token of each form of each.
    """

    name: str
    errors: Callable[[Sequence[Layer]], Errors]


def choose(
    model_map: ModelMap,
    table: ConvertTable,
    context: int | None = None,
    measured: Measured | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Mixture:
    """Choose.

    Args:
        model_map: The mapping; its model is left as it is.
        table: Has a target or a recipe.
        context: Tokens of the KV cache that `fit` leaves room for.
        measured: What a text shows; the weights alone are asked when None.
        tell: Told how many layers were measured, of how many.

    Raises:
        DiskError: the source can't be read.
        UsageError: nothing can be chosen, or the target can't be met.
    """
    model = model_map.model
    layers = layers_of(model, table)
    if not layers:
        what = f"no layer of {model.model_type} is left to choose bits for"
        raise UsageError(_flag(table), what, "use --bits, or fewer rules of [[convert.layers]]")
    if table.recipe is not None:
        forms = from_recipe(table.recipe, layers, len(model.layers), table.group_size)
        return Mixture("recipe", f"recipe {table.recipe}", "", forms, {})
    weights = sum(math.prod(recipe.shape) for recipe in model_map.recipes.values())
    budget = budget_of(table, weights, model, context)
    sizes = _Sizes(model_map, table, budget)
    if (least := sizes.of(_smallest(layers))) > budget.nbytes:
        raise _out_of_reach(budget, "least", least, weights)
    if measured is not None:
        found = measured.errors(layers)
    else:
        found = from_weights(
            layers,
            model_map.recipes,
            QUANTIZERS[table.method],
            lambda done: tell(done, len(layers)),
        )
    options = [_options(layer, found[layer.path]) for layer in layers]
    picked = _within(sizes, layers, options, budget, weights)
    return Mixture(
        budget.option,
        budget.told,
        "weights" if measured is None else measured.name,
        {layer.path: layer.forms[at] for layer, at in zip(layers, picked, strict=True)},
        {
            layer.path: each[at].error
            for layer, each, at in zip(layers, options, picked, strict=True)
        },
    )


class _Sizes:
    """The plan's bytes for a choice of forms; the model is as before after each."""

    def __init__(self, model_map: ModelMap, table: ConvertTable, budget: Budget) -> None:
        self._map, self._table, self._headers = model_map, table, budget.with_headers

    def of(self, forms: Mapping[str, Quantization]) -> int:
        """All bytes, those of the headers too if they count."""
        model: Any = self._map.model
        modules = model.leaf_modules()
        try:
            plan, _ = make_plan(self._map, self._table, forms)
        finally:
            model.update_modules(modules)
        return plan.file_bytes if self._headers else plan.tensor_bytes


def _within(
    sizes: _Sizes,
    layers: Sequence[Layer],
    options: Sequence[Sequence[Option]],
    budget: Budget,
    weights: int,
) -> list[int]:
    """The choice that loses least within a budget, held against the plan's own bytes."""
    best = [hull(each)[-1] for each in options]
    most = sizes.of(_picked(layers, best))
    if most <= budget.nbytes:
        if budget.option == "fit":
            return best
        if most < budget.nbytes:
            raise _out_of_reach(budget, "most", most, weights)
    # All that does not hang on the choice; headers do, by a few digits.
    beside = most - sum(each[at].nbytes for each, at in zip(options, best, strict=True))
    for _ in range(_TRIES):
        least = sum(min(option.nbytes for option in each) for each in options)
        picked = allocate(options, max(least, budget.nbytes - beside))
        over = sizes.of(_picked(layers, picked)) - budget.nbytes
        if over <= 0:
            return picked
        beside += over
    raise _out_of_reach(budget, "least", sizes.of(_smallest(layers)), weights)


def _options(layer: Layer, errors: Sequence[float]) -> list[Option]:
    """Rounded, so that what differs in the last digits from run to run changes no choice."""
    return [
        Option(
            layer.nbytes(form),
            float(f"{error * (1 if form.mode == 'affine' else _FLOATS_COUNT):.5g}"),
        )
        for form, error in zip(layer.forms, errors, strict=True)
    ]


def _picked(layers: Sequence[Layer], indices: Sequence[int]) -> dict[str, Quantization]:
    return {layer.path: layer.forms[at] for layer, at in zip(layers, indices, strict=True)}


def _smallest(layers: Sequence[Layer]) -> dict[str, Quantization]:
    return {layer.path: min(layer.forms, key=layer.nbytes) for layer in layers}


def _flag(table: ConvertTable) -> str:
    given = next(
        key
        for key in ("target_bpw", "target_size", "fit", "recipe")
        if getattr(table, key) is not None
    )
    return f"--{given.replace('_', '-')}"


def _out_of_reach(budget: Budget, end: str, nbytes: int, weights: int) -> UsageError:
    possible = f"{gigabytes(nbytes)} ({nbytes:,} bytes), {8 * nbytes / weights:.3f} bits per weight"
    return UsageError(
        f"--{budget.option.replace('_', '-')}",
        f"{budget.told}: {gigabytes(max(0, budget.nbytes))}; the {end} that this model can be"
        f" quantized to is {possible}",
        "ask for more" if end == "least" else "ask for less, or leave --quantize out",
    )
