"""Which parameters of a model an adapter is for, strictly.

Owns the way from an adapter's names to parameters or source tensors: every module that it
names is found and fits, or the adapter is refused. Knows nothing of what is done with a
parameter then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from checkpoint.adapters.adapter import Adapter, Pair
from checkpoint.architecture.hf_names import WAYS, to_hugging_face
from checkpoint.architecture.low_rank import Adapted, LowRank, copied, transposed
from checkpoint.architecture.mlx_lm_models import defer_mlx_lm_init
from checkpoint.architecture.places import Probe
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Recipe, Transpose, walk, whole
from checkpoint.architecture.trace import trace
from checkpoint.folder import shown
from configs.errors import AdapterError

Updates = dict[str, LowRank]
"""What is added, by the name of the parameter or source tensor."""

_FUSE_FIRST = "convert the Hugging Face checkpoint with --fuse-adapter"


def updates_of_model(adapter: Adapter, config: Mapping[str, Any], model: nn.Module) -> Updates:
    """What an adapter adds to the parameters of an MLX model.

    Args:
        adapter: The adapter.
        config: The model's.
        model: mlx-lm's, none of its layers packed; its values are not looked at.

    Raises:
        AdapterError: It names a module that the model has not, or that it does not fit.
    """
    flat = cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
    shapes = {name: tuple(value.shape) for name, value in flat}
    if adapter.format == "mlx":
        modules = _allowed(adapter, model)
        updates = {
            f"{pair.module}.weight": _of_mlx(pair, modules[pair.module]) for pair in adapter.pairs
        }
        for name, update in updates.items():
            _check_shape(adapter, update, shapes[name])
        return updates
    return _by_transformers_names(adapter, config, model, shapes)


def updates_of_sources(
    adapter: Adapter, config: Mapping[str, Any], sources: Mapping[str, Recipe]
) -> Updates:
    """What an adapter of PEFT's adds to the tensors of a Hugging Face checkpoint.

    Raises:
        AdapterError: It names a module that the checkpoint has not, or that it does not fit.
    """
    updates = {}
    for pair in adapter.pairs:
        name = _source_name(adapter, pair.module, sources)
        _refuse_tied(adapter, pair, config)
        if name in updates:
            raise AdapterError(adapter.file, f"has two modules for {name}")
        updates[name] = _of_peft(adapter, pair, config)
        _check_shape(adapter, updates[name], sources[name].shape)
    return updates


def adapt(recipes: Mapping[str, Recipe], updates: Updates) -> dict[str, Recipe]:
    """The recipes, with what is added to some."""
    return {
        name: Adapted(recipe.shape, recipe.dtype, recipe, updates[name])
        if name in updates
        else recipe
        for name, recipe in recipes.items()
    }


def check_used(adapter: Adapter, recipes: Iterable[Recipe], architecture: str) -> None:
    """Refuse an adapter of which something has gone lost on the way to the parameters.

    Raises:
        AdapterError: Naming what has.
    """
    used = {
        node.update.module
        for recipe in recipes
        for node in walk(recipe)
        if isinstance(node, Adapted)
    }
    if lost := [pair.module for pair in adapter.pairs if pair.module not in used]:
        what = f"adapts {shown(lost)}, of which mlx-lm's {architecture} makes no use"
        raise AdapterError(adapter.file, what)


def check_finite(adapter: Adapter) -> None:
    """Refuse an adapter whose tensors hold infinities or NaN.

    Raises:
        AdapterError: Naming the first that does.
        DiskError: The file can't be read.
    """
    with TensorReader() as reader:
        for pair in adapter.pairs:
            for ref in (pair.a, pair.b, pair.magnitude):
                if ref is None:
                    continue
                value = copied(ref).read(whole(ref.shape), reader)
                if not mx.all(mx.isfinite(value)).item():
                    raise AdapterError(f"{ref.file} ({ref.name})", "holds infinite or NaN values")


def taken_apart(
    recipes: Mapping[str, Recipe], model: nn.Module
) -> tuple[dict[str, Recipe], Updates]:
    """The recipes without what an adapter adds, where that can be computed beside the weight.

    What is added to a part of a parameter, such as one expert of a stack, stays where it is.

    Args:
        recipes: Of the model's parameters.
        model: mlx-lm's, none of its layers packed.
    """
    modules = dict(model.named_modules())
    plain: dict[str, Recipe] = {}
    updates: Updates = {}
    for name, recipe in recipes.items():
        path, _, leaf = name.rpartition(".")
        taken = _taken(recipe) if leaf == "weight" and is_adaptable(modules[path]) else None
        plain[name] = recipe if taken is None else taken[0]
        if taken is not None:
            updates[name] = taken[1]
    return plain, updates


def is_adaptable(module: object) -> bool:
    """Whether a module is of a kind that an adapter can stand beside."""
    defer_mlx_lm_init()
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    linear = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
    return isinstance(module, (*linear, nn.Embedding, nn.QuantizedEmbedding))


def _taken(recipe: Recipe) -> tuple[Recipe, LowRank] | None:
    if isinstance(recipe, Adapted):
        return recipe.part, recipe.update
    if isinstance(recipe, Transpose) and isinstance(recipe.part, Adapted):
        swapped = recipe.part.update.swapped() if recipe.axes == (1, 0) else None
        if swapped is not None:
            return replace(recipe, part=recipe.part.part), swapped
    return None


def _allowed(adapter: Adapter, model: nn.Module) -> dict[str, nn.Module]:
    """The modules that mlx-lm would adapt, by path, all of the adapter's among them."""
    every = dict(model.named_modules())
    paths = {id(module): path for path, module in every.items()}
    try:
        layers = list(model.layers)
    except (AttributeError, TypeError) as error:
        raise AdapterError(adapter.path, "is for a model of layers, which this is not") from error
    # As mlx-lm slices: 0 and less are all of them.
    chosen = layers[-max(adapter.layers, 0) :]
    found: dict[str, nn.Module] = {}
    for layer in chosen:
        for inner, module in layer.named_modules():
            named = adapter.keys is None or inner in adapter.keys
            if named and id(module) in paths:
                found[paths[id(module)]] = module
    found |= {path: every[path] for path in adapter.keys or () if path in every}
    odd = [pair.module for pair in adapter.pairs if pair.module not in every]
    if odd:
        what = f"adapts modules that the model has not: {shown(odd)}"
        raise AdapterError(adapter.file, what, "it belongs to another model")
    odd = [pair.module for pair in adapter.pairs if pair.module not in found]
    if odd:
        what = f"adapts modules that its config does not name: {shown(odd)}"
        raise AdapterError(adapter.file, what, "is the config the adapter's own?")
    odd = [
        pair.module
        for pair in adapter.pairs
        if not is_adaptable(found[pair.module]) or hasattr(found[pair.module], "to_lora")
    ]
    if odd:
        kinds = {type(found[module]).__name__ for module in odd}
        what = f"adapts modules of a kind that can't be: {shown(odd)} ({shown(sorted(kinds))})"
        raise AdapterError(adapter.file, what)
    if adapter.keys is not None:
        lost = found.keys() - {pair.module for pair in adapter.pairs}
        if lost:
            what = f"lacks modules that its config names: {shown(sorted(lost))}"
            raise AdapterError(adapter.file, what, "is the file whole?")
    return found


