"""What stands before a conversion: the source read, mapped and planned, nothing written.

Owns the checks of the source as a whole; each file has its own module.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint import disk
from checkpoint.adapters.adapter import Adapter
from checkpoint.architecture.adapted import check_finite
from checkpoint.architecture.hf_layout import hugging_face_layout
from checkpoint.architecture.mapping import ModelMap, map_model
from checkpoint.folder import CONFIG, GENERATION_CONFIG, file_in, is_mlx, is_staging
from checkpoint.json_file import read_json_object
from checkpoint.nanochat.model_config import Overrides
from checkpoint.recognise import Choices, open_source
from checkpoint.source import SourceFolder
from checkpoint.tensors import Catalog
from configs.errors import ModelConfigError, SourceError, TemplateError, UsageError
from configs.quantization import ConvertTable
from configs.resolve import Layers, Resolved
from convert.audit_tokenizer import parse_template, template_problems
from convert.mixed.asked import Bar, mixture_of
from convert.model_card import card_warnings
from convert.model_files import FILE_LIMIT, read_readme
from convert.plan import Plan
from convert.planner import make_plan
from convert.source_forms import DEQUANTIZED, source_forms
from convert.tokenizer_options import with_eos_tokens

if TYPE_CHECKING:
    from convert.calibration.own import OwnText
    from convert.calibration.text import CalibrationText

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
        files: Files that are made, not copied from the source, by name.
        recognised: What the source is, where that is not plain to see; else empty.
        adapter: What is added to its weights.
        calibration: The text that quantization is calibrated on, or how it will be written.
    """

    source: SourceFolder
    model_map: ModelMap
    plan: Plan
    config: dict[str, Any]
    dtype: str | None
    chat_template: bytes | None
    started: float
    warnings: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    recognised: str = ""
    adapter: Adapter | None = None
    calibration: CalibrationText | OwnText | None = None


def prepare(
    source: SourceFolder,
    options: Resolved,
    catalog: Catalog | None = None,
    bring: Callable[[Iterable[Path]], None] = lambda files: None,
    adapter: Adapter | None = None,
    bar: Bar = lambda *, title: nullcontext(lambda *_: None),
) -> Prepared:
    """Read what the source says of itself and plan the conversion.

    Args:
        source: The source folder.
        options: The options in force.
        catalog: Its tensors, where its shards are not in the folder.
        bring: Called with shards that must be read for the plan, seldom any.
        adapter: What to add to the weights.
        bar: Shows the progress of what takes its time.

    Raises:
        SourceError: the source is damaged, incomplete or not one that can be converted.
        UsageError: the options don't fit it.
    """
    started = time.perf_counter()
    table, template = options.convert, options.tokenizer.chat_template
    chat_template = _read_template(template) if template else None
    if is_staging(source.path):
        raise SourceError(source.path, "is a conversion that was never finished", "run it again")
    opened = open_source(source.path, choices_of(options), catalog)
    config, catalog = opened.config, opened.catalog
    from_mlx = is_mlx(config, catalog.metadata)
    if table.dequantize and not (from_mlx or "quantization_config" in config):
        raise UsageError(
            options.origin("convert.dequantize"),
            f"{source.path} is not an MLX folder, and in Hugging Face's layout already",
            "leave it out",
        )
    _check_generation_config(source.path)
    if adapter is not None:
        check_finite(adapter)
    # What an MLX folder holds is what mlx-lm computes with, whatever its config says.
    dtype = table.dtype or (None if from_mlx else source_dtype(config))
    try:
        model_map = map_model(config, catalog, dtype, bring, adapter)
    except SourceError as error:
        if error.where != CONFIG:
            raise
        raise type(error)(source.path / CONFIG, error.what, error.mend) from error
    model_map = replace(model_map, notes=(*opened.notes, *model_map.notes))
    beyond = opened.check_tokenizer(embedding_rows(model_map))
    files = with_eos_tokens(opened.files, source.path, config, options)
    if table.dequantize:
        model_map = hugging_face_layout(model_map)
        dtype = dtype or most_common_dtype(model_map)
    mixture = mixture_of(options, source, choices_of(options), model_map, bar)
    plan, written_config = make_plan(model_map, table, mixture.forms if mixture else None)
    if mixture is not None:
        warnings = (*plan.warnings, *mixture.warnings)
        plan = replace(plan, mixture=mixture, warnings=warnings)
    if dtype is not None:
        written_config |= {"torch_dtype": dtype, "dtype": dtype}
    calibration = None
    if table.calibrate is not None:
        calibration, plan = _calibration(
            options, source, opened.config, model_map, plan, chat_template
        )
    warnings = (
        *opened.warnings,
        *catalog.warnings,
        *_beyond_embeddings(beyond),
        *plan.warnings,
        *card_warnings(read_readme(source.path)),
        *(_template_warnings(source.path) if template is None else ()),
    )
    return Prepared(
        source,
        model_map,
        plan,
        written_config,
        dtype,
        chat_template,
        started,
        warnings,
        files,
        _recognised(opened.recognised, plan, model_map, table),
        adapter,
        calibration,
    )


