"""Checks a model folder, whoever made it: against its receipt, and against itself.

Owns the order of the checks; each has its own module. Goes on after a problem, changes
nothing, runs no code of the folder, and reads each byte once, within constant memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.digests import Digest
from checkpoint.folder import (
    CONFIG,
    SAFETENSORS,
    WEIGHT_PATTERNS,
    WEIGHTS_INDEX,
    file_in,
    files_like,
    is_mlx,
    is_staging,
)
from checkpoint.gguf_files.source import gguf_file
from checkpoint.header import Header, read_header
from checkpoint.json_file import read_json_object
from checkpoint.model_config import read_model_config
from checkpoint.packing import Packing, read_packing
from checkpoint.shards import read_catalog, read_index
from checkpoint.tensors import Catalog, TensorRef
from configs.errors import ArchitectureError, FerryError, SourceError
from convert.audit_files import (
    BFLOAT16,
    E4M3,
    E8M0,
    FLOAT16,
    FLOAT32,
    Bits,
    FileJob,
    Region,
    read_files,
)
from convert.audit_findings import Audit, Findings
from convert.audit_model import check_mlx_folder, check_source_folder
from convert.audit_receipt import (
    check_files,
    check_weights_listed,
    from_hub_cache,
    read_receipt,
)
from convert.audit_tokenizer import (
    check_generation_config,
    check_ids,
    check_templates,
    embedding_rows,
)
from convert.progress import progress_bar
from convert.show import gigabytes

_ORDER = (
    *("receipt", "files", "headers", "config", "quantization", "architecture"),
    *("tokenizer", "template", "generation", "values"),
)
_BITS: Mapping[str, Bits] = {
    "F16": FLOAT16,
    "BF16": BFLOAT16,
    "F32": FLOAT32,
    "C64": FLOAT32,
    "F8_E4M3": E4M3,
    "F8_E8M0": E8M0,
}
_SCALES: Mapping[str, Bits] = {"mxfp4": E8M0, "mxfp8": E8M0, "nvfp4": E4M3}


@dataclass(frozen=True)
class _Weights:
    """The headers that could be read.

    Attributes:
        headers: By shard.
        catalog: All their tensors; without what the index says, where it is wrong.
        complete: Whether no shard is missing or damaged.
    """

    headers: Mapping[Path, Header]
    catalog: Catalog
    complete: bool


def audit(folder: Path, *, quiet: bool = False) -> Audit:
    """Check a model folder as far as it can be checked.

    Args:
        folder: An MLX folder of any tool's, or a Hugging Face one.
        quiet: Show no progress, even on a terminal.

    Raises:
        SourceError: It is not a folder, or one that is still being written.
        DiskError: It can't be listed.
    """
    if gguf_file(folder) is not None:
        mend = "convert it, and check what is made of it"
        raise SourceError(folder, "is a GGUF file, whose bytes are not checked here", mend)
    if not disk.is_folder(folder):
        what = "is a file, not a folder" if folder.is_file() else "there is no such folder"
        raise SourceError(folder, what, "check the path")
    if is_staging(folder.absolute()):
        raise SourceError(folder, "is a conversion that never finished", "run convert again")
    findings = Findings()
    receipt = read_receipt(folder, findings)
    weights = _check_headers(folder, findings)
    config = _check_config(folder, weights.catalog.metadata, findings)
    digests: Mapping[Path, Digest] = {}
    if receipt is not None:
        digests = check_files(folder, receipt, findings)
        if weights.complete:
            check_weights_listed(folder, receipt, weights.catalog, findings)
    else:
        with findings.checking("files"):
            digests = from_hub_cache(folder)
    mlx_folder = config is not None and is_mlx(config, weights.catalog.metadata)
    packing = Packing(None, {}, weights.catalog.tensors)
    if config is not None and mlx_folder:
        packing = read_packing(config, weights.catalog.tensors, folder / CONFIG)
        _tell_packing(folder, packing, findings)
    _check_architecture(folder, config, weights, packing if mlx_folder else None, findings)
    check_ids(folder, embedding_rows(weights.catalog.tensors), findings)
    check_templates(folder, findings)
    check_generation_config(folder, findings)
    _check_bytes(digests, weights, packing, findings, quiet=quiet)
    kind = _kind(packing) if mlx_folder else "a Hugging Face folder"
    return findings.result(folder, kind if config is not None else "a folder", _ORDER)


def _check_headers(folder: Path, findings: Findings) -> _Weights:
    names: list[str] = []
    with findings.checking("headers"):
        names = files_like(folder, WEIGHT_PATTERNS)
        if WEIGHTS_INDEX in names:
            names += read_index(folder).weight_map.values()
    shards = sorted({name for name in names if name != WEIGHTS_INDEX})
    headers: dict[Path, Header] = {}
    for name in shards:
        with findings.checking("headers"):
            path = file_in(folder, name)
            if path.exists():  # those that are missing are told below, all at once
                headers[path] = read_header(path)
    complete = len(headers) == len(shards) and bool(headers)
    with findings.checking("headers"):
        catalog = read_catalog(folder)
        for warning in catalog.warnings:
            findings.warn(warning)
        count, told = len(catalog.shards), gigabytes(catalog.total_bytes)
        findings.passed("headers", f"{len(catalog):,} tensors, {told}, in {count} file(s)")
        used = {path: headers[path] for path in catalog.shards if path in headers}
        whole = all(path in used or path.suffix != SAFETENSORS for path in catalog.shards)
        return _Weights(used, catalog, complete=whole)
    tensors: dict[str, TensorRef] = {}
    metadata: dict[str, str] = {}
    for header in headers.values():
        tensors = header.tensors | tensors
        metadata = header.metadata | metadata
    catalog = Catalog(dict(sorted(tensors.items())), tuple(headers), metadata)
    return _Weights(headers, catalog, complete)


def _check_config(
    folder: Path, metadata: Mapping[str, str], findings: Findings
) -> dict[str, Any] | None:
    """config.json; None if it can't be read at all."""
    try:
        config = read_model_config(folder)
        findings.passed("config", f"{CONFIG}: model_type {config['model_type']}")
        return config
    except ArchitectureError as error:
        config = read_json_object(file_in(folder, CONFIG), infinities=True)
        if is_mlx(config, metadata):
            findings.failed("config", error)
        else:
            findings.skipped("config", error.what)
        return config
    except FerryError as error:
        findings.failed("config", error)
    with contextlib.suppress(FerryError):
        return read_json_object(file_in(folder, CONFIG), infinities=True)
    return None


