"""Adapters as `mlx_lm.lora` writes them: adapter_config.json and adapters.safetensors.

Owns that format. Of the config only what mlx-lm reads when it loads an adapter has a meaning;
the rest tells how it was trained. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint.adapters.adapter import CONFIG, Adapter, Pair
from checkpoint.adapters.fields import (
    check_magnitude,
    factor,
    finite_scale,
    real_number,
    refused,
    whole_number,
)
from checkpoint.header import read_header
from checkpoint.json_file import json_value
from checkpoint.tensors import TensorRef
from configs.errors import AdapterError

FILE = "adapters.safetensors"
_PARAMETERS = ("rank", "scale", "dropout", "keys")
_LEAVES = ("lora_a", "lora_b", "m")


def read_mlx(folder: Path, config: Mapping[str, Any]) -> Adapter:
    """An adapter of mlx-lm's.

    Args:
        folder: Where it lies.
        config: Its config as read.

    Raises:
        AdapterError: Config and tensors don't fit each other, or ask for what can't be done.
        SourceError: The file of tensors is damaged.
        DiskError: It can't be read.
    """
    where = folder / CONFIG
    kind = config.get("fine_tune_type", "lora")
    if kind == "full":
        what = 'is of fine_tune_type "full": whole weights, and no adapter'
        raise AdapterError(where, what, "fuse it with mlx_lm.fuse")
    if kind not in ("lora", "dora"):
        raise AdapterError(where, f"fine_tune_type is {json_value(kind)}, which is unknown")
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise AdapterError(where, "has no lora_parameters", "is the adapter's config its own?")
    for key in parameters:
        if key not in _PARAMETERS:
            mend = "mlx-lm's own name is scale" if key == "alpha" else ""
            raise AdapterError(where, f"lora_parameters has an unknown key {json_value(key)}", mend)
    rank = whole_number(parameters, "rank", where, 1)
    scale = finite_scale(real_number(parameters, "scale", where), where)
    tensors = read_header(folder / FILE).tensors
    pairs = tuple(
        _pair(module, found, rank, scale, where) for module, found in sorted(_grouped(tensors))
    )
    if not pairs:
        raise AdapterError(folder / FILE, "holds no tensors")
    for pair in pairs:
        check_magnitude(pair, kind == "dora", where)
    base = config.get("model")
    return Adapter(
        folder,
        "mlx",
        folder / FILE,
        pairs,
        layers=whole_number(config, "num_layers", where, -1),
        keys=_keys(parameters.get("keys"), where),
        base=base if isinstance(base, str) else None,
    )


def _keys(given: object, where: Path) -> frozenset[str] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(key, str) for key in given):
        raise AdapterError(where, "keys of lora_parameters is no list of names")
    return frozenset(given)


def _grouped(tensors: Mapping[str, TensorRef]) -> list[tuple[str, dict[str, TensorRef]]]:
    found: dict[str, dict[str, TensorRef]] = {}
    for name, ref in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in _LEAVES or not module:
            raise refused(ref, "is none of an adapter's tensors, which end in lora_a, lora_b or m")
        found.setdefault(module, {})[leaf] = ref
    return list(found.items())


def _pair(
    module: str, found: Mapping[str, TensorRef], rank: int, scale: float, where: Path
) -> Pair:
    for leaf in ("lora_a", "lora_b"):
        if leaf not in found:
            raise refused(next(iter(found.values())), f"has no {leaf} beside it")
    a, b = (factor(found[leaf], (2, 3)) for leaf in ("lora_a", "lora_b"))
    stacked = len(a.shape) == 3
    ranks = (a.shape[1], b.shape[-1]) if stacked else (a.shape[1], b.shape[0])
    if len(a.shape) != len(b.shape) or (stacked and a.shape[0] != b.shape[0]):
        raise refused(b, f"has shape {list(b.shape)}, which does not go with {list(a.shape)}")
    if ranks != (rank, rank):
        ref = a if ranks[0] != rank else b
        raise refused(ref, f"has shape {list(ref.shape)}, and {where.name} says rank {rank}")
    magnitude = factor(found["m"], (1,)) if "m" in found else None
    if magnitude is not None and stacked:
        raise refused(magnitude, "is DoRA's, of experts, which nobody defines")
    return Pair(module, a, b, rank, scale, magnitude)
