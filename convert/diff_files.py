"""Compares what two model folders hold beside weights: the config and the tokenizer's files.

Owns that comparison. A config is compared value by value, a file by its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.architecture.config_values import tagged
from checkpoint.folder import GENERATION_CONFIG, TOKENIZER_PATTERNS, file_in, files_like
from convert.diff_report import Change, as_text

_LIMIT = 1 << 30
_ABSENT = object()


def config_changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Change, ...]:
    """What differs between two config.json, by key."""
    return tuple(_changes(_once(one), _once(other), ""))


def _once(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the copy of `quantization` that MLX folders keep for other tools."""
    copied = config.get("quantization_config") == config.get("quantization")
    kept = {k: v for k, v in config.items() if not (copied and k == "quantization_config")}
    return dict(tagged(kept))


def _changes(one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> Iterator[Change]:
    for key in sorted(one.keys() | other.keys()):
        values = one.get(key, _ABSENT), other.get(key, _ABSENT)
        if isinstance(values[0], Mapping) and isinstance(values[1], Mapping):
            yield from _changes(values[0], values[1], f"{path}{key}.")
            continue
        told = [None if value is _ABSENT else as_text(value) for value in values]
        # Also by the values: 1 and 1.0 are one number, though not one text.
        if told[0] != told[1] and (values[0] != values[1] or _has_switch(values)):
            yield Change(f"{path}{key}", told[0], told[1])


def _has_switch(values: tuple[Any, Any]) -> bool:
    return any(isinstance(value, bool) for value in values)


def file_changes(one: Path, other: Path) -> tuple[Change, ...]:
    """Which files of the tokenizer, and of generation, differ, with the start of their hashes.

    Raises:
        SourceError: A file is a link that leaves its folder, or too large.
        DiskError: One can't be read.
    """
    patterns = (*TOKENIZER_PATTERNS, GENERATION_CONFIG)
    names = [set(files_like(folder, patterns)) for folder in (one, other)]
    found = []
    for name in sorted(names[0] | names[1]):
        hashes = [
            _hash(folder, name) if name in held else None
            for folder, held in zip((one, other), names, strict=True)
        ]
        if hashes[0] != hashes[1]:
            found.append(Change(name, *hashes))
    return tuple(found)


def _hash(folder: Path, name: str) -> str:
    return f"sha256 {hashlib.sha256(disk.read_whole(file_in(folder, name), _LIMIT)).hexdigest()}"
