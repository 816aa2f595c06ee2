"""From what the user names to a complete local folder: a path, or a model on a hub.

Owns the decision which of them is meant. The hubs themselves are asked by
`checkpoint.hub` and `checkpoint.modelscope`, which are imported only when they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from checkpoint import disk
from checkpoint.json_file import quoted
from configs.errors import HubError, SourceError

_MODELSCOPE = "modelscope:"
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
_MODELSCOPE_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class SourceFolder:
    """A local folder that holds a model, and where it came from.

    Attributes:
        path: The folder.
        origin: "local" for a path that was given, "hub" or "modelscope" for one in the
            cache of that hub.
        repo_id: The hub's name of the model, such as "Qwen/Qwen3-0.6B".
        commit: The commit of the hub's repository that the folder holds; ModelScope does
            not say, unless one was asked for.
    """

    path: Path
    origin: Literal["local", "hub", "modelscope"]
    repo_id: str | None = None
    commit: str | None = None


def resolve_source(
    named: str, revision: str | None = None, *, quiet: bool = False, code: bool = False
) -> SourceFolder:
    """Find or fetch the folder that the user means.

    Args:
        named: A folder's path, a hub id `org/name`, or `modelscope:org/name`.
        revision: A branch, tag or commit of the hub's repository.
        quiet: Show no progress of a download or a check.
        code: Bring the model's own Python files too, from the Hugging Face hub.

    Raises:
        SourceError: It is neither a folder nor a hub id, or what the cache holds is damaged.
        HubError: The hub does not have it, or can't be reached.
        DiskError: The path can't be looked at.
    """
    path = _expanded(named)
    if named.strip() and disk.is_folder(path):
        if revision is not None:
            mend = "leave the revision out, or give a hub id"
            raise SourceError(named, "is a local folder, which has no revisions", mend)
        return SourceFolder(path, "local")
    if path.is_file() and path.suffix.lower() == ".gguf":
        return SourceFolder(path, "local")
    if path.is_file():
        raise SourceError(named, "is a file, not a folder", "give the folder that holds it")
    if named.startswith(_MODELSCOPE):
        return _on_modelscope(named.removeprefix(_MODELSCOPE), revision, quiet=quiet)
    if not _is_hub_id(named):
        mend = "check the path; a model on the hub is named as org/name"
        if (address := _ADDRESS.match(named)) is not None:
            mend = f"a model on the hub is named as org/name: {address[1]}"
        raise SourceError(quoted(named), "there is no such folder", mend)

    from checkpoint.hub import cached_snapshot, download_snapshot

    try:
        snapshot = cached_snapshot(named, revision, quiet=quiet, code=code)
        if snapshot is None:
            snapshot = download_snapshot(named, revision, quiet=quiet, code=code)
    except HubError as error:
        if "a folder" in error.what or not disk.is_folder(path.parent):
            raise
        told = f"{error.mend}; if a local folder is meant, there is none of this name"
        raise type(error)(error.where, error.what, told) from error
    return SourceFolder(snapshot, "hub", named, snapshot.name)


def _on_modelscope(repo_id: str, revision: str | None, *, quiet: bool) -> SourceFolder:
    if not _MODELSCOPE_ID.fullmatch(repo_id):
        mend = "name a model there as modelscope:org/name"
        raise SourceError(quoted(_MODELSCOPE + repo_id), "is no id of ModelScope", mend)

    from checkpoint.modelscope import snapshot

    folder, commit = snapshot(repo_id, revision, quiet=quiet)
    return SourceFolder(folder, "modelscope", repo_id, commit)


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