def _of_mlx(pair: Pair, module: nn.Module) -> LowRank:
    """mlx-lm's pair in one form: a linear layer's are held as [in, rank] and [rank, out]."""
    a, b = copied(pair.a), copied(pair.b)
    magnitude = None if pair.magnitude is None else copied(pair.magnitude)
    if len(a.shape) == 3:
        return LowRank(pair.module, b, a, pair.scale)
    if isinstance(module, nn.Embedding):
        return LowRank(pair.module, a, b, pair.scale, magnitude)
    return LowRank(pair.module, transposed(b), transposed(a), pair.scale, magnitude)


def _of_peft(adapter: Adapter, pair: Pair, config: Mapping[str, Any]) -> LowRank:
    """PEFT's pair for the tensor that transformers saves."""
    magnitude = None if pair.magnitude is None else copied(pair.magnitude)
    if pair.embedding:
        rows, columns = transposed(copied(pair.a)), transposed(copied(pair.b))
        return LowRank(pair.module, rows, columns, pair.scale)
    update = LowRank(pair.module, copied(pair.b), copied(pair.a), pair.scale, magnitude)
    in_out = config.get("model_type") == "gpt2" and not pair.module.endswith("lm_head")
    if in_out != adapter.transposed:
        what = f"says fan_in_fan_out {str(adapter.transposed).lower()}, and {pair.module} is not so"
        raise AdapterError(adapter.path, what, "it belongs to another model")
    swapped = update.swapped() if adapter.transposed else update
    return update if swapped is None else swapped