def _calibration(
    options: Resolved,
    source: SourceFolder,
    config: dict[str, Any],
    model_map: ModelMap,
    plan: Plan,
    chat_template: bytes | None,
) -> tuple[CalibrationText | OwnText, Plan]:
    """The text to calibrate on, and the plan with the memory that this takes."""
    from convert.calibration.own import plan_own_text
    from convert.calibration.run import expected_bytes
    from convert.calibration.text import read_calibration

    named = options.convert.calibrate
    text: CalibrationText | OwnText
    if isinstance(named, Path):
        text = read_calibration(named, source.path, config)
        before = 0
    else:
        limit = options.memory.limit
        text = plan_own_text(source, config, model_map, chat_template, limit)
        before = text.nbytes
    peak = plan.expected_peak_bytes + max(before, expected_bytes(plan, model_map, text))
    return text, replace(plan, expected_peak_bytes=peak)


def _recognised(found: str, plan: Plan, model_map: ModelMap, table: ConvertTable) -> str:
    """What the source is, and what becomes of weights that it holds quantized; may be empty."""
    told = [found] if found else []
    for form in source_forms(plan.parameters, model_map.recipes):
        told.append(f"{form['weights']:,} weights are {form['format']}: {form['became']}")
        if form["became"] == DEQUANTIZED and not (table.quantize or table.dequantize):
            told[-1] += " (--quantize packs them again)"
    return "; ".join(told)


def _read_template(path: Path) -> bytes:
    """The file that replaces the model's own chat template.

    Raises:
        TemplateError: it is none.
        DiskError: it can't be read.
    """
    content = disk.read_whole(path, FILE_LIMIT)
    try:
        parse_template(str(path), content.decode("utf-8"))
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 (byte {error.start})"
        raise TemplateError(path, what, "save it as UTF-8") from error
    return content


def _template_warnings(folder: Path) -> Iterator[str]:
    for problem in template_problems(folder):
        yield f"the chat template can't be used: {problem}; replace it with --chat-template"


def choices_of(options: Resolved) -> Choices:
    """What the options say of the source."""
    overrides = Overrides(options.convert.softcap, options.convert.window_pattern)
    tokenizer = options.tokenizer
    return Choices(options.model.step, overrides, tokenizer.pattern, tokenizer.trust_remote_code)


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


def _beyond_embeddings(tokens: tuple[str, ...]) -> Iterator[str]:
    if tokens:
        yield (
            f"the embedding has no row for {len(tokens)} special tokens, {tokens[0]} among them: "
            "a prompt that holds one is refused"
        )


def most_common_dtype(model_map: ModelMap) -> str | None:
    """The floating dtype that most of the weights have; None if none has one of ours."""
    sizes = Counter[str]()
    for recipe in model_map.recipes.values():
        sizes[str(recipe.dtype).rpartition(".")[2]] += math.prod(recipe.shape)
    return next((dtype for dtype, _ in sizes.most_common() if dtype in DTYPES), None)


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
