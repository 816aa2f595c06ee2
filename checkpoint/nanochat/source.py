"""A folder of nanochat's own as a checkpoint like any other: config, tensors, files to write.

Owns the order: the files found, the tensors listed, the era told, the config and the
tokenizer made. Reads no tensor's bytes but for their checksums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpoint.json_file import read_json_object
from checkpoint.nanochat.eras import check_names, plain_names, recognise
from checkpoint.nanochat.folder import find_files
from checkpoint.nanochat.model_config import Overrides, describe, read_sizes
from checkpoint.nanochat.tokenizer import make_tokenizer
from checkpoint.pickles.archive import read_archive
from checkpoint.pickles.model_file import warnings_of
from checkpoint.tensors import Catalog, TensorRef
from configs.errors import ArchitectureError, ModelConfigError, TokenizerError


@dataclass(frozen=True)
class NanochatSource:
    """A checkpoint of nanochat's, read but for its tensors.

    Attributes:
        config: config.json, every hidden constant in it.
        catalog: The tensors.
        files: What else the model folder needs, by name.
        notes: What was recognised and left out, for the receipt.
        warnings: What was assumed.
    """

    config: dict[str, Any]
    catalog: Catalog
    files: Mapping[str, bytes]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def open_nanochat(
    folder: Path, step: int | None = None, overrides: Overrides | None = None
) -> NanochatSource | None:
    """Read a folder of nanochat's own; None if it is none.

    Args:
        folder: In any of nanochat's layouts.
        step: Of training; the highest if None.
        overrides: What the user says of what the files can't tell.

    Raises:
        SourceError: It is damaged, incomplete, or of no state of nanochat that can be run.
        DiskError: Something can't be read.
    """
    found = find_files(folder, step)
    if found is None:
        return None
    archive = read_archive(found.model)
    tensors = _plainly_named(archive.tensors, found.model)
    shapes = {name: ref.shape for name, ref in tensors.items()}
    try:
        era = recognise(shapes)
        check_names(shapes, era)
    except ArchitectureError as error:
        raise ArchitectureError(found.model, error.what, error.mend) from error
    sizes = read_sizes(read_json_object(found.meta, ModelConfigError), found.meta)
    described = describe(sizes, era, shapes, overrides or Overrides(), found.meta)
    if found.tokenizer is None:
        mend = "put it beside the checkpoint, or into a folder named tokenizer"
        raise TokenizerError(found.model.parent / "tokenizer.pkl", "is missing", mend)
    made = make_tokenizer(found.tokenizer, sizes.vocabulary, sizes.context)
    config = {**described.config, **made.ids, "torch_dtype": "float32"}
    warnings = [*found.notes, *warnings_of(found.model, archive), *described.warnings]
    embedded, others = _dtypes(tensors)
    if embedded != "F32":
        config["torch_dtype"] = {"BF16": "bfloat16", "F16": "float16"}[embedded]
        if others:
            warnings.append(
                f"the embeddings are {config['torch_dtype']}, in which nanochat computes, and "
                f"{others} other tensors are not: all are written so; --dtype chooses another"
            )
    notes = (*described.notes, f"read from {found.model.name}, step {found.step}")
    catalog = Catalog(dict(sorted(tensors.items())), (found.model,))
    return NanochatSource(config, catalog, made.files, notes, tuple(warnings))


def _plainly_named(tensors: Mapping[str, TensorRef], where: Path) -> dict[str, TensorRef]:
    try:
        names = plain_names(tensors)
    except ArchitectureError as error:
        raise ArchitectureError(where, error.what, error.mend) from error
    return {names[name]: replace(ref, name=names[name]) for name, ref in tensors.items()}


def _dtypes(tensors: Mapping[str, TensorRef]) -> tuple[str, int]:
    """The dtype of the embeddings, and how many tensors have another."""
    embedded = tensors["transformer.wte.weight"].dtype
    if embedded not in ("F32", "BF16", "F16"):
        raise ArchitectureError(
            tensors["transformer.wte.weight"].file,
            f"holds embeddings of {embedded}",
            "save it in float32 or bfloat16",
        )
    matrices = [ref for ref in tensors.values() if len(ref.shape) > 1]
    return embedded, sum(ref.dtype != embedded for ref in matrices)
