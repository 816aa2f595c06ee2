"""Makes the plan: which parameter is quantized how, and how large everything becomes.

Lets mlx-lm's model and MLX's own `nn.quantize` decide, over placeholders, so
that names, shapes and the choice of layers are theirs. Reads no tensor data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from checkpoint.architecture.mapping import ModelMap
from checkpoint.architecture.recipes import Copy, Recipe
from checkpoint.dtypes import DTYPES
from configs.errors import SourceError, UsageError
from configs.quantization import MODES, ConvertTable
from convert.plan import Operation, OutputTensor, Parameter, Plan, Quantization, lay_out

_SAFETENSORS_NAMES = {dtype.mlx: dtype.name for dtype in DTYPES.values() if not dtype.needs_scales}

# What the process holds besides tensors: the interpreter, MLX, mlx-lm's architecture, the plan.
_BASE_BYTES = 112 << 20
_BYTES_PER_SOURCE = 5 << 9
# Blocks in flight, each as read, converted and packed.
_BLOCK_COPIES = 8

BLOCK_BYTES = 8 << 20
"""Aim for the bytes of one row block as read."""


def make_plan(model_map: ModelMap, table: ConvertTable) -> tuple[Plan, dict[str, Any]]:
    """Plan a conversion.

    Args:
        model_map: The checkpoint mapped onto its architecture; its model is
            quantized in place (placeholders only).
        table: What is asked for.

    Returns:
        The plan, and config.json as it is to be written.

    Raises:
        UsageError: a layer rule matches no module, or asks for groups that don't divide.
    """
    config = dict(model_map.config)
    choice = _Choice()
    if table.quantize:
        default = Quantization(table.bits, table.group_size, table.mode)
        choice = _quantize(model_map.model, default, table)
        config["quantization"] = default.as_config() | {
            path: own.as_config() for path, own in choice.packed.items() if own != default
        }
        config["quantization_config"] = config["quantization"]
    made = dict(tree_flatten(model_map.model.parameters()))
    parameters = tuple(
        _parameter(name, recipe, made, choice) for name, recipe in model_map.recipes.items()
    )
    peak = (
        _BASE_BYTES
        + sum(len(parameter.sources) for parameter in parameters) * _BYTES_PER_SOURCE
        + BLOCK_BYTES * _BLOCK_COPIES
        + max(parameter.resident_bytes for parameter in parameters)
    )
    warnings = tuple(f"{path} is not quantized: {choice.kept[path]}" for path in choice.undivided)
    return Plan(parameters, lay_out(parameters, table.max_shard_size), peak, warnings), config


@dataclass(frozen=True)
class _Choice:
    """What becomes of the modules, by path.

    Attributes:
        packed: How each quantized one is packed.
        kept: Why each other one is kept.
        undivided: Those kept because their columns don't divide into groups.
    """

    packed: dict[str, Quantization] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    undivided: list[str] = field(default_factory=list)


def _quantize(model: Any, default: Quantization, table: ConvertTable) -> _Choice:
    """Quantize the placeholders and tell what was chosen."""
    own: Callable[[str, nn.Module], bool | dict[str, Any]] | None = getattr(
        model, "quant_predicate", None
    )
    choice = _Choice()
    unmatched = {rule.pattern for rule in table.layers}

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        columns = module.weight.shape[-1]
        if not mx.issubdtype(module.weight.dtype, mx.floating):
            raise SourceError(
                f"{path}.weight", f"holds {module.weight.dtype}, which can't be quantized"
            )
        unmatched.difference_update(
            rule.pattern for rule in table.layers if fnmatchcase(path, rule.pattern)
        )
        rule = table.rule_for(path)
        if rule is not None and rule.keep:
            choice.kept[path] = "kept by a rule of [[convert.layers]]"
            return False
        if rule is not None:
            wanted = Quantization(rule.bits, rule.group_size, rule.mode)
        elif columns % default.group_size:
            choice.kept[path] = f"{columns} columns aren't a multiple of {default.group_size}"
            choice.undivided.append(path)
            return False
        else:
            decided = own(path, module) if own is not None else True
            if not decided:
                choice.kept[path] = "kept by the architecture"
                return False
            wanted = _own_choice(decided) if isinstance(decided, dict) else default
        if columns % wanted.group_size:
            raise UsageError(
                "convert.layers",
                f"{path} has {columns} columns, which groups of {wanted.group_size} don't divide",
            )
        choice.packed[path] = wanted
        return wanted.as_config()

    nn.quantize(model, default.group_size, default.bits, mode=default.mode, class_predicate=choose)
    if unmatched:
        raise UsageError(
            "convert.layers", f"no layer matches {', '.join(map(repr, sorted(unmatched)))}"
        )
    if not choice.packed:
        raise UsageError(
            "--quantize",
            f"no layer of {model.model_type} can be quantized in groups of {default.group_size}",
            "use a smaller --group-size",
        )
    return choice


def _own_choice(decided: dict[str, Any]) -> Quantization:
    """What an architecture asks for a module, with the defaults that `to_quantized` has."""
    mode = decided.get("mode", "affine")
    return Quantization(
        bits=decided.get("bits") or MODES[mode].bits[0],
        group_size=decided.get("group_size") or MODES[mode].group_sizes[0],
        mode=mode,
    )


def _parameter(
    name: str,
    recipe: Recipe,
    made: dict[str, mx.array],
    choice: _Choice,
) -> Parameter:
    module, _, leaf = name.rpartition(".")
    quantization = choice.packed.get(module) if leaf == "weight" else None
    names = [name]
    operation: Operation = "copy" if isinstance(recipe, Copy) else "cast"
    if quantization is not None:
        operation = "quantize"
        names += [each for each in (f"{module}.scales", f"{module}.biases") if each in made]
    elif {ref.dtype for ref in recipe.sources()} == {_safetensors_name(recipe.dtype)}:
        operation = "copy"
    outputs = tuple(
        OutputTensor(
            each, _safetensors_name(made[each].dtype), tuple(made[each].shape), made[each].nbytes
        )
        for each in names
    )
    return Parameter(
        name=name,
        shape=recipe.shape,
        dtype=_safetensors_name(recipe.dtype),
        operation=operation,
        quantization=quantization,
        outputs=outputs,
        sources=tuple(ref.name for ref in recipe.sources()),
        resident_bytes=recipe.resident_bytes,
        note=choice.kept.get(module, "") if leaf == "weight" else "",
    )


def _safetensors_name(dtype: mx.Dtype) -> str:
    return _SAFETENSORS_NAMES[str(dtype).rpartition(".")[2]]
