"""The mixture that the options ask for, if they ask for one.

Owns what is read for it before anything is planned: the text, where one is given. Knows nothing
of how layers are measured or forms chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from checkpoint.architecture.mapping import ModelMap, map_model
from checkpoint.recognise import Choices, open_source
from checkpoint.source import SourceFolder
from configs.errors import ArchitectureError
from configs.resolve import Resolved
from convert.mixed.choose import Measured, choose
from convert.mixed.layers import Layer
from convert.mixed.mixture import Mixture
from convert.mixed.sensitivity import Errors
from convert.quantize import QUANTIZERS

Tell = Callable[[str, str, int, int], None]
"""Told of a phase, what was done, its number, and how many there are."""


class Bar(Protocol):
    """Shows progress."""

    def __call__(self, *, title: str) -> AbstractContextManager[Tell]: ...


def mixture_of(
    options: Resolved, source: SourceFolder, choices: Choices, model_map: ModelMap, bar: Bar
) -> Mixture | None:
    """Choose, if a target or a recipe is given.

    Args:
        options: The options in force.
        source: The source folder.
        choices: What the options say of it.
        model_map: The mapping; its model is left as it is.
        bar: For what takes its time.

    Raises:
        DiskError: the source, or the text, can't be read.
        UsageError: nothing can be chosen, or the target can't be met.
    """
    table, context = options.convert, options.memory.context
    if not table.is_mixed:
        return None
    with bar(title="mixed bits") as tell:

        def done(number: int, total: int) -> None:
            tell("weights", "", number, total)

        if not table.is_targeted or not isinstance(table.calibrate, Path):
            return choose(model_map, table, context, None, done)
        try:
            measured = _by_text(table.calibrate, table.method, source, choices, model_map, tell)
            return choose(model_map, table, context, measured, done)
        except ArchitectureError as error:
            warning = f"bits are chosen by the weights alone: {error.where} {error.what}"
            chosen = choose(model_map, table, context, None, done)
            return replace(chosen, warnings=(warning,))


def _by_text(
    path: Path,
    method: str,
    source: SourceFolder,
    choices: Choices,
    model_map: ModelMap,
    tell: Tell,
) -> Measured:
    """What a text shows, once it is asked for."""
    from convert.calibration.text import read_calibration
    from convert.mixed.fisher import Fisher, windows_of

    opened = open_source(source.path, choices, None)
    text = read_calibration(path, source.path, opened.config)

    def errors(layers: Sequence[Layer]) -> Errors:
        model = map_model(opened.config, opened.catalog).model
        ids = windows_of(text.ids, len(model.layers), _width(model_map.config))
        return Fisher(model, model_map.recipes, layers, tell).errors(ids, QUANTIZERS[method])

    return Measured(path.name, errors)


def _width(config: Mapping[str, Any]) -> int:
    hidden = config.get("hidden_size")
    return hidden if isinstance(hidden, int) else 4096
