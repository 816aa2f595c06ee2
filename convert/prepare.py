"""What stands before a conversion: the source read, mapped and planned, nothing written.

Owns the checks of the source as a whole; each file has its own module.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.architecture.mapping import ModelMap, map_model
from checkpoint.dtypes import DTYPES as SAFETENSORS_DTYPES
from checkpoint.folder import CONFIG, GENERATION_CONFIG, file_in, is_mlx, is_staging
from checkpoint.json_file import read_json_object
from checkpoint.model_config import read_model_config
from checkpoint.shards import read_catalog
from checkpoint.source import SourceFolder
from checkpoint.tensors import Catalog
from checkpoint.tokenizer_files import check_tokenizer
from configs.errors import ArchitectureError, ModelConfigError, SourceError
from configs.resolve import Layers, Resolved
from convert.model_files import FILE_LIMIT
from convert.plan import Plan
from convert.planner import make_plan

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Prepared:
    """A conversion that has been checked and planned, but has written nothing.

    Attributes:
        source: The source folder.
        model_map: The mapping onto the architecture.
        plan: The plan.
        config: config.json to be written.
        dtype: What floating parameters are cast to, if anything.
        chat_template: A template that replaces the source's own.
        started: When the work began, by `time.perf_counter`.
        warnings: What the user should know.
    """

    source: SourceFolder
    model_map: ModelMap
    plan: Plan
    config: dict[str, Any]
    dtype: str | None
    chat_template: bytes | None
    started: float
    warnings: tuple[str, ...]


def prepare(source: SourceFolder, options: Resolved) -> Prepared:
    """Read what the source says of itself and plan the conversion.

    Raises:
        SourceError: the source is damaged, incomplete or not one that can be converted.
        UsageError: the options don't fit it.
    """
    started = time.perf_counter()
    table, template = options.convert, options.tokenizer.chat_template
    chat_template = disk.read_whole(template, FILE_LIMIT) if template else None
    if is_staging(source.path):
        raise SourceError(source.path, "is a conversion that was never finished", "run it again")
    config = read_model_config(source.path)
    catalog = read_catalog(source.path)
    _refuse_quantized(config, catalog)
    if is_mlx(config, catalog.metadata):
        raise SourceError(source.path, "is an MLX folder already", "convert its source instead")
    _check_generation_config(source.path)
    dtype = table.dtype or source_dtype(config)
    try:
        model_map = map_model(config, catalog, dtype)
    except SourceError as error:
        if error.where != CONFIG:
            raise
        raise type(error)(source.path / CONFIG, error.what, error.mend) from error
    check_tokenizer(source.path, embedding_rows(model_map))
    plan, written_config = make_plan(model_map, table)
    if dtype is not None:
        written_config |= {"torch_dtype": dtype, "dtype": dtype}
    warnings = (*catalog.warnings, *plan.warnings)
    return Prepared(
        source, model_map, plan, written_config, dtype, chat_template, started, warnings
    )


def source_dtype(config: dict[str, Any]) -> str | None:
    """The dtype a config asks for, under its old or its new key; None if it asks for none.

    Raises:
        ModelConfigError: it is none that we carry.
    """
    text_config = config.get("text_config") or {}
    for value in (
        config.get("torch_dtype"),
        config.get("dtype"),
        text_config.get("torch_dtype"),
        text_config.get("dtype"),
    ):
        if value is None:
            continue
        if value not in DTYPES:
            raise ModelConfigError(
                CONFIG,
                f"dtype {value!r} is not {', '.join(DTYPES[:-1])} or {DTYPES[-1]}",
                "choose one with --dtype",
            )
        return str(value)
    return None


def _check_generation_config(folder: Path) -> None:
    """Refuse sampling values that `infer` would refuse, before they are copied."""
    path = file_in(folder, GENERATION_CONFIG)
    if path.is_file():
        recommended = read_json_object(path, ModelConfigError)
        Layers().with_generation_config(recommended, path).resolve()


def embedding_rows(model_map: ModelMap) -> int | None:
    """Rows of the input embeddings, when the architecture names them in the usual way."""
    for name, recipe in model_map.recipes.items():
        if name.rpartition(".")[0].rpartition(".")[2] in ("embed_tokens", "wte", "embedding"):
            return recipe.shape[0]
    return None


def _refuse_quantized(config: dict[str, Any], catalog: Catalog) -> None:
    text_config = config.get("text_config") or {}
    found = config.get("quantization_config") or text_config.get("quantization_config")
    scaled = next(
        (ref for ref in catalog.values() if SAFETENSORS_DTYPES[ref.dtype].needs_scales), None
    )
    if "quantization" in config or not (found or scaled):
        return
    method = found.get("quant_method") if isinstance(found, dict) else scaled and scaled.dtype
    raise ArchitectureError(
        "config.json",
        f"the weights are quantized already ({method}), in a format that can't be read",
        "convert the model's 16-bit checkpoint",
    )