def _tell_packing(folder: Path, packing: Packing, findings: Findings) -> None:
    for where, what in packing.faults:
        mend = "config.json or the tensors were changed: convert it again"
        findings.problem("quantization", folder if where == str(folder) else where, what, mend)
    for module in packing.unused:
        findings.warn(f"{folder / CONFIG}: quantization names {module}, which is not there")
    count = len(packing.packed)
    detail = f"{count:,} modules, packed as {CONFIG} says" if count else "none, and none told of"
    findings.passed("quantization", detail)


def _check_architecture(
    folder: Path,
    config: dict[str, Any] | None,
    weights: _Weights,
    packing: Packing | None,
    findings: Findings,
) -> None:
    name = "architecture"
    if config is None or findings.is_failed("config"):
        findings.skipped(name, "config.json is wrong")
    elif "config" in findings.checks and findings.checks["config"].state == "not checked":
        findings.skipped(name, findings.checks["config"].detail)
    elif not weights.complete:
        findings.skipped(name, "not all shards are there and whole")
    elif packing is not None:
        check_mlx_folder(folder, config, weights.catalog.tensors, packing, findings)
    else:
        check_source_folder(folder, config, weights.catalog, findings)


def _check_bytes(
    digests: Mapping[Path, Digest],
    weights: _Weights,
    packing: Packing,
    findings: Findings,
    *,
    quiet: bool,
) -> None:
    """The one pass over all files: their hashes, and the values in them."""
    roles = _roles(packing)
    jobs = []
    for path in dict.fromkeys((*weights.headers, *digests)):
        header = weights.headers.get(path)
        regions = tuple(
            Region(ref.name, ref.offset, ref.nbytes, roles.get(ref.name, _BITS.get(ref.dtype)))
            for ref in (header.tensors.values() if header is not None else ())
        )
        with findings.checking("files"):
            with disk.reading(path) as file:
                nbytes = disk.file_bytes(file, path)
            jobs.append(FileJob(path, regions, digests.get(path), nbytes))
    total = sum(job.to_read for job in jobs)
    hashed = 0
    with progress_bar(total, quiet=quiet) as tell:
        for job, found in read_files(jobs, tell):
            if isinstance(found, FerryError):
                findings.failed("values" if job.regions else "files", found)
                continue
            hashed += found.hashed
            if found.changed is not None:
                what = f"has {found.changed}, and should have {job.digest}: its bytes were changed"
                findings.problem("files", job.path, what, "copy or download it again")
            for name in found.not_finite:
                what = f"tensor {name} holds infinite or NaN values"
                findings.problem("values", job.path, what, "convert or download it again")
            for name in found.zero:
                # Biases are zero where the quantizer was a symmetric one.
                if len(weights.catalog[name].shape) > 1 and not name.endswith(".biases"):
                    findings.warn(f"{job.path}: every value of {name} is zero")
    _tell_bytes(hashed, total, weights, findings)


def _roles(packing: Packing) -> dict[str, Bits | None]:
    """Parts of packed weights that are floats without saying so."""
    roles: dict[str, Bits | None] = {}
    for packed in packing.packed.values():
        mode = packed.form.mode
        if mode in _SCALES:
            roles[packed.scales.name] = _SCALES[mode]
        if mode == "mxfp8":
            roles[packed.weight.name] = E4M3
    return roles


def _tell_bytes(hashed: int, total: int, weights: _Weights, findings: Findings) -> None:
    if hashed:
        findings.passed("files", f"{hashed} files: sizes and hashes are right, {gigabytes(total)}")
    else:
        findings.skipped("files", "nothing says what their hashes should be")
    if weights.headers:
        which = "any tensor" if weights.complete else "the tensors that can be read"
        findings.passed("values", f"no infinite or NaN value in {which}")
    elif weights.complete:
        findings.skipped("values", "they are not looked at in PyTorch's files")
    else:
        findings.skipped("values", "there is no tensor that can be read")


def _kind(packing: Packing) -> str:
    if packing.forms is None:
        return "an MLX folder, not quantized"
    form = packing.forms.default
    bits = {each.bits for each in packing.forms.own.values() if each is not None} | {form.bits}
    if len(bits) > 1:
        return f"an MLX folder, mixed bits, {min(bits)} to {max(bits)}"
    return f"an MLX folder, {form.bits} bits in groups of {form.group_size}, {form.mode}"
