"""What of a model folder goes to the hub, and in which form.

Owns the list of files, which is the receipt's, and the two that are published otherwise than
they lie in the folder: the card names the repository, and the receipt no path of this machine.
Knows nothing of the hub but how it tells files apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from checkpoint import disk
from checkpoint.folder import README, file_in, is_staging
from checkpoint.json_file import read_json_object
from configs.errors import SourceError, VerifyError
from convert.audit_findings import Findings
from convert.audit_receipt import check_files, read_receipt
from convert.model_card import base_model, card_for_repository
from convert.receipt import FILE

_RECEIPT_LIMIT = 100_000_000
_CARD_LIMIT = 1 << 30
_MEND = "convert the model again"


@dataclass(frozen=True)
class Published:
    """A file as the hub should have it.

    Attributes:
        name: Its path in the folder and in the repository.
        nbytes: Its size.
        sha256: In hexadecimal.
        source: Where its bytes are: a file here, or the bytes themselves.
    """

    name: str
    nbytes: int
    sha256: str
    source: Path | bytes

    def git_id(self) -> str:
        """The name that git, and so the hub, gives to a small file.

        Raises:
            VerifyError: It is not any more what the receipt says.
        """
        content = self.source
        if isinstance(content, Path):
            content = disk.read_whole(content, self.nbytes)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise VerifyError(self.name, "has changed since it was checked", _MEND)
        head = b"blob %d\0" % len(content)
        return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Publication:
    """All that is uploaded.

    Attributes:
        folder: Where it lies.
        files: By name.
        base_model: The hub repository that the model was made from, if it was one.
        left_out: What else lies in the folder.
    """

    folder: Path
    files: Mapping[str, Published]
    base_model: str | None
    left_out: tuple[str, ...]


def read_publication(folder: Path, repo_id: str) -> Publication:
    """Read the receipt, check that its files are there, and make the card for the repository.

    Raises:
        SourceError: The folder is not a whole one of ours.
        DiskError: It can't be read.
    """
    if not disk.is_folder(folder):
        raise SourceError(folder, "there is no such folder", "check the path")
    if is_staging(folder.absolute()):
        raise SourceError(folder, "is a conversion that never finished", "run convert again")
    names = disk.list_folder(folder)
    if FILE not in names:
        raise SourceError(folder, f"has no {FILE}, so it can't be published", _MEND)
    findings = Findings()
    listed = read_receipt(folder, findings)
    if listed is not None:
        check_files(folder, listed, findings)
    for found in findings.problems:
        raise SourceError(found.where, found.what, found.mend)
    receipt = read_json_object(file_in(folder, FILE), SourceError, _RECEIPT_LIMIT)
    files = {
        entry["file"]: Published(
            entry["file"], entry["bytes"], entry["sha256"], file_in(folder, entry["file"])
        )
        for entry in (*receipt["shards"], *receipt["files"])
    }
    try:
        base = base_model(receipt)
        if README in files:
            files[README] = _card(files[README], receipt, repo_id)
        files[FILE] = _of_bytes(FILE, _public(receipt, files))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            folder / FILE, "is not a receipt of this version's form", _MEND
        ) from error
    known = {name.partition("/")[0] for name in files}
    return Publication(folder, files, base, tuple(name for name in names if name not in known))


def _card(file: Published, receipt: Mapping[str, Any], repo_id: str) -> Published:
    file.git_id()  # holds it against the receipt
    path = file.source
    text = disk.read_whole(path, _CARD_LIMIT).decode() if isinstance(path, Path) else ""
    return _of_bytes(README, card_for_repository(text, receipt, repo_id).encode())


def _of_bytes(name: str, content: bytes) -> Published:
    return Published(name, len(content), hashlib.sha256(content).hexdigest(), content)


def _public(receipt: Mapping[str, Any], files: Mapping[str, Published]) -> bytes:
    """The receipt for the repository: with its card, and without paths of this machine."""
    source, card = receipt["source"], files.get(README)
    folders = [f"{Path.home()}/"]
    if not source["repo_id"]:
        given = Path(source["given"])
        folders = [f"{given.absolute()}/", f"{given}/", *folders]
        source = source | {"given": "a local folder"}
    public = {key: _pathless(value, folders) for key, value in receipt.items()}
    public["source"] = source
    public["files"] = [
        entry | {"bytes": card.nbytes, "sha256": card.sha256}
        if card is not None and entry["file"] == README
        else entry
        for entry in receipt["files"]
    ]
    return json.dumps(public, indent=2, ensure_ascii=False).encode() + b"\n"


def _pathless(value: Any, folders: Sequence[str]) -> Any:
    """The same without the names of folders that only the user has."""
    if isinstance(value, dict):
        return {key: _pathless(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [_pathless(item, folders) for item in value]
    if not isinstance(value, str):
        return value
    for folder in folders:
        value = value.replace(folder, "")
    return PurePath(value).name if value.startswith(("/", "~/")) else value
