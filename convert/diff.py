"""Compares two model folders tensor by tensor, whatever each is packed in.

Owns the opening of the folders and the matching of their tensors. A Hugging Face folder
beside an MLX one is carried over as `convert` does it, so that each tensor's error is
that of its quantization. Changes nothing, and keeps to constant memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.architecture.mapping import map_model
from checkpoint.architecture.packed import Dequantize, plain_view
from checkpoint.architecture.recipes import Recipe
from checkpoint.architecture.trace import copies
from checkpoint.folder import CONFIG, file_in, is_mlx, is_staging
from checkpoint.gguf_files.source import gguf_file, open_gguf
from checkpoint.json_file import read_json_object
from checkpoint.model_config import read_model_config
from checkpoint.shards import read_catalog
from checkpoint.tensors import Catalog
from configs.command import escape
from configs.errors import ModelConfigError, SourceError
from convert.diff_files import config_changes, file_changes
from convert.diff_measure import Measurer, form_of
from convert.diff_report import Compared, Diff, Reshaped, TensorDiff
from convert.progress import progress_bar


@dataclass(frozen=True)
class _Side:
    """One of the folders, opened.

    Attributes:
        path: The folder.
        config: config.json; empty if there is none.
        catalog: Its tensors as they lie in the files.
        is_mlx: Whether it was written for MLX.
        tensors: Its tensors as they are compared, packed ones plain.
        is_gguf: Whether it is a GGUF file, or holds one.
    """

    path: Path
    config: dict[str, Any]
    catalog: Catalog
    is_mlx: bool
    tensors: Mapping[str, Recipe]
    is_gguf: bool = False

    @property
    def kind(self) -> str:
        """What the folder is, in words."""
        if not self.is_mlx:
            return "GGUF" if self.is_gguf else "Hugging Face"
        forms = Counter(form_of(r) for r in self.tensors.values() if isinstance(r, Dequantize))
        return f"MLX, {forms.most_common(1)[0][0]}" if forms else "MLX, not quantized"


def diff(one: Path, other: Path, *, quiet: bool = False) -> Diff:
    """Compare two model folders.

    Args:
        one: A, to which errors are relative.
        other: B.
        quiet: Show no progress, even on a terminal.

    Raises:
        SourceError: One of them is not a model folder that can be read.
        DiskError: A file can't be read.
    """
    sides = _open(one), _open(other)
    notes: list[str] = []
    if len({(side.is_mlx, side.is_gguf) for side in sides}) > 1 or sides[0].is_gguf:
        first, second = (side if side.is_mlx else _carried(side, notes) for side in sides)
    else:
        first, second = sides
    both = [name for name in first.tensors if name in second.tensors]
    alike = [name for name in both if first.tensors[name].shape == second.tensors[name].shape]
    reshaped = [
        Reshaped(name, first.tensors[name].shape, second.tensors[name].shape)
        for name in both
        if first.tensors[name].shape != second.tensors[name].shape
    ]
    return Diff(
        one=Compared(first.path, first.kind, _missing(first, second)),
        other=Compared(second.path, second.kind, _missing(second, first)),
        tensors=_compare(first, second, alike, quiet=quiet),
        reshaped=tuple(reshaped),
        config=config_changes(first.config, second.config),
        files=file_changes(first.path, second.path),
        notes=tuple(notes),
    )


def _open(folder: Path) -> _Side:
    if (single := gguf_file(folder)) is not None:
        found = open_gguf(single)
        return _Side(folder, found.config, found.catalog, False, {}, is_gguf=True)
    if not disk.is_folder(folder):
        what = "is a file, not a folder" if folder.is_file() else "there is no such folder"
        raise SourceError(folder, what, "check the path")
    if is_staging(folder.absolute()):
        raise SourceError(folder, "is a conversion that never finished", "run convert again")
    catalog = read_catalog(folder)
    path = file_in(folder, CONFIG)
    config = read_json_object(path, ModelConfigError, infinities=True) if path.exists() else {}
    for_mlx = is_mlx(config, catalog.metadata)
    try:
        tensors = plain_view(config, catalog, None) if for_mlx else copies(catalog)
    except SourceError as error:
        where = path if error.where == CONFIG else f"{folder}: {error.where}"
        raise type(error)(where, error.what, error.mend) from error
    return _Side(folder, config, catalog, for_mlx, tensors)


def _carried(side: _Side, notes: list[str]) -> _Side:
    """A Hugging Face folder's tensors as `convert` would carry them over; else as they are."""
    try:
        config = side.config if side.is_gguf else read_model_config(side.path)
        mapped = map_model(config, side.catalog)
    except SourceError as error:
        if side.is_gguf:
            raise
        notes.append(f"{side.path}: names are compared as they are: {error.what}")
        return side
    notes.append(f"{side.path}: tensors are carried over as convert does ({mapped.architecture})")
    reasons = Counter(dropped.reason for dropped in mapped.dropped)
    notes += [f"{side.path}: left out: {n:,} tensors: {reason}" for reason, n in reasons.items()]
    return replace(side, tensors=mapped.recipes)


def _missing(one: _Side, other: _Side) -> tuple[str, ...]:
    return tuple(sorted(one.tensors.keys() - other.tensors.keys()))


def _compare(
    one: _Side, other: _Side, names: Iterable[str], *, quiet: bool
) -> tuple[TensorDiff, ...]:
    pairs = {name: (one.tensors[name], other.tensors[name]) for name in names}
    total = sum(_nbytes(recipe) for pair in pairs.values() for recipe in pair)
    found = []
    with Measurer() as measurer, progress_bar(total, quiet=quiet) as progress:
        for name, (ours, theirs) in pairs.items():
            share = (_nbytes(ours) + _nbytes(theirs)) / max(1, math.prod(ours.shape))

            def tell(elements: int, name: str = name, share: float = share) -> None:
                progress(escape(name), int(elements * share))

            measured = measurer.measure(ours, theirs, tell)
            found.append(
                TensorDiff(
                    name,
                    ours.shape,
                    form_of(ours),
                    form_of(theirs),
                    measured.state,
                    measured.sums,
                    measured.largest,
                )
            )
    return tuple(found)


def _nbytes(recipe: Recipe) -> int:
    return sum(ref.nbytes for ref in recipe.sources())
