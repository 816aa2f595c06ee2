"""What a folder's files should be: by its receipt, or by the names of the hub's cache.

Owns the reading of conversion.json, of which nothing is believed, and the comparison of
names and sizes. Hashes nothing itself; knows nothing of tensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from checkpoint import disk
from checkpoint.digests import Digest
from checkpoint.folder import (
    CARRIED_PATTERNS,
    CONFIG_PATTERNS,
    WEIGHT_PATTERNS,
    file_in,
    files_like,
    shown,
)
from checkpoint.json_file import json_type, json_value, quoted, read_json_object
from checkpoint.tensors import Catalog
from configs.errors import SourceError
from convert.audit_findings import Findings
from convert.receipt import FILE

_LIMIT = 100_000_000
_LARGEST = 2**63
_MEND = "convert the model again"


@dataclass(frozen=True)
class Expected:
    """What a file should be.

    Attributes:
        digest: What it hashes to.
        nbytes: Its size.
    """

    digest: Digest
    nbytes: int


@dataclass(frozen=True)
class Receipt:
    """What a receipt says that can be checked.

    Attributes:
        files: Every file it lists.
        shards: Those of them that hold weights.
        tensor_bytes: Bytes of all tensors; None if it does not say.
        told: What was made from what, in words.
    """

    files: Mapping[str, Expected]
    shards: tuple[str, ...]
    tensor_bytes: int | None
    told: str


def read_receipt(folder: Path, findings: Findings) -> Receipt | None:
    """The folder's receipt; None if there is none that can be read."""
    path = folder / FILE
    if FILE not in disk.list_folder(folder):
        findings.skipped("receipt", f"there is no {FILE}: hashes can't be checked")
        return None
    with findings.checking("receipt"):
        content = read_json_object(file_in(folder, FILE), SourceError, _LIMIT)
        shards = _listed(content, "shards", path, findings)
        files = _listed(content, "files", path, findings)
        for name in shards.keys() & files.keys():
            findings.problem("receipt", path, f"lists {quoted(name)} twice", _MEND)
        told = _told(content)
        held = content.get("tensor_bytes")
        if type(held) is not int:
            findings.problem("receipt", path, f"tensor_bytes is {json_value(held)}", _MEND)
            held = None
        findings.passed("receipt", told)
        return Receipt({**files, **shards}, tuple(shards), held, told)
    return None


def _listed(
    content: Mapping[str, Any], key: str, path: Path, findings: Findings
) -> dict[str, Expected]:
    entries = content.get(key)
    if not isinstance(entries, list):
        findings.problem("receipt", path, f"{key} is {json_type(entries)}, not an array", _MEND)
        return {}
    found: dict[str, Expected] = {}
    for number, entry in enumerate(entries):
        fault = _fault(entry)
        if not fault and entry["file"] in found:
            fault = f"lists {quoted(entry['file'])} twice"
        if fault:
            findings.problem("receipt", path, f"{key}[{number}] {fault}", _MEND)
        else:
            found[entry["file"]] = Expected(Digest("sha256", entry["sha256"]), entry["bytes"])
    return found


def _fault(entry: object) -> str:
    """What is wrong with an entry of a file; empty if nothing is."""
    if not isinstance(entry, dict):
        return f"is {json_type(entry)}, not an object"
    name, nbytes, digest = (entry.get(key) for key in ("file", "bytes", "sha256"))
    if not isinstance(name, str) or not _is_inside(name):
        return f"names no file of the folder: {json_value(name)}"
    if type(nbytes) is not int or not 0 <= nbytes < _LARGEST:
        return f"has {json_value(nbytes)} for bytes"
    known = Digest.named(digest)
    if known is None or known != Digest("sha256", str(digest)):
        return f"has {json_value(digest)} for sha256"
    return ""


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file in the folder, or in a folder of it."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") for part in parts)
    return plain and len(parts) <= 2 and name.isprintable() and "\\" not in name


def _told(content: Mapping[str, Any]) -> str:
    source, versions = content.get("source"), content.get("versions")
    given = source.get("given") if isinstance(source, dict) else None
    version = versions.get("mlx-ferry") if isinstance(versions, dict) else None
    told = f"made from {quoted(given)}" if isinstance(given, str) else "does not say from what"
    return f"{told} by mlx-ferry {quoted(version)}" if isinstance(version, str) else told


def from_hub_cache(folder: Path) -> dict[Path, Digest]:
    """What the hub's cache says of its own files: each is a link to a file named by its hash."""
    found: dict[Path, Digest] = {}
    for name in files_like(folder, (*WEIGHT_PATTERNS, *CONFIG_PATTERNS, *CARRIED_PATTERNS)):
        path = folder / name
        if path.is_symlink():
            digest = Digest.named(PurePosixPath(os.path.realpath(path)).name)
            if digest is not None:
                found[path] = digest
    return found


def check_files(folder: Path, receipt: Receipt, findings: Findings) -> dict[Path, Digest]:
    """Hold the folder's names and sizes against the receipt; gives what is to be hashed."""
    names = set(disk.list_folder(folder))
    right: dict[Path, Digest] = {}
    for name, expected in receipt.files.items():
        with findings.checking("files"):
            path = file_in(folder, name)
            if not path.exists():
                findings.problem("files", path, "is missing", "copy or download it again")
                continue
            with disk.reading(path) as file:
                nbytes = disk.file_bytes(file, path)
            if nbytes != expected.nbytes:
                what = f"is {nbytes:,} bytes long, and {expected.nbytes:,} in the receipt"
                findings.problem("files", path, what, "it was cut short or changed: copy it again")
                continue
            right[path] = expected.digest
    known = {name.partition("/")[0] for name in receipt.files} | {FILE}
    strange = sorted(name for name in names - known if not name.startswith("."))
    if strange:
        findings.warn(f"{folder}: not in the receipt: {shown(strange)}")
    return right


def check_weights_listed(
    folder: Path, receipt: Receipt, catalog: Catalog, findings: Findings
) -> None:
    """Hold the tensors against the receipt's list of shards and its count of bytes."""
    for path in catalog.shards:
        if path.name not in receipt.shards:
            what = f"holds weights, and {FILE} does not list it"
            findings.problem("files", path, what, _MEND)
    if receipt.tensor_bytes is not None and catalog.total_bytes != receipt.tensor_bytes:
        what = f"has {catalog.total_bytes:,} bytes of tensors, {receipt.tensor_bytes:,} in {FILE}"
        findings.problem("files", folder, what, _MEND)
