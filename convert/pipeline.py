"""The conversion itself, readable at a glance: stream, verify, publish.

Owns the order of the steps and the checks between them; each step has its own module.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from checkpoint import disk
from configs.errors import DiskError
from configs.resolve import Resolved
from convert.destination import Destination, publish, staged
from convert.model_files import write_model_files
from convert.prepare import Prepared
from convert.receipt import FILE, make_receipt, readme_note
from convert.stream import Progress, stream_tensors
from convert.verify import digest_file, verify_shards


def convert(
    prepared: Prepared,
    options: Resolved,
    destination: Destination,
    progress: Callable[[int], AbstractContextManager[Progress]],
) -> dict[str, Any]:
    """Carry out a prepared conversion; the destination is whole at the end or untouched.

    Args:
        prepared: What `prepare` gave.
        options: The options in force.
        destination: Where the result goes.
        progress: Given the total bytes, a context whose value is told of every block.

    Returns:
        The receipt.

    Raises:
        DiskError: reading or writing failed, or there is too little room.
        SourceError: a tensor holds infinite or NaN values.
        VerifyError: what was written does not read back.
    """
    plan, table = prepared.plan, options.convert
    given = options.model.source or str(prepared.source.path)
    check_free_space(destination.path.parent, plan.disk_bytes)
    with staged(destination) as folder:
        with progress(plan.tensor_bytes) as tell:
            checksums = stream_tensors(plan, prepared.model_map.recipes, folder, tell)
        names = write_model_files(
            folder,
            prepared.source.path,
            plan,
            prepared.config,
            readme_note(given, plan, table),
            prepared.chat_template,
        )
        receipt = make_receipt(
            given=given,
            source=prepared.source,
            table=table,
            dtype=prepared.dtype,
            model_map=prepared.model_map,
            plan=plan,
            shards=verify_shards(folder, plan, checksums),
            files=tuple(digest_file(folder / name, name) for name in sorted(names)),
            warnings=prepared.warnings,
            seconds=time.perf_counter() - prepared.started,
        )
        text = json.dumps(receipt, indent=2, ensure_ascii=False)
        disk.write_whole(folder / FILE, text.encode() + b"\n")
        publish(destination)
    return receipt


def check_free_space(parent: Path, needed: int) -> None:
    """Refuse a conversion that the disk has no room for.

    Raises:
        DiskError: with what is needed and what is free.
    """
    existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
    free = disk.free_bytes(existing)
    if free < needed:
        raise DiskError(
            parent,
            f"{needed:,} bytes are needed and {free:,} are free",
            "free some space or choose another disk with --mlx-path",
        )
