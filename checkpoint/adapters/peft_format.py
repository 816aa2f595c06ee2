"""Adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors.

Owns that format: which values of the config are honoured, which change nothing once a model is
trained, and which can't be honoured and are refused. A key that is not known here is refused
unless its value is empty. Knows nothing of models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint.adapters.adapter import CONFIG, Adapter, Pair
from checkpoint.adapters.fields import (
    check_magnitude,
    factor,
    finite_scale,
    flag,
    real_number,
    refused,
    whole_number,
)
from checkpoint.header import read_header
from checkpoint.json_file import json_value, quoted
from checkpoint.tensors import TensorRef
from configs.errors import AdapterError

FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."

_HONOURED = frozenset(
    [
        *("alpha_pattern", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "peft_type"),
        *("r", "rank_pattern", "use_dora", "use_rslora", "bias"),
    ]
)
# What says how the adapter was trained, or which modules it has, which the tensors say too.
_OF_TRAINING = frozenset(
    [
        *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying"),
        *("eva_config", "exclude_modules", "inference_mode", "layers_pattern"),
        *("layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config"),
        *("megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision"),
        *("runtime_config", "target_modules", "task_type"),
    ]
)
# Ways to begin that leave the base model's weights as they are.
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")
# A pattern that is a name, or the end of one; PEFT allows any regular expression.
_PLAIN_PATTERN = re.compile(r"\^?(?:[A-Za-z0-9_]|\\?\.)+\$?", re.ASCII)
_LEAVES = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "m",
    "lora_magnitude_vector.weight": "m",
}
_WHOLE = "is a whole weight beside the adapter, which can't be honoured"


def read_peft(folder: Path, config: Mapping[str, Any]) -> Adapter:
    """An adapter of PEFT's.

    Args:
        folder: Where it lies.
        config: Its config as read.

    Raises:
        AdapterError: Config and tensors don't fit each other, or ask for what can't be done.
        SourceError: The file of tensors is damaged.
        DiskError: It can't be read.
    """
    where = folder / CONFIG
    _check_config(config, where)
    ranks = _patterns(config, "rank_pattern", where)
    alphas = _patterns(config, "alpha_pattern", where)
    rank = whole_number(config, "r", where, 1)
    alpha = real_number(config, "lora_alpha", where)
    stabilised = flag(config, "use_rslora", where)
    pairs = []
    for module, found in sorted(_grouped(read_header(folder / FILE).tensors).items()):
        own_rank = whole_number({"r": _of(ranks, module, rank)}, "r", where, 1)
        own_alpha = real_number({"lora_alpha": _of(alphas, module, alpha)}, "lora_alpha", where)
        divisor = math.sqrt(own_rank) if stabilised else own_rank
        scale = finite_scale(own_alpha / divisor, where)
        pairs.append(_pair(module, found, own_rank, scale, where))
    if not pairs:
        raise AdapterError(folder / FILE, "holds no tensors")
    dora, transposed = flag(config, "use_dora", where), flag(config, "fan_in_fan_out", where)
    for pair in pairs:
        check_magnitude(pair, dora, where)
    if dora and (transposed or any(pair.embedding for pair in pairs)):
        what = "asks for DoRA of " + ("weights held as [in, out]" if transposed else "embeddings")
        raise AdapterError(where, what, "merge it with PEFT, and convert that")
    base = config.get("base_model_name_or_path")
    return Adapter(
        folder,
        "peft",
        folder / FILE,
        tuple(pairs),
        transposed=transposed,
        base=base if isinstance(base, str) else None,
    )


def _check_config(config: Mapping[str, Any], where: Path) -> None:
    """Refuse what would be passed over otherwise."""
    mend = "merge it with PEFT, and convert that"
    if config.get("peft_type") != "LORA":
        what = f"peft_type is {json_value(config.get('peft_type'))}: only LORA, with DoRA, is known"
        raise AdapterError(where, what, mend)
    if config.get("bias", "none") != "none":
        raise AdapterError(where, f"bias is {json_value(config['bias'])}, and not none", mend)
    if config.get("init_lora_weights") not in _BEGINNINGS:
        begun = json_value(config["init_lora_weights"])
        what = f"init_lora_weights is {begun}, which may change the base model's weights too"
        raise AdapterError(where, what, mend)
    for key, value in config.items():
        if key not in _HONOURED | _OF_TRAINING and value not in (None, False, "", [], {}):
            raise AdapterError(where, f"{quoted(key)} can't be honoured", mend)


def _patterns(config: Mapping[str, Any], key: str, where: Path) -> dict[str, object]:
    given = config.get(key) or {}
    if not isinstance(given, dict):
        raise AdapterError(where, f"{key} is no object")
    for pattern in given:
        if not _PLAIN_PATTERN.fullmatch(pattern):
            what = f"{key} has {quoted(pattern)}: only names, or ends of names, are honoured"
            raise AdapterError(where, what, "merge it with PEFT, and convert that")
    return given


def _of(patterns: Mapping[str, object], module: str, default: object) -> object:
    """What the first pattern that fits says, as PEFT finds it."""
    for pattern, value in patterns.items():
        name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        ends = module.endswith(f".{name}") and not pattern.startswith("^")
        if module == name or ends:
            return value
    return default


def _grouped(tensors: Mapping[str, TensorRef]) -> dict[str, dict[str, TensorRef]]:
    """The tensors of each module: `a`, `b`, `m`, and under `embedding` one that tells of it."""
    found: dict[str, dict[str, TensorRef]] = {}
    for name, ref in tensors.items():
        if not name.startswith(_PREFIX):
            raise refused(ref, f"does not begin with {_PREFIX}")
        inner = name.removeprefix(_PREFIX)
        suffix = next((leaf for leaf in _LEAVES if inner.endswith(f".{leaf}")), None)
        if suffix is None:
            raise refused(ref, _WHOLE if ".lora_" not in name else "is of an unknown kind")
        parts = found.setdefault(inner.removesuffix(f".{suffix}"), {})
        if _LEAVES[suffix] in parts:
            raise refused(ref, "is there twice for one module")
        parts[_LEAVES[suffix]] = ref
        if "embedding" in suffix:
            parts["embedding"] = ref
    return found


def _pair(
    module: str, found: Mapping[str, TensorRef], rank: int, scale: float, where: Path
) -> Pair:
    for leaf in ("a", "b"):
        if leaf not in found:
            raise refused(next(iter(found.values())), f"has no {leaf.upper()} beside it")
    a, b = factor(found["a"], (2,)), factor(found["b"], (2,))
    for ref, axis in ((a, 0), (b, 1)):
        if ref.shape[axis] != rank:
            what = f"has shape {list(ref.shape)}, and {where.name} says rank {rank}"
            raise refused(ref, what)
    magnitude = factor(found["m"], (1,)) if "m" in found else None
    return Pair(module, a, b, rank, scale, magnitude, "embedding" in found)
