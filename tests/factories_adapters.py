"""Tiny adapters in the formats of mlx-lm and of PEFT, random but whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

RANK, ALPHA = 4, 6.0
SCALE = ALPHA / RANK


def peft_config(**changes: Any) -> dict[str, Any]:
    """adapter_config.json with the keys that PEFT writes."""
    config: dict[str, Any] = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "org/base",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": ALPHA,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": RANK,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    }
    return {key: value for key, value in (config | changes).items() if value is not ...}


def write_peft(folder: Path, tensors: Mapping[str, Any], **changes: Any) -> Path:
    """An adapter of PEFT's.

    Args:
        folder: Where to write it.
        tensors: By names without PEFT's prefix.
        changes: Config values other than the usual ones; `...` leaves one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(peft_config(**changes)))
    arrays = {f"base_model.model.{name}": mx.array(value) for name, value in tensors.items()}
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), arrays, {"format": "pt"})
    return folder


def write_mlx_adapter(
    folder: Path,
    tensors: Mapping[str, Any],
    *,
    kind: str = "lora",
    layers: int = -1,
    **changes: Any,
) -> Path:
    """An adapter of mlx-lm's.

    Args:
        folder: Where to write it.
        tensors: By their whole names.
        kind: Its `fine_tune_type`.
        layers: Its `num_layers`.
        changes: Of `lora_parameters`; `...` leaves one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0} | changes
    config = {
        "model": "org/base",
        "fine_tune_type": kind,
        "num_layers": layers,
        "lora_parameters": {key: value for key, value in parameters.items() if value is not ...},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    arrays = {name: mx.array(value) for name, value in tensors.items()}
    mx.save_safetensors(str(folder / "adapters.safetensors"), arrays)
    return folder


def factors(shape: tuple[int, int], seed: int, rank: int = RANK) -> tuple[np.ndarray, np.ndarray]:
    """A [rank, columns] and B [rows, rank] of a weight of that shape, as PEFT has them."""
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((rank, shape[1])), random.standard_normal((shape[0], rank))
    return (a * 0.2).astype(np.float32), (b * 0.2).astype(np.float32)


def mlx_pairs(
    shapes: Mapping[str, tuple[int, ...]], *, magnitudes: bool = False, rank: int = RANK
) -> dict[str, np.ndarray]:
    """mlx-lm's tensors for modules of these weights; those of three axes are experts'."""
    made = {}
    for seed, (module, shape) in enumerate(shapes.items()):
        random = np.random.default_rng(seed)
        rows, columns = shape[-2:]
        a, b = (columns, rank), (rank, rows)
        if len(shape) == 3:
            a, b = (shape[0], rank, columns), (shape[0], rows, rank)
        made[f"{module}.lora_a"] = random.standard_normal(a).astype(np.float32) * 0.2
        made[f"{module}.lora_b"] = random.standard_normal(b).astype(np.float32) * 0.2
        if magnitudes:
            made[f"{module}.m"] = random.uniform(0.5, 1.5, rows).astype(np.float32)
    return made
