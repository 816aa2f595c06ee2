"""Tiny checkpoints as quantizers save them, each with its twin: the plain model of its values.

The arithmetic here is numpy's, from the formats' specifications, and shares nothing with
the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.factories_models import tiny_model, write_tokenizer

Array = NDArray[Any]
Tensors = dict[str, torch.Tensor]
Quantize = Callable[[str, Array], tuple[Tensors, Array]]
"""A module's path and weight to its tensors, by full name, and the weight they stand for."""


def quantized_pair(
    folder: Path,
    kind: str,
    settings: Mapping[str, Any] | None,
    quantize: Quantize,
    *,
    chosen: Callable[[str], bool] = lambda name: name.endswith("_proj.weight"),
    **changes: Any,
) -> tuple[Path, Path]:
    """A tiny checkpoint whose chosen weights are quantized, and its twin of plain float32.

    Args:
        folder: Where to make the two.
        kind: As `tiny_model` takes it.
        settings: `quantization_config`.
        quantize: Makes the tensors of one weight.
        chosen: Tells by its name whether a weight is quantized.
        changes: Config values other than `tiny_model`'s.
    """
    plain = tiny_model(folder / f"{kind}-plain", kind, **changes)
    weights: Tensors = {}
    for shard in sorted(plain.glob("*.safetensors")):
        weights |= load_file(shard)
        shard.unlink()
    (plain / "model.safetensors.index.json").unlink()
    packed: Tensors = {}
    twin: Tensors = {}
    for name, tensor in weights.items():
        twin[name] = tensor.float()
        if not chosen(name):
            packed[name] = tensor
            continue
        parts, values = quantize(name.removesuffix(".weight"), tensor.float().numpy())
        packed |= {each: part.contiguous() for each, part in parts.items()}
        twin[name] = torch.tensor(np.ascontiguousarray(values, np.float32))
    config = json.loads((plain / "config.json").read_text())
    save_file(twin, plain / "model.safetensors", {"format": "pt"})
    source = folder / kind
    source.mkdir()
    write_tokenizer(source)
    save_file(packed, source / "model.safetensors", {"format": "pt"})
    if settings is not None:
        config["quantization_config"] = dict(settings)
    (source / "config.json").write_text(json.dumps(config))
    return source, plain


def grid(
    weight: Array, bits: int, group_size: int, *, symmetric: bool = False
) -> tuple[Array, Array, Array]:
    """Codes [rows, columns], float16 steps and zero points [rows, groups] of a weight."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // group_size, group_size)
    top = 2**bits - 1
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    steps = ((high - low) / top).astype(np.float16)
    zeros = np.clip(np.rint(-low / steps.astype(np.float32)), 1, top)
    if symmetric:
        zeros = np.full_like(zeros, 2 ** (bits - 1))
    codes = np.rint(groups / steps[..., None].astype(np.float32)) + zeros[..., None]
    codes = np.clip(codes, 0, top).reshape(rows, columns)
    return codes.astype(np.int64), steps, zeros.astype(np.int64)


def values_of(codes: Array, steps: Array, zeros: Array, groups: Array) -> Array:
    """`step * (code - zero)`, each column with the step of its group."""
    return steps.astype(np.float32)[:, groups] * (codes - zeros[:, groups]).astype(np.float32)


def words(codes: Array, bits: int) -> torch.Tensor:
    """Consecutive codes along the last axis in words of 32 bits, the first in the lowest."""
    each = 32 // bits
    parted = codes.astype(np.uint64).reshape(*codes.shape[:-1], -1, each)
    total = (parted << (np.arange(each, dtype=np.uint64) * np.uint64(bits))).sum(-1)
    return torch.tensor(total.astype(np.uint32).view(np.int32))
