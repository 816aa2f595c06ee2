"""From a model folder to a model that runs.

Owns the order of the checks: headers and config before any weight is read, names and
shapes before any is used. No code from the folder runs. Knows nothing of prompts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from checkpoint.architecture.config_values import untagged
from checkpoint.architecture.mlx_lm_models import load_classes
from checkpoint.folder import CONFIG, is_mlx, is_staging
from checkpoint.model_config import read_model_config
from checkpoint.shards import read_catalog
from checkpoint.tensors import Catalog
from configs.errors import ArchitectureError, ModelConfigError, SourceError
from inference.device import Placement, cast
from inference.weights import fill, quantize_layers, read_weights

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose files have been checked, before any weight is read."""

    path: Path
    config: Mapping[str, Any]
    catalog: Catalog

    @property
    def context(self) -> int | None:
        """Most tokens that the model was made for; None if it does not say."""
        return _integer(self.config, *_CONTEXT_KEYS)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding, by the config.

        Raises:
            ModelConfigError: It does not say.
        """
        found = _integer(self.config, "vocab_size", "padded_vocab_size")
        if found is None:
            raise ModelConfigError(self.path / CONFIG, "has no vocab_size", "download it again")
        return found

    @property
    def attention_heads(self) -> int | None:
        """Query heads of a layer."""
        return _integer(self.config, "num_attention_heads", "n_head", "num_heads", "n_heads")


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device.

    Attributes:
        model: Token ids [1, n] and a cache to logits [1, n, vocabulary].
        folder: Where it comes from.
        placement: Where it runs.
        dtype: The float type that it computes in.
        seconds: What loading took.
    """

    model: nn.Module
    folder: ModelFolder
    placement: Placement
    dtype: str
    seconds: float

    @property
    def score_heads(self) -> int | None:
        """Heads whose attention scores are all in memory at once; None where none are."""
        return None if self.placement.fused_attention else self.folder.attention_heads


def open_folder(path: Path) -> ModelFolder:
    """Check a folder's config and headers.

    Raises:
        SourceError: It is not a whole MLX model folder.
    """
    if not path.is_dir():
        raise SourceError(path, "is not a folder", "give a model folder or a hub id")
    if is_staging(path):
        raise SourceError(path, "is a conversion that never finished", "run convert again")
    config = read_model_config(path)
    catalog = read_catalog(path)
    if not is_mlx(config, catalog.metadata):
        return _plain_folder(path)
    where = path / CONFIG
    if config.get("model_file") is not None:
        raise ArchitectureError(
            where, "needs custom code (model_file), which is never run", "use another model"
        )
    if config.get("quantize_activations"):
        raise ArchitectureError(where, "quantize_activations is not supported", "remove it")
    return ModelFolder(path, config, catalog)


def _plain_folder(path: Path) -> ModelFolder:
    """A Hugging Face folder as it is: its names and config need `convert`'s mapping."""
    raise SourceError(
        path, "is not an MLX folder", f"run convert --hf-path {path} first, and use what it makes"
    )


def load(folder: ModelFolder, placement: Placement) -> LoadedModel:
    """Read the weights and bring them to the device.

    Raises:
        SourceError: Config, tensors and architecture do not fit each other.
        DiskError: Something can't be read.
    """
    began = time.perf_counter()
    model = _build(folder)
    weights = read_weights(folder.catalog)
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    quantize_layers(model, folder.config, weights, folder.path / CONFIG)
    fill(model, weights, folder.path)
    weights.clear()
    model.eval()
    dtype = cast(model, placement)
    return LoadedModel(model, folder, placement, dtype, time.perf_counter() - began)


def _build(folder: ModelFolder) -> nn.Module:
    """The architecture with its parameters not yet computed."""
    config = untagged(folder.config)
    architectures = config.get("architectures") or ()
    classes = load_classes(str(config["model_type"]), tuple(map(str, architectures)))
    try:
        model: nn.Module = classes.model(classes.args.from_dict(config))
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise ModelConfigError(
            folder.path / CONFIG,
            f"does not describe a model of architecture {classes.name} ({error})",
        ) from error
    return model


def _integer(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of the keys that is a positive integer, at the top or in text_config."""
    text_config = config.get("text_config")
    for table in (config, text_config if isinstance(text_config, dict) else {}):
        for key in keys:
            value = table.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
