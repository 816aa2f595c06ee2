"""Reads config.json and refuses what no architecture could be built from.

Owns the check of the model type, and of code that would have to be run. Knows nothing of
what one architecture makes of its values, and imports no architecture.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.architecture.mlx_lm_models import model_types
from checkpoint.dimensions import check_dimensions
from checkpoint.folder import CONFIG, file_in, shown
from checkpoint.json_file import quoted, read_json_object
from checkpoint.nanochat.folder import is_nanochat
from checkpoint.odd_layouts import not_of_text, refuse_odd_layout
from configs.errors import ArchitectureError, ModelConfigError

_AGAIN = "download it again"
_SNAPSHOTS = "snapshots"
# Keys that name Python files of the folder's own.
_CUSTOM_CODE = ("auto_map", "model_file")


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json.

    Returns:
        Its content, unchanged.

    Raises:
        ModelConfigError: It is missing, not JSON, or holds a value that can't be.
        ArchitectureError: mlx-lm has no architecture for its model type.
        ShardIndexError: There is none, and the folder is a pipeline, an adapter or the like.
        DiskError: It can't be read.
    """
    path = file_in(folder, CONFIG)
    if not path.exists():
        names = disk.list_folder(folder)
        if is_nanochat(names):
            raise ModelConfigError(path, "is missing: the folder is nanochat's own", "convert it")
        refuse_odd_layout(folder, names)
        mend = "give the folder that a model was saved in"
        if inner := _inside(folder, names):
            mend = f"give a folder in it that holds a model: {shown(inner, 3)}"
        raise ModelConfigError(path, "is missing", mend)
    config = read_json_object(path, ModelConfigError, infinities=True)
    _check_model_type(path, config)
    check_dimensions(config, path)
    return config


def _inside(folder: Path, names: Iterable[str]) -> list[str]:
    """Folders in a folder that have a config.json, those of the hub's cache among them."""
    listed = [name for name in names if disk.is_folder(folder / name)]
    if _SNAPSHOTS in listed:
        listed = [f"{_SNAPSHOTS}/{name}" for name in disk.list_folder(folder / _SNAPSHOTS)]
    return [name for name in listed if disk.is_there(folder / name / CONFIG)]


def _check_model_type(path: Path, config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        what = "has no model_type" if model_type is None else "model_type is not a string"
        raise ModelConfigError(path, what, "add the one that the model's family uses")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(x, str) for x in architectures):
        raise ModelConfigError(path, "architectures is not an array of strings", _AGAIN)
    if model_type in model_types():
        return
    if (kind := not_of_text(config)) is not None:
        what = f"is of {kind} ({quoted(model_type)})"
        raise ArchitectureError(path, what, "give the folder of a language model")
    what = f"model_type {quoted(model_type)} is not one mlx-lm has"
    code = [key for key in _CUSTOM_CODE if config.get(key) is not None]
    if code:
        what += f", and the folder's own code ({code[0]}) is never run"
    near = difflib.get_close_matches(model_type[:50], sorted(model_types()), n=3, cutoff=0)
    raise ArchitectureError(path, what, f"the nearest supported are {', '.join(near)}")
