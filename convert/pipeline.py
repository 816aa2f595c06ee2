"""The conversion itself, readable at a glance: stream, verify, publish.

Owns the order of the steps and the checks between them; each step has its own module.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoint import disk
from configs.errors import DiskError
from configs.resolve import Resolved
from convert.blocks import Blocks
from convert.calibration.own import OwnText, written
from convert.calibration.run import FOLDER, calibrated, receipt_entry, told
from convert.calibration.text import CalibrationText
from convert.destination import Destination, held, publish
from convert.fingerprint import made_of
from convert.model_files import write_card, write_model_files
from convert.prepare import Prepared, choices_of
from convert.quantize import QUANTIZERS
from convert.receipt import FILE, make_receipt, peak_memory_bytes
from convert.shard_file import ShardFiles
from convert.show import gigabytes
from convert.staging import Note, confirm, staged, tidy
from convert.stream import AllThere, Parts, Progress, Supply, stream_tensors
from convert.verify import Verification, digest_file, verify_index

Prove = Callable[[Path], dict[str, Any] | None]
"""Given the verified folder, what it proved for the receipt; raises VerifyError if it can't."""

Measure = Callable[[Path, Mapping[str, Any]], dict[str, Any]]
"""Given the verified folder and the receipt so far, what was measured, for the receipt."""


def convert(
    prepared: Prepared,
    options: Resolved,
    destination: Destination,
    progress: Callable[[int], AbstractContextManager[Progress]],
    *,
    resume: bool = True,
    note: Note = lambda line: None,
    supply: Supply | None = None,
    prove: Prove | None = None,
    measure: Measure | None = None,
) -> dict[str, Any]:
    """Carry out a prepared conversion; the destination is whole at the end or untouched.

    What an interrupted one has left is gone on with, if it was of the same result, and
    what this one can't bring to an end is kept for the next in the same way.

    Args:
        prepared: What `prepare` gave.
        options: The options in force.
        destination: Where the result goes.
        progress: Given the total bytes, a context whose value is told of every block.
        resume: Whether to go on with what an interrupted conversion has left.
        note: Told how much of that is kept, and of other conversions' leftovers.
        supply: Brings the source's files one by one; None where all are there.
        prove: Called with the staged folder once it is verified.
        measure: Called after that.

    Returns:
        The receipt, and what differs from run to run: `seconds`, `peak_memory_bytes`.

    Raises:
        DestinationError: another process is converting to the same destination.
        DiskError: reading or writing failed, or there is too little room.
        SourceError: a tensor holds infinite or NaN values.
        VerifyError: what was written does not read back, or the proof failed.
    """
    plan, table, folder = prepared.plan, options.convert, destination.model
    blocks = Blocks(plan)
    with (
        held(destination),
        staged(destination, made_of(prepared, table), blocks, resume=resume, note=note) as journal,
    ):
        tidy(destination, note)
        check_free_space(destination.path.parent, plan.disk_bytes - disk.held_bytes(folder))
        if isinstance(own := prepared.calibration, OwnText) and table.method == "calibrated":
            recipes, beside = prepared.model_map.recipes, destination.staging / FOLDER
            choices = choices_of(options)
            calibration_text = written(own, prepared.source, choices, recipes, beside, note)
            prepared = replace(prepared, calibration=calibration_text)
        with ShardFiles(folder) as files, Verification(folder, blocks, journal) as verification:
            with progress(plan.tensor_bytes) as tell:
                if kept := confirm(blocks, journal, files, tell):
                    note(f"resuming: {gigabytes(kept)} of {gigabytes(plan.tensor_bytes)} kept")

                def stream(
                    supply: Supply, packed: Mapping[str, Parts] | None = None, again: bool = False
                ) -> None:
                    stream_tensors(
                        blocks,
                        prepared.model_map.recipes,
                        QUANTIZERS[table.method],
                        journal,
                        files,
                        tell,
                        verification.start,
                        supply,
                        packed,
                        again=again,
                    )

                calibration = None
                if prepared.calibration is None or table.method != "calibrated":
                    stream(supply or AllThere())
                    if isinstance(prepared.calibration, CalibrationText):  # bits were chosen by it
                        calibration = receipt_entry(prepared.calibration, {})
                else:
                    calibration = calibrated(
                        prepared, choices_of(options), destination, blocks, journal, stream
                    )
                    note(told(calibration))
            source = prepared.source.path
            names = write_model_files(
                folder, source, plan, prepared.config, prepared.chat_template, prepared.files
            )
            verify_index(folder, plan)
            shards = verification.digests()
        receipt = make_receipt(
            given=options.model.source or str(prepared.source.path),
            source=prepared.source,
            table=table,
            dtype=prepared.dtype,
            model_map=prepared.model_map,
            plan=plan,
            shards=shards,
            files=tuple(digest_file(folder / name, name) for name in sorted(names)),
            warnings=prepared.warnings,
            trust_remote_code=options.tokenizer.trust_remote_code,
            adapter=prepared.adapter,
        )
        if calibration is not None:
            receipt["calibration"] = calibration
        if prove is not None and (proof := prove(folder)) is not None:
            receipt["proof"] = proof
        if measure is not None:
            receipt["quality"] = measure(folder, receipt)
        write_card(folder, source, receipt)
        text = json.dumps(receipt, indent=2, ensure_ascii=False)
        disk.write_whole(folder / FILE, text.encode() + b"\n")
        publish(destination)
    return receipt | {
        "seconds": round(time.perf_counter() - prepared.started, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }


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
