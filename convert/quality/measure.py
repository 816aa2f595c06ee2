"""Measures what a written folder lost beside the source that it was made from.

The order of it: the source, what was written, and the source rounded to nearest in the same
forms (made as it is read, block by block) run through one model side by side; their logits are
then compared part by part. All in float32, one block in memory at a time. This room asks
`inference` for the folder's tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint.architecture.mapping import map_model
from checkpoint.architecture.reader import TensorReader
from checkpoint.architecture.recipes import Recipe
from checkpoint.folder import is_mlx
from checkpoint.recognise import Choices, open_source
from checkpoint.shards import read_catalog
from checkpoint.source import SourceFolder
from configs.errors import SourceError, UsageError
from convert.proof.progress import told_progress
from convert.proof.prove import form_in_words, open_written
from convert.proof.tensors import misfits
from convert.proof.values import FolderValues, RoundedValues, Values, in_float32, stored_form
from convert.quality.figures import LEAST_TOKENS, Tokens, figures, kl_difference, layer_errors
from convert.quality.lockstep import Lockstep
from convert.quality.report import Measured, Report
from convert.quality.texts import Text, Windows, check_disjoint, cut
from convert.receipt import peak_memory_bytes
from inference.tokenizer import load_tokenizer

FLAG = "--quality"
_WRITTEN, _RTN = "as written", "rounded to nearest"


def measure(
    source: SourceFolder,
    folder: Path,
    text: Text,
    *,
    choices: Choices | None = None,
    calibration: Sequence[str | Mapping[str, Any]] = (),
    rounding: bool = True,
    quiet: bool = False,
) -> Report:
    """Measure a folder, finished or staged.

    Args:
        source: The checkpoint that it was made from.
        folder: An MLX folder with its tokenizer.
        text: What to measure on.
        choices: What the user says of the source beside its name.
        calibration: Texts that it was calibrated on, or fingerprints of them.
        rounding: Measure rounding to nearest in the same forms, too.
        quiet: Show no progress; off a terminal there is none anyway.

    Raises:
        ArchitectureError: mlx-lm's model can't be run block by block.
        SourceError: source or folder is damaged, or they don't belong together.
        TokenizerError: the folder's tokenizer can't be read.
        UsageError: the text is too short, or one that the model was calibrated on.
    """
    began = time.perf_counter()
    check_disjoint(calibration, text, "--text")
    config, carried = _open(folder)
    windows = _windows(folder, config, text)
    opened = open_source(source.path, choices or Choices(), None)
    mapped = map_model(opened.config, opened.catalog)
    if misfit := misfits(mapped.recipes, carried.recipes):
        raise SourceError(folder, f"is not made from {source.path}: {misfit}", "name its source")
    with (
        told_progress(quiet=quiet, title="quality") as tell,
        TensorReader() as reader,
    ):
        kinds = _kinds(mapped.recipes, carried.recipes, reader, rounding)
        model = Lockstep(carried.model, kinds, lambda *step: tell(step[0], "", *step[1:]))
        errors = model.run(windows.ids, windows.lengths)
        tokens = {name: _compared(model, name, windows) for name in list(kinds)[1:]}
    found = {
        name: Measured(figures(each), layer_errors(errors, name)) for name, each in tokens.items()
    }
    recorded = [each.get("sha256") for each in calibration if not isinstance(each, str)]
    return Report(
        form=form_in_words(config, carried.recipes),
        text=text.name,
        text_sha256=text.sha256,
        calibration_sha256=tuple(str(each) for each in recorded if each),
        tokens=windows.tokens,
        window=windows.ids.shape[1],
        written=found[_WRITTEN],
        rtn=found.get(_RTN),
        gain=kl_difference(tokens[_WRITTEN], tokens[_RTN]) if _RTN in tokens else None,
        seconds=time.perf_counter() - began,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _open(folder: Path) -> tuple[dict[str, Any], Any]:
    config, carried = open_written(folder)
    if not is_mlx(config, read_catalog(folder).metadata):
        raise UsageError(FLAG, f"{folder} is not in MLX's layout", "give a folder for MLX")
    return config, carried


def _windows(folder: Path, config: Mapping[str, Any], text: Text) -> Windows:
    windows = cut(load_tokenizer(folder, config), text.content)
    if windows.tokens < LEAST_TOKENS:
        raise UsageError(
            "--text",
            f"{text.name} has {windows.tokens} tokens, and {LEAST_TOKENS} are the least to measure",
            "give a longer text",
        )
    return windows


def _kinds(
    source: Mapping[str, Recipe],
    written: Mapping[str, Recipe],
    reader: TensorReader,
    rounding: bool,
) -> dict[str, Values]:
    """The sets of weights, the source's own first."""
    exact = {name: in_float32(recipe) for name, recipe in source.items()}
    kinds: dict[str, Values] = {"source": FolderValues(exact, reader)}
    kinds[_WRITTEN] = FolderValues(written, reader)
    if rounding and any(stored_form(recipe)[0] for recipe in written.values()):
        kinds[_RTN] = RoundedValues(FolderValues(source, reader), written)
    return kinds


def _compared(model: Lockstep, name: str, windows: Windows) -> Tokens:
    """Every token's figures of one set of weights."""
    tokens, row, low = Tokens(), 0, 0
    for reference, found in model.logits(name):
        if low == windows.lengths[row]:
            row, low = row + 1, 0
        high = low + found.shape[1]
        tokens.add(reference[0], found[0], windows.targets[row, low:high])
        low = high
    tokens.close()
    return tokens
