"""Makes the plan: which parameter is quantized how, and how large everything becomes.

Lets mlx-lm's model and MLX's own `nn.quantize` decide, over placeholders, so
that names, shapes and the choice of layers are theirs. Reads no tensor data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from checkpoint.architecture.kept import kept, was_quantized
from checkpoint.architecture.mapping import ModelMap
from checkpoint.architecture.packed import Dequantize
from checkpoint.architecture.recipes import Copy, Recipe, walk
from checkpoint.dtypes import DTYPES
from checkpoint.folder import shown
from configs.errors import ArchitectureError, SourceError, UsageError
from configs.quantization import MODES, ConvertTable
from convert.plan import Operation, OutputTensor, Parameter, Plan, Quantization, lay_out

_SAFETENSORS_NAMES = {dtype.mlx: dtype.name for dtype in DTYPES.values() if not dtype.needs_scales}

# What the process holds besides tensors: the interpreter, MLX, mlx-lm's architecture, the plan.
_BASE_BYTES = 112 << 20
_BYTES_PER_SOURCE = 5 << 9
# Blocks in flight, each as read, converted and packed.
_BLOCK_COPIES = 8
_BLOCKS_READ = 3

BLOCK_BYTES = 8 << 20
"""Aim for the bytes of one row block as read."""


def make_plan(
    model_map: ModelMap,
    table: ConvertTable,
    forms: Mapping[str, Quantization] | None = None,
) -> tuple[Plan, dict[str, Any]]:
    """Plan a conversion.

    Args:
        model_map: The checkpoint mapped onto its architecture; its model is
            quantized in place (placeholders only).
        table: What is asked for. If neither to quantize nor to dequantize, what the source
            has packed stays packed as it is.
        forms: Chosen forms of modules, by their paths; all others are as the table asks.

    Returns:
        The plan, and config.json as it is to be written.

    Raises:
        UsageError: a layer rule matches no module, or asks for groups that don't divide.
        ArchitectureError: a module can't be packed as it is asked or as it is.
    """
    config = dict(model_map.config)
    choice = _Choice()
    default: Quantization | None = None
    if table.quantize:
        default = Quantization(table.bits, table.group_size, table.mode)
        choice = _quantize(model_map.model, default, table, forms or {})
        if forms:
            (default, _), *_ = Counter(choice.packed.values()).most_common(1)
    elif not table.dequantize:
        choice, default = _keep(model_map)
    if default is not None:
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
        + max(map(_block_bytes, model_map.recipes.values()))
        + max(parameter.resident_bytes for parameter in parameters)
    )
    warnings = (
        *(f"{path} is not quantized: {choice.kept[path]}" for path in choice.undivided),
        *_twice_quantized(parameters, model_map),
    )
    shards = lay_out(parameters, table.max_shard_size, "pt" if table.dequantize else "mlx")
    return Plan(parameters, shards, peak, warnings), config


def _block_bytes(recipe: Recipe) -> int:
    """The most that the blocks in flight take; a row is never cut."""
    row = recipe.dtype.size * (recipe.shape[-1] if len(recipe.shape) > 1 else 1)
    copies = _BLOCK_COPIES + _BLOCKS_READ * (recipe.reads - 1)
    return max(row, BLOCK_BYTES) * copies


def _twice_quantized(parameters: Iterable[Parameter], model_map: ModelMap) -> Iterator[str]:
    """What to say of weights that are quantized from others that were quantized already."""
    again = [
        parameter.name
        for parameter in parameters
        if parameter.operation == "quantize" and was_quantized(model_map.recipes[parameter.name])
    ]
    if again:
        yield (
            f"{len(again)} weights of the source were quantized already, {again[0]} among them: "
            "what they lost then is not found again"
        )


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


def _quantize(
    model: Any,
    default: Quantization,
    table: ConvertTable,
    forms: Mapping[str, Quantization],
) -> _Choice:
    """Quantize the placeholders and tell what was chosen."""
    own: Callable[[str, nn.Module], bool | dict[str, Any]] | None = getattr(
        model, "quant_predicate", None
    )
    choice = _Choice()
    unmatched = {rule.pattern for rule in table.layers}
    paths: list[str] = []

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        paths.append(path)
        columns = module.weight.shape[-1]
        if not mx.issubdtype(module.weight.dtype, mx.floating):
            raise SourceError(
                f"{path}.weight",
                f"holds {module.weight.dtype}, which can't be quantized",
                "keep this layer by a rule of [[convert.layers]]",
            )
        unmatched.difference_update(
            rule.pattern for rule in table.layers if fnmatchcase(path, rule.pattern)
        )
        rule = table.rule_for(path)
        if rule is not None and rule.keep:
            choice.kept[path] = "kept by a rule of [[convert.layers]]"
            return False
        wanted = default
        if rule is not None:
            wanted = Quantization(rule.bits, rule.group_size, rule.mode)
            if columns % wanted.group_size:
                groups = f"groups of {wanted.group_size}"
                raise UsageError(
                    "convert.layers",
                    f"{path} has {columns} columns, which {groups} don't divide",
                    "give this layer a smaller group_size, or keep it",
                )
        elif path in forms:
            wanted = forms[path]
        elif not columns % default.group_size:
            decided = own(path, module) if own is not None else True
            if not decided:
                choice.kept[path] = "kept by the architecture"
                return False
            wanted = _own_choice(decided) if isinstance(decided, dict) else default
        if columns % wanted.group_size:
            choice.kept[path] = f"{columns} columns aren't a multiple of {wanted.group_size}"
            choice.undivided.append(path)
            return False
        choice.packed[path] = wanted
        return wanted.as_config()

    _pack(model, choose)
    if unmatched:
        raise UsageError(
            "convert.layers",
            f"no layer that can be quantized matches {', '.join(map(repr, sorted(unmatched)))}",
            f"they are called such as {shown(paths, 2)}; without the rule --dry-run lists them",
        )
    if not choice.packed:
        raise UsageError(
            "--quantize",
            f"no layer of {model.model_type} can be quantized in groups of {default.group_size}",
            "use a smaller --group-size",
        )
    return choice


def _keep(model_map: ModelMap) -> tuple[_Choice, Quantization | None]:
    """Pack the placeholders as the source has the weights packed, if it has any."""
    forms = model_map.packed
    for name, recipe in model_map.recipes.items():
        module = name.rpartition(".")[0]
        packed = any(isinstance(node, Dequantize) for node in walk(recipe))
        if packed and (module not in forms or not name.endswith(".weight")):
            raise ArchitectureError(
                name,
                "is packed in a layout that can't be kept as it is",
                "give --quantize or --dequantize",
            )
    found: dict[str, Quantization] = {}

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if path not in forms or not hasattr(module, "to_quantized"):
            return False
        found[path] = forms[path]
        return forms[path].as_config()

    _pack(model_map.model, choose)
    odd = [
        path
        for path in forms.keys() - found.keys()
        if any(isinstance(node, Dequantize) for node in walk(model_map.recipes[f"{path}.weight"]))
    ]
    if odd:
        what = "is packed, and mlx-lm has no packed form of it"
        raise ArchitectureError(min(odd), what, "give --dequantize")
    if not found:
        return _Choice(), None
    (default, _), *_ = Counter(found.values()).most_common(1)
    return _Choice(packed=found), default


def _pack(model: Any, choose: Callable[[str, nn.Module], bool | dict[str, Any]]) -> None:
    """MLX's own quantization of the placeholders, for their names and shapes."""
    try:
        nn.quantize(model, class_predicate=choose)
    except (TypeError, ValueError) as error:  # a module that knows no modes, or not this form
        raise ArchitectureError(
            str(model.model_type), f"can't be quantized so ({error})", "choose another --mode"
        ) from error


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
        operation = _packed_from(recipe, quantization)
        names += [each for each in (f"{module}.scales", f"{module}.biases") if each in made]
        outputs = tuple(_output(each, tuple(made[each].shape), made[each].dtype) for each in names)
    else:
        outputs = (_output(name, recipe.shape, recipe.dtype),)
        if {ref.dtype for ref in recipe.sources()} == {_safetensors_name(recipe.dtype)}:
            operation = "copy"
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


def _packed_from(recipe: Recipe, wanted: Quantization) -> Operation:
    """What is done for a packed weight: codes that are so already are kept as they are."""
    found = kept(recipe)
    if found is None or found.form != wanted:
        return "quantize"
    return "copy" if found.exact else "cast"


def _output(name: str, shape: tuple[int, ...], dtype: mx.Dtype) -> OutputTensor:
    return OutputTensor(name, _safetensors_name(dtype), shape, math.prod(shape) * dtype.size)


def _safetensors_name(dtype: mx.Dtype) -> str:
    return _SAFETENSORS_NAMES[str(dtype).rpartition(".")[2]]
