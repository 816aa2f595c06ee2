"""Holds a folder's tensors against the architecture that its config describes.

Owns the comparison of names, shapes and dtypes with mlx-lm's model, of placeholders, its
layers packed as the config says. No tensor's bytes are read and no code of the folder runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from checkpoint.architecture.carry import BUILD_ERRORS, architectures_of, build_model
from checkpoint.architecture.mapping import map_model
from checkpoint.architecture.mlx_lm_models import load_classes
from checkpoint.architecture.trace import mlx_dtype, placeholder
from checkpoint.folder import CONFIG, shown
from checkpoint.packing import Packing
from checkpoint.tensors import Catalog, TensorRef
from configs.errors import ArchitectureError, ModelConfigError, SourceError
from convert.audit_findings import Findings

NAME = "architecture"
_GLOBAL_SCALE = "global_scale"


def check_mlx_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    packing: Packing,
    findings: Findings,
) -> None:
    """An MLX folder: its tensors are the parameters of mlx-lm's model, names and shapes."""
    if config.get("model_file") is not None:
        findings.skipped(NAME, "the model needs code of the folder's own, which is never run")
        return
    with findings.checking(NAME), _where(folder):
        classes = load_classes(str(config["model_type"]), architectures_of(config))
        model, name = build_model(classes, config), classes.name
        weights = _sanitized(model, name, tensors, folder)
        _pack(model, weights, packing, folder)
        parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        _compare(folder, parameters, weights, packing, findings)
        _warn_of_unused(folder, tensors, weights, findings)
        findings.passed(NAME, f"{name}: all {len(parameters):,} parameters, of the right shapes")


def check_source_folder(
    folder: Path, config: dict[str, Any], catalog: Catalog, findings: Findings
) -> None:
    """A Hugging Face folder: `convert` can map its tensors onto mlx-lm's architecture."""
    with findings.checking(NAME), _where(folder):
        try:
            mapped = map_model(config, catalog)
        except ArchitectureError as error:  # no fault of the folder's
            findings.skipped(NAME, error.what)
            return
        count, name = len(mapped.recipes), mapped.architecture
        findings.passed(NAME, f"{name}: the tensors make all {count:,} parameters")


@contextmanager
def _where(folder: Path) -> Iterator[None]:
    """Put the folder before the names that errors of the architecture give."""
    try:
        yield
    except SourceError as error:
        places = {CONFIG: folder / CONFIG, "tensors": folder}
        where = places.get(error.where, error.where)
        raise type(error)(where, error.what, error.mend) from error


def _sanitized(
    model: Any, name: str, tensors: Mapping[str, TensorRef], folder: Path
) -> dict[str, mx.array]:
    """Placeholders of the tensors, under the names that mlx-lm gives them when it loads them."""
    weights = {each: placeholder(ref.shape, mlx_dtype(ref)) for each, ref in tensors.items()}
    if not hasattr(model, "sanitize"):
        return weights
    try:
        return dict(model.sanitize(weights))
    except BUILD_ERRORS as error:
        what = f"mlx-lm's {name} can't take its tensors ({type(error).__name__}: {error})"
        raise SourceError(folder, what, "is it complete?") from error


def _pack(model: Any, weights: Mapping[str, mx.array], packing: Packing, folder: Path) -> None:
    """Pack the model's layers as the config says and the tensors are."""
    forms = packing.forms
    if forms is None:
        return

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or path in packing.faulty:
            return False
        form = forms.of(path)
        if form is None or (path not in forms.own and f"{path}.scales" not in weights):
            return False
        wanted = form.as_config()
        return wanted | ({_GLOBAL_SCALE: True} if f"{path}.{_GLOBAL_SCALE}" in weights else {})

    try:
        nn.quantize(model, class_predicate=chosen)
    except (ValueError, TypeError) as error:
        what = f"quantization does not fit the model ({error})"
        raise ModelConfigError(folder / CONFIG, what) from error


def _compare(
    folder: Path,
    parameters: Mapping[str, mx.array],
    weights: Mapping[str, mx.array],
    packing: Packing,
    findings: Findings,
) -> None:
    """Hold names, shapes and kinds of dtypes equal."""

    def told_already(name: str) -> bool:
        return name.rpartition(".")[0] in packing.faulty

    missing = sorted(name for name in parameters.keys() - weights.keys() if not told_already(name))
    extra = sorted(name for name in weights.keys() - parameters.keys() if not told_already(name))
    if missing:
        what = f"{len(missing)} tensors of the architecture are missing ({shown(missing)})"
        findings.problem(NAME, folder, what, "copy or download the folder again")
    if extra:
        what = f"{len(extra)} tensors are not of the architecture ({shown(extra)})"
        findings.problem(NAME, folder, what, "the config belongs to another model, or was edited")
    for name in sorted(parameters.keys() & weights.keys()):
        wanted, found = parameters[name], weights[name]
        if told_already(name):
            continue
        if wanted.shape != found.shape:
            what = f"tensor {name} has shape {list(found.shape)}, and config.json makes it"
            mend = "the config belongs to another model, or was edited"
            findings.problem(NAME, folder, f"{what} {list(wanted.shape)}", mend)
        elif _is_real(wanted) and not _is_real(found):
            what = f"tensor {name} holds {found.dtype}, not real numbers"
            findings.problem(NAME, folder, what.replace("mlx.core.", ""), "convert it again")


def _is_real(array: mx.array) -> bool:
    return bool(mx.issubdtype(array.dtype, mx.floating))


def _warn_of_unused(
    folder: Path,
    tensors: Mapping[str, TensorRef],
    weights: Mapping[str, mx.array],
    findings: Findings,
) -> None:
    unused = sorted(tensors.keys() - weights.keys())
    if unused and not weights.keys() - tensors.keys():  # else they were renamed or joined
        findings.warn(f"{folder}: mlx-lm makes no use of {shown(unused)}")
