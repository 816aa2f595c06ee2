"""A Hugging Face folder as it is, read into a model through the mapping that `convert` uses.

Owns the reading of weights by recipes and their quantization on the way in. What the
names and the config mean is the architecture room's; knows nothing of MLX folders'
own packing.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from checkpoint.architecture.kept import kept
from checkpoint.architecture.mapping import ModelMap
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Recipe, whole
from checkpoint.packing import Quantization
from configs.errors import UsageError
from inference.device import parameters

LOAD_BITS = (8, 4)
_GROUP_SIZE = 64


def pack_placeholders(model: nn.Module, bits: int) -> None:
    """Replace the layers of a model without weights by quantized ones, as `convert` chooses them.

    Raises:
        UsageError: no layer has columns that divide into groups.
    """
    own = getattr(model, "quant_predicate", None)

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % _GROUP_SIZE:
            return False
        decided: bool | dict[str, Any] = True if own is None else own(path, module)
        return decided

    nn.quantize(model, _GROUP_SIZE, bits, class_predicate=chosen)
    if not any(hasattr(module, "scales") for module in model.modules()):
        raise UsageError(
            "--load-bits", f"no layer divides into groups of {_GROUP_SIZE}", "leave it out"
        )


def pack_as_kept(mapped: ModelMap) -> None:
    """Replace the layers whose codes the source has by quantized ones that take them."""
    forms = mapped.packed

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if path not in forms or not hasattr(module, "to_quantized"):
            return False
        return forms[path].as_config()

    if forms:
        nn.quantize(mapped.model, class_predicate=chosen)


def fill_by_recipes(mapped: ModelMap) -> nn.Module:
    """Read every parameter of a mapped checkpoint into its model.

    One parameter at a time is held as the checkpoint has it; what `pack_placeholders`
    marked is quantized before the next is read.

    Raises:
        SourceError: a tensor can't be read.
        DiskError: a file can't be read.
    """
    model: nn.Module = mapped.model
    wanted = parameters(model)
    modules = dict(model.named_modules())
    filled: dict[str, mx.array] = {}
    with TensorReader() as reader:
        for name, recipe in mapped.recipes.items():
            path, _, leaf = name.rpartition(".")
            if leaf == "weight" and f"{path}.scales" in wanted:
                made = _packed(path, _parts(recipe, modules[path], reader))
            else:
                made = {name: recipe.read(whole(recipe.shape), reader)}
            mx.eval(made)
            filled |= made
            recipe.release()
    model.load_weights(list(filled.items()), strict=True)
    mx.clear_cache()
    return model


def _parts(recipe: Recipe, module: nn.Module, reader: TensorReader) -> tuple[mx.array, ...]:
    """Codes, scales and perhaps biases: the source's own where they are of the module's form."""
    found = kept(recipe)
    form = Quantization(module.bits, module.group_size, module.mode)
    if found is not None and found.form == form:
        return found.read(whole(recipe.shape), reader)
    value = recipe.read(whole(recipe.shape), reader)
    return tuple(mx.quantize(value, module.group_size, module.bits, mode=module.mode))


def _packed(path: str, parts: tuple[mx.array, ...]) -> dict[str, mx.array]:
    leaves = ("weight", "scales", "biases")[: len(parts)]
    return {f"{path}.{leaf}": part for leaf, part in zip(leaves, parts, strict=True)}
