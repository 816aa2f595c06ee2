"""What the bytes of a conversion depend on, so that only the same one goes on with them.

Owns the list of those things. Whoever makes the result depend on something new adds it
here. Knows nothing of the journal that keeps it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx

from checkpoint import disk
from configs import __version__
from configs.quantization import ConvertTable
from convert.planner import BLOCK_BYTES
from convert.prepare import Prepared


def made_of(prepared: Prepared, table: ConvertTable) -> dict[str, str]:
    """Each thing that the result's bytes depend on, with a digest of it.

    Args:
        prepared: The conversion.
        table: The options in force.

    Raises:
        DiskError: a source file can't be looked at.
    """
    versions = [importlib.metadata.version(name) for name in ("mlx", "mlx-lm")]
    parts: dict[str, Iterable[object]] = {
        "options": [asdict(table), prepared.dtype],
        "source": _source(prepared),
        "calibration text": [prepared.calibration and dict(prepared.calibration.recorded)],
        "adapter": [prepared.adapter and prepared.adapter.digest],
        "version of mlx, mlx-lm or mlx-ferry": [*versions, __version__],
        "device": [platform.machine(), mx.default_device()],
        "chat template": [prepared.chat_template],
        "tokenizer": [sorted(prepared.files.items())],
        "model config": [prepared.model_map.config, prepared.config],
        "plan": [BLOCK_BYTES, *(shard.header for shard in prepared.plan.shards)],
    }
    return {name: _digest(values) for name, values in parts.items()}


def _source(prepared: Prepared) -> Iterator[object]:
    """A commit of the hub, or the files as they are: where, how large, how old, holding what."""
    source = prepared.source
    if source.commit is not None:
        yield source.repo_id, source.commit
        return
    files: set[Path] = set()
    for name, recipe in prepared.model_map.recipes.items():
        for ref in recipe.sources():
            files.add(ref.file)
            yield name, ref.file.name, ref.name, ref.dtype, ref.shape, ref.offset
    for file in sorted(files):
        yield file.resolve(), disk.size_and_time(file)


def _digest(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()
