"""A GGUF file, or a folder that holds one, as a source: told, and read but for its tensors.

Owns the rule of which file is meant. What it holds is for `header`, `model` and `tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.dimensions import check_dimensions
from checkpoint.folder import file_in, shown
from checkpoint.gguf_files.header import read_gguf
from checkpoint.gguf_files.model import model_config
from checkpoint.gguf_files.tokenizer import tokenizer_files
from checkpoint.tensors import Catalog
from configs.errors import SourceError

SUFFIX = ".gguf"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class OpenedGguf:
    """A GGUF file, read but for its tensors.

    Attributes:
        config: config.json as transformers would have it.
        catalog: Its tensors under llama.cpp's names.
        files: The tokenizer's files.
        recognised: What it is.
    """

    config: dict[str, Any]
    catalog: Catalog
    files: Mapping[str, bytes]
    recognised: str


def gguf_file(source: Path) -> Path | None:
    """The GGUF file that a source is or holds; None if it is none.

    Raises:
        SourceError: a folder holds several.
    """
    if source.suffix.lower() == SUFFIX and source.is_file():
        return source
    if not disk.is_folder(source):
        return None
    names = disk.list_folder(source)
    found = [name for name in names if name.lower().endswith(SUFFIX)]
    if not found or any(name.endswith(_WEIGHTS) for name in names):
        return None
    if len(found) > 1:
        what = f"holds {len(found)} GGUF files ({shown(found)})"
        raise SourceError(source, what, "name the one that is meant with --hf-path")
    return file_in(source, found[0])


def open_gguf(path: Path) -> OpenedGguf:
    """Read what a GGUF file says of itself.

    Raises:
        SourceError: it is damaged, or of a kind that can't be read.
        DiskError: it can't be read.
    """
    header = read_gguf(path)
    config = model_config(header, path)
    check_dimensions(config, path)
    kinds = ", ".join(sorted({ref.dtype for ref in header.tensors.values()}))
    return OpenedGguf(
        config,
        Catalog(header.tensors, (path,), {"format": "gguf"}),
        tokenizer_files(header.metadata, path),
        f"a GGUF file of {header.metadata['general.architecture']}, its tensors {kinds}",
    )
