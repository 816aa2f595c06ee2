"""Which file of a model folder is what, and which of them may be touched.

Owns the names and patterns, the rule for symbolic links, and the name of a folder that
is still being written. Knows nothing of what stands in the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from checkpoint import disk
from checkpoint.json_file import quoted
from configs.errors import SourceError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
SAFETENSORS = ".safetensors"
PICKLED_WEIGHTS = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
README = "README.md"

WEIGHT_PATTERNS = ("model*.safetensors", WEIGHTS_INDEX)
CONFIG_PATTERNS = (CONFIG, GENERATION_CONFIG)
TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
PROCESSOR_PATTERNS = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)
LICENSE_PATTERNS = (
    "LICEN[CS]E*",
    "[Ll]icen[cs]e*",
    "NOTICE*",
    "[Nn]otice*",
    "USE_POLICY*",
    "COPYING*",
)
# Copied byte for byte into what is made from the folder.
CARRIED_PATTERNS = TOKENIZER_PATTERNS + PROCESSOR_PATTERNS + LICENSE_PATTERNS

_STAGING_SUFFIX = ".ferry-staging"
_SUBFOLDERS = ("additional_chat_templates",)
_NEVER = ("*.py", "*.pyc", "*.so", "*.pkl")


def file_in(folder: Path, name: str) -> Path:
    """The path of a file of the folder, which need not exist.

    Raises:
        SourceError: It is a symbolic link that leaves the folder. The hub cache's own
            links, from `snapshots/<commit>/` to its blobs, are followed.
    """
    path = folder / name
    if not path.is_symlink():
        return path
    # Not `resolve`, which raises on a circle of links; opening that tells it better.
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    homes = [root]
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        # A model's own blobs, and those that the cache shares between models.
        homes += [root.parents[1] / "blobs", root.parents[2] / "blobs"]
    if not any(real.is_relative_to(home) for home in homes):
        mend = "put the file itself in its place"
        raise SourceError(path, f"is a symbolic link that leaves the folder, to {real}", mend)
    return path


def files_like(folder: Path, patterns: Iterable[str]) -> list[str]:
    """The names, relative to the folder, of its files that match one of the patterns, sorted.

    Folders, and whatever could run as code, never match.

    Raises:
        SourceError: A matching name is a symbolic link that leaves the folder.
        DiskError: The folder can't be read.
    """
    if folder.is_file():
        return []  # a single file that is a source by itself has none beside it
    names = disk.list_folder(folder)
    for subfolder in _SUBFOLDERS:
        if subfolder in names and file_in(folder, subfolder).is_dir():
            names += [f"{subfolder}/{name}" for name in disk.list_folder(folder / subfolder)]
    matching = [name for name in names if matches(name, patterns)]
    return sorted(name for name in matching if file_in(folder, name).is_file())


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's name is one of those that the patterns mean."""
    if any(fnmatchcase(name.lower(), never) for never in _NEVER):
        return False
    depth = name.count("/")
    return any(depth == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def is_mlx(config: Mapping[str, object], metadata: Mapping[str, str]) -> bool:
    """Whether the folder was written for MLX: its names and layouts need no conversion.

    Args:
        config: The folder's config.json.
        metadata: Its catalog's metadata.
    """
    return "quantization" in config or metadata.get("format") == "mlx"


def staging_path(destination: Path) -> Path:
    """The folder, beside its destination, in which a model folder grows until it is whole."""
    return destination.with_name(f".{destination.name}{_STAGING_SUFFIX}")


def is_staging(folder: Path) -> bool:
    """Whether the folder is one that was never finished, or lies in one."""
    names = (folder.name, folder.parent.name)
    return any(name.startswith(".") and name.endswith(_STAGING_SUFFIX) for name in names)


def shown(names: Iterable[str], most: int = 5) -> str:
    """Some names for a message, and how many more there are."""
    listed = list(names)
    text = ", ".join(quoted(name) for name in listed[:most])
    return f"{text} and {len(listed) - most:,} more" if len(listed) > most else text
