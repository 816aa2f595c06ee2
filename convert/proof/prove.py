"""Proves that a written folder computes what transformers computes from its source.

The order of it: transformers runs the source; mlx-lm's model, built from the written
config, runs each layer on the very input that transformers' layer had, three times: with
the source's own weights (structure: whatever is wrong shows, at any bits), with those
rounded to nearest (what the chosen bits cost), and with what was written; and every weight
is held against the source's. All in float32 on the CPU, one layer in memory at a time.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from checkpoint.architecture.carry import Carried, carry
from checkpoint.architecture.mapping import map_model
from checkpoint.architecture.packed import plain_view
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Recipe
from checkpoint.architecture.rotations import tune_rotations
from checkpoint.folder import CONFIG
from checkpoint.model_config import read_model_config
from checkpoint.shards import read_catalog
from checkpoint.source import SourceFolder
from configs.errors import SourceError, VerifyError
from convert.proof import tolerance
from convert.proof.forcing import EMBEDDINGS, HEAD, Bench, Part, Run
from convert.proof.progress import Tell, told_progress
from convert.proof.reference import Reference, Source, computed_reference, open_source
from convert.proof.report import Proof, Stage
from convert.proof.tensors import check_tensors, misfits
from convert.proof.values import (
    FolderValues,
    RoundedValues,
    Values,
    half_dtypes,
    in_float32,
    stored_form,
)
from convert.receipt import peak_memory_bytes

_FORMS_NAMED = 3
_WINDOWS = ("sliding_window", "attention_chunk_size")


def prove(source: SourceFolder | Path, folder: Path, *, quiet: bool = False) -> Proof:
    """Hold a written folder against what transformers computes from its source.

    Args:
        source: The checkpoint that the folder was made from.
        folder: An MLX folder, finished or staged.
        quiet: Show no progress; off a terminal there is none anyway.

    Returns:
        What was found; `ok` says whether it is proven.

    Raises:
        FerryError: torch is not installed.
        ArchitectureError: transformers or mlx-lm can't be run so; nothing is proven.
        SourceError: source or folder is damaged.
    """
    began = time.perf_counter()
    opened = open_source(source.path if isinstance(source, SourceFolder) else source)
    with (
        told_progress(quiet=quiet) as tell,
        computed_reference(opened, lambda *step: tell("transformers", *step)) as reference,
    ):
        return compare(reference, opened, folder, tell, began)


def compare(reference: Reference, source: Source, folder: Path, tell: Tell, began: float) -> Proof:
    """The proof once transformers has run."""
    config, carried = open_written(folder)
    mapped = map_model(source.config, source.catalog)
    if misfit := misfits(mapped.recipes, carried.recipes):
        raise VerifyError(folder, f"is not made from {source.path}: {misfit}", "convert it again")
    tune_rotations(carried.model, config, len(reference.ids))
    # On the CPU float32 is float32; a GPU may round products to fewer digits.
    with mx.stream(mx.cpu), TensorReader() as reader:
        exact = FolderValues({n: in_float32(r) for n, r in mapped.recipes.items()}, reader)
        given = FolderValues(mapped.recipes, reader)
        written = FolderValues(carried.recipes, reader)
        rounded = RoundedValues(given, carried.recipes)
        checks = []
        for check in check_tensors(given, rounded, written):
            checks.append(check)
            tell("weights", check.name, len(checks), len(carried.recipes))
        bench = Bench(carried.model, reference, tell)
        kinds: dict[str, Values] = {"structure": exact, "rounded": rounded, "written": written}
        runs = {kind: bench.run(values, kind) for kind, values in kinds.items()}
    return Proof(
        reference=f"{reference.model} of transformers {importlib.metadata.version('transformers')}",
        form=form_in_words(config, carried.recipes),
        tokens=len(reference.ids),
        rows=_stages(runs, bench, mapped.recipes),
        tensors=tuple(checks),
        logits=runs["structure"].logits,
        divergence=runs["written"].divergence,
        agreement=runs["written"].agreement,
        unproven=_unproven(config, len(reference.ids), mapped.dropped),
        seconds=time.perf_counter() - began,
        peak_memory_bytes=peak_memory_bytes(),
        reference_peak_memory_bytes=reference.peak_memory_bytes,
    )


def open_written(folder: Path) -> tuple[dict[str, Any], Carried]:
    """The written folder as mlx-lm loads it, its weights seen plain."""
    config = read_model_config(folder)
    try:
        view = plain_view(config, read_catalog(folder), mx.float32)
        return config, carry(config, view, as_loaded=True)
    except SourceError as error:
        where = folder / CONFIG if error.where == CONFIG else f"{folder}: {error.where}"
        raise type(error)(where, error.what, error.mend) from error


def _stages(
    runs: Mapping[str, Run], bench: Bench, recipes: Mapping[str, Recipe]
) -> tuple[Stage, ...]:
    exact, rounded, written = (runs[kind] for kind in ("structure", "rounded", "written"))

    def stage(part: Part, *errors: float) -> Stage:
        read = (half_dtypes(recipes[name]) for name in bench.asked(part))
        allowed = tolerance.structure(set[mx.Dtype]().union(*read))
        return Stage(
            part if isinstance(part, str) else f"layer {part}",
            structure=errors[0],
            structure_allowed=allowed,
            rounded=errors[1],
            written=errors[2],
            written_allowed=tolerance.as_written(allowed, errors[1]),
        )

    layers = zip(exact.layers, rounded.layers, written.layers, strict=True)
    return (
        stage(EMBEDDINGS, exact.embeddings, rounded.embeddings, written.embeddings),
        *(stage(number, *errors) for number, errors in enumerate(layers)),
        stage(HEAD, exact.head, rounded.head, written.head),
    )


def form_in_words(config: Mapping[str, Any], written: Mapping[str, Recipe]) -> str:
    """What was written, in words."""
    forms = {form for form in (stored_form(recipe)[0] for recipe in written.values()) if form}
    if not forms:
        return f"{config.get('dtype') or config.get('torch_dtype') or 'no fewer bits'}"
    if len(forms) > _FORMS_NAMED:
        bits = {form.bits for form in forms}
        return f"mixed bits, {min(bits)} to {max(bits)}"
    return " or ".join(sorted(map(str, forms)))


def _unproven(config: Mapping[str, Any], tokens: int, dropped: tuple[Any, ...]) -> tuple[str, ...]:
    """What a short text in float32 on the CPU says nothing of."""
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    windows = [f"{key} {text[key]}" for key in _WINDOWS if (text.get(key) or 0) >= tokens]
    lines = [
        f"positions beyond the text's {tokens}" + "".join(f", {each}" for each in windows),
        "half precision, a GPU's own arithmetic, the cache, the tokenizer, the chat template",
    ]
    if dropped:
        lines.append(f"{len(dropped)} tensors of the source that mlx-lm has no use for")
    return tuple(lines)
