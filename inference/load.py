"""From a model folder to a model that runs.

Owns the order of the checks: headers and config before any weight is read, names and
shapes before any is used. No code from the folder runs. Knows nothing of prompts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.nn as nn

from checkpoint.adapters.read import read_adapter
from checkpoint.architecture.adapted import Updates, taken_apart, updates_of_model
from checkpoint.architecture.config_values import untagged
from checkpoint.architecture.mlx_lm_models import load_classes
from checkpoint.folder import CONFIG, is_mlx, is_staging
from checkpoint.model_config import read_model_config
from checkpoint.shards import read_catalog
from checkpoint.tensors import Catalog
from configs.errors import ArchitectureError, ModelConfigError, SourceError, UsageError
from inference.device import Placement, cast, parameters
from inference.low_rank import add_updates
from inference.plain import fill_by_recipes, pack_as_kept, pack_placeholders
from inference.weights import fill, quantize_layers, read_weights

if TYPE_CHECKING:
    from checkpoint.adapters.adapter import Adapter
    from checkpoint.architecture.mapping import ModelMap
    from inference.drafts import DraftModel

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)
_POSITIONS = ("wpe.weight",)  # as GPT-2 and those after it name the table of them


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose files have been checked, before any weight is read.

    Attributes:
        path: The folder.
        config: Its config.json; of a folder that is not MLX's, with what it means made explicit.
        catalog: Its tensors.
        mapped: How its tensors become the model's parameters, where they are not those already.
        adapter: What is added to its weights, if anything.
        updates: What of that is computed beside them; the rest is a part of `mapped`.
    """

    path: Path
    config: Mapping[str, Any]
    catalog: Catalog
    mapped: ModelMap | None = None
    adapter: Adapter | None = None
    updates: Updates = field(default_factory=dict)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in memory, before any cast."""
        added = sum(update.nbytes for update in self.updates.values())
        if self.mapped is None:
            return self.catalog.total_bytes + added
        return sum(value.nbytes for value in parameters(self.mapped.model).values()) + added

    @property
    def context(self) -> int | None:
        """Most tokens that the model was made for; None if it does not say."""
        told, positions = _integer(self.config, *_CONTEXT_KEYS), self.positions
        return told if positions is None else min(told or positions, positions)

    @property
    def positions(self) -> int | None:
        """Positions that the model has learned one by one, and can't read beyond; None if none."""
        found = (ref.shape for name, ref in self.catalog.items() if name.endswith(_POSITIONS))
        return next((shape[0] for shape in found if shape), None)

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
        kept_cache: Layers whose KV cache is not quantized though that was asked for, and what
            they keep.
        draft: A smaller model that guesses its tokens, if one is asked for.
    """

    model: nn.Module
    folder: ModelFolder
    placement: Placement
    dtype: str
    seconds: float
    kept_cache: Mapping[int, str] = field(default_factory=dict)
    draft: DraftModel | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are in memory."""
        return sum(value.nbytes for value in parameters(self.model).values())

    @property
    def score_heads(self) -> int | None:
        """Heads whose attention scores are all in memory at once; None where none are."""
        return None if self.placement.fused_attention else self.folder.attention_heads


def open_folder(
    path: Path, load_bits: int | None = None, adapter: Path | None = None
) -> ModelFolder:
    """Check a folder's config and headers.

    Args:
        path: A folder for MLX, or a Hugging Face folder as it is.
        load_bits: Quantize the weights to so many bits when they are read.
        adapter: The folder of what is added to them.

    Raises:
        AdapterError: The adapter does not fit the model.
        SourceError: It is not a whole model folder, or not one that can be run.
        UsageError: Its weights can't be quantized, or are already.
    """
    if not path.is_dir():
        raise SourceError(path, "is not a folder", "give a model folder or a hub id")
    if is_staging(path):
        raise SourceError(path, "is a conversion that never finished", "run convert again")
    config = read_model_config(path)
    catalog = read_catalog(path)
    where = path / CONFIG
    if config.get("model_file") is not None:
        raise ArchitectureError(
            where, "needs custom code (model_file), which is never run", "use another model"
        )
    if config.get("quantize_activations"):
        raise ArchitectureError(where, "quantize_activations is not supported", "remove it")
    added = None if adapter is None else read_adapter(adapter)
    if not is_mlx(config, catalog.metadata):
        return _mapped(path, config, catalog, load_bits, added)
    if load_bits is None:
        folder = ModelFolder(path, config, catalog, adapter=added)
        if added is None:
            return folder
        return replace(folder, updates=updates_of_model(added, config, _build(folder)))
    if config.get("quantization") is not None:
        raise UsageError("--load-bits", "the weights are quantized already", "leave it out")
    return _mapped(path, config, catalog, load_bits, added)


def _mapped(
    path: Path,
    config: dict[str, Any],
    catalog: Catalog,
    load_bits: int | None,
    adapter: Adapter | None,
) -> ModelFolder:
    """A folder whose names and config are carried over as `convert` does."""
    from checkpoint.architecture.mapping import map_model

    try:
        mapped = map_model(config, catalog, adapter=adapter)
    except SourceError as error:
        if error.where != CONFIG:
            raise
        raise type(error)(path / CONFIG, error.what, error.mend) from error
    updates: Updates = {}
    if adapter is not None:
        recipes, updates = taken_apart(mapped.recipes, mapped.model)
        mapped = replace(mapped, recipes=recipes)
    if load_bits is not None:
        pack_placeholders(mapped.model, load_bits)
    else:
        pack_as_kept(mapped)
    return ModelFolder(path, mapped.config, catalog, mapped, adapter, updates)


def load(folder: ModelFolder, placement: Placement) -> LoadedModel:
    """Read the weights and bring them to the device.

    Raises:
        SourceError: Config, tensors and architecture do not fit each other.
        DiskError: Something can't be read.
    """
    began = time.perf_counter()
    model = _read_mlx(folder) if folder.mapped is None else fill_by_recipes(folder.mapped)
    model.eval()
    dtype = cast(model, placement)
    if folder.updates:
        add_updates(model, folder.updates, dtype)
    return LoadedModel(model, folder, placement, dtype, time.perf_counter() - began)


def _read_mlx(folder: ModelFolder) -> nn.Module:
    """The model of a folder that was written for MLX."""
    model = _build(folder)
    weights = read_weights(folder.catalog)
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    quantize_layers(model, folder.config, weights, folder.path / CONFIG)
    fill(model, weights, folder.path)
    return model


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