def _check_shape(adapter: Adapter, update: LowRank, shape: tuple[int, ...]) -> None:
    found = update.shape
    magnitude = update.magnitude
    if found == shape and (magnitude is None or magnitude.shape == shape[:-1]):
        return
    what = f"is for a weight of shape {list(found)}, and {update.module} has {list(shape)}"
    raise AdapterError(adapter.file, what, "it belongs to another model")


def _refuse_tied(adapter: Adapter, pair: Pair, config: Mapping[str, Any]) -> None:
    """PEFT adapts one of a tied pair, and the model has both in one."""
    if config.get("tie_word_embeddings") and (
        pair.embedding or pair.module.rpartition(".")[2] in ("lm_head", "embed_out")
    ):
        what = f"adapts {pair.module} alone, which the model ties to another"
        raise AdapterError(adapter.file, what, "merge it with PEFT, and convert that")


def _source_name(adapter: Adapter, module: str, names: Mapping[str, object]) -> str:
    """The tensor of a module; classes of transformers differ in the first parts of its name."""
    wanted = f"{module}.weight"
    if wanted in names:
        return wanted
    found = [name for name in names if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")]
    # A short name such as `lm_head.weight` must not pass for the end of a longer one.
    found = [name for name in found if "." in name.removesuffix(".weight")]
    if len(found) != 1:
        what = f"adapts a module that the model has not: {module}"
        raise AdapterError(adapter.file, what, "it belongs to another model")
    return found[0]


def _by_transformers_names(
    adapter: Adapter,
    config: Mapping[str, Any],
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
) -> Updates:
    """PEFT's updates of the parameters of an MLX folder, through the reviewed way back."""
    model_type = str(config.get("model_type"))
    if model_type not in WAYS:
        what = f"has transformers' names, and the way from them is not known for {model_type}"
        raise AdapterError(adapter.file, what, _FUSE_FIRST)
    probes: dict[str, Recipe] = {
        name: Probe(shape, mx.float32, name) for name, shape in shapes.items()
    }
    there = trace(lambda weights: to_hugging_face(config, weights), probes).recipes
    modules = dict(model.named_modules())
    updates: Updates = {}
    for source, update in updates_of_sources(adapter, config, there).items():
        recipe: Recipe | None = there[source]
        found: LowRank | None = update
        if isinstance(recipe, Transpose) and recipe.axes == (1, 0):
            recipe, found = recipe.part, update.swapped()
        if not isinstance(recipe, Probe) or found is None or recipe.name in updates:
            what = f"adapts {update.module}, which the MLX folder holds in another form"
            raise AdapterError(adapter.file, what, _FUSE_FIRST)
        if not is_adaptable(modules[recipe.name.removesuffix(".weight")]):
            raise AdapterError(adapter.file, f"adapts {update.module}, which can't be", _FUSE_FIRST)
        updates[recipe.name] = found
    return updates
