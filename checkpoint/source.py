"""From what the user names to a complete local folder: a path, or a model on the hub.

Owns the decision which of the two is meant. The hub itself is asked by `checkpoint.hub`,
which is imported only when it is.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from checkpoint import disk
from checkpoint.json_file import quoted
from configs.errors import SourceError


@dataclass(frozen=True)
class SourceFolder:
    """A local folder that holds a model, and where it came from.

    Attributes:
        path: The folder.
        origin: "local" for a path that was given, "hub" for one in the hub's cache.
        repo_id: The hub's name of the model, such as "Qwen/Qwen3-0.6B".
        commit: The commit of the hub's repository that the folder holds.
    """

    path: Path
    origin: Literal["local", "hub"]
    repo_id: str | None = None
    commit: str | None = None


def resolve_source(named: str, revision: str | None = None, *, quiet: bool = False) -> SourceFolder:
    """Find or fetch the folder that the user means.

    Args:
        named: A folder's path, or a hub id `org/name`.
        revision: A branch, tag or commit of the hub's repository.
        quiet: Show no progress of a download; off a terminal there is none anyway.

    Raises:
        SourceError: It is neither a folder nor a hub id.
        HubError: The hub does not have it, or can't be reached.
        DiskError: The path can't be looked at.
    """
    path = _expanded(named)
    if named.strip() and disk.is_folder(path):
        if revision is not None:
            mend = "leave the revision out, or give a hub id"
            raise SourceError(named, "is a local folder, which has no revisions", mend)
        return SourceFolder(path, "local")
    if path.is_file():
        raise SourceError(named, "is a file, not a folder", "give the folder that holds it")
    if not _is_hub_id(named):
        mend = "check the path; a model on the hub is named as org/name"
        raise SourceError(quoted(named), "there is no such folder", mend)

    from checkpoint.hub import cached_snapshot, download_snapshot

    snapshot = cached_snapshot(named, revision)
    if snapshot is None:
        snapshot = download_snapshot(named, revision, bars=not quiet and sys.stderr.isatty())
    return SourceFolder(snapshot, "hub", named, snapshot.name)


def _expanded(named: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError:  # `~name` of nobody here
        return Path(named)


def _is_hub_id(named: str) -> bool:
    if named.count("/") != 1:
        return False

    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(named)
    except HFValidationError:
        return False
    return True
