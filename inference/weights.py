"""A folder's tensors into a model, strictly.

Owns reading shards onto the device, which layers are quantized and how, and the rule
that every parameter is filled from a tensor of its shape and every tensor is used.
Knows nothing of folders that are not MLX's, of tokenizers or of generation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from checkpoint.folder import shown
from checkpoint.tensors import Catalog
from configs.errors import ArchitectureError, ModelConfigError, ShardIndexError
from inference.device import parameters

_EVALUATED_BYTES = 256 * 2**20
_OPTIONS = ("group_size", "bits", "mode")


def read_weights(catalog: Catalog) -> dict[str, mx.array]:
    """Every tensor of a checked catalog, read into memory.

    The reads run on the CPU and in pieces: a GPU's command buffer that waits for a file
    is ended by Metal when the disk is slow.
    """
    weights: dict[str, mx.array] = {}
    for shard in catalog.shards:
        loaded = mx.load(str(shard), stream=mx.cpu)
        if not isinstance(loaded, dict):
            raise ShardIndexError(shard, "is not a safetensors file")
        weights.update(loaded)
    piece: list[mx.array] = []
    size = 0
    for array in weights.values():
        piece.append(array)
        size += array.nbytes
        if size >= _EVALUATED_BYTES:
            mx.eval(piece)
            piece, size = [], 0
    mx.eval(piece)
    return weights


def quantize_layers(
    model: nn.Module, config: Mapping[str, Any], weights: Mapping[str, mx.array], where: Path
) -> None:
    """Replace the layers whose tensors are packed by quantized ones of the same form.

    `config["quantization"]` gives the form, for all layers and for some by their path;
    `false` for a path leaves that layer alone.

    Raises:
        ModelConfigError: It is not of that form, or a layer can't be packed so.
    """
    given = config.get("quantization")
    if given is None:
        return
    if not isinstance(given, dict):
        raise ModelConfigError(where, "quantization is not an object")
    default = _form(given, "quantization", where)

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        rule = given.get(path)
        if rule is False or not hasattr(module, "to_quantized"):
            return False
        if rule is None and f"{path}.scales" not in weights:
            return False
        # What a rule leaves out is its own mode's default, not the folder's.
        form = default if rule in (None, True) else _form(rule, path, where)
        if f"{path}.global_scale" in weights and _takes_global_scale(module):
            form = {**form, "global_scale": True}
        return form

    try:
        nn.quantize(model, class_predicate=chosen)
    except (ValueError, TypeError) as error:
        raise ModelConfigError(where, f"quantization does not fit the model ({error})") from error


def _form(rule: object, name: str, where: Path) -> dict[str, Any]:
    if not isinstance(rule, dict):
        raise ModelConfigError(where, f"quantization of {name} is neither an object nor false")
    form = {key: rule[key] for key in _OPTIONS if rule.get(key) is not None}
    if not all(isinstance(form.get(key, 1), int) for key in ("group_size", "bits")):
        raise ModelConfigError(where, f"quantization of {name} is not given in numbers")
    return form


def _takes_global_scale(module: nn.Module) -> bool:
    to_quantized: Callable[..., Any] = module.to_quantized
    return "global_scale" in inspect.signature(to_quantized).parameters


def fill(model: nn.Module, weights: dict[str, mx.array], folder: Path) -> None:
    """Put the tensors into the model, each in its place.

    Raises:
        ArchitectureError: A parameter without a tensor, or a tensor without a place, or
            one of another shape than the config gives the model.
    """
    wanted = parameters(model)
    for name in sorted(wanted.keys() & weights.keys()):
        expected, found = wanted[name].shape, weights[name].shape
        if expected != found:
            raise ArchitectureError(
                folder,
                f"tensor {name} has shape {list(found)}, and config.json makes it {list(expected)}",
                "the config belongs to another model, or was edited",
            )
    missing = wanted.keys() - weights.keys()
    if missing:
        raise ArchitectureError(folder, _count(missing, "of the architecture are missing"))
    extra = weights.keys() - wanted.keys()
    if extra:
        raise ArchitectureError(folder, _count(extra, "are not of the architecture"))
    model.load_weights(list(weights.items()), strict=True)


def _count(names: Iterable[str], problem: str) -> str:
    listed = sorted(names)
    return f"{len(listed)} tensors {problem} ({shown(listed)})"
