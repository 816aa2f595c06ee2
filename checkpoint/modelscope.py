"""Models on ModelScope, by its own client, which is an extra: `mlx-ferry[modelscope]`.

Owns the choice of files, their check against the hashes that ModelScope lists, and what
the client's errors mean to a user. The client does the downloading, its cache and its
tokens; a token of the Hugging Face hub never reaches it. Importing this module does not
import the client.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint import own_cache
from checkpoint.digests import Digest
from checkpoint.folder import CONFIG
from checkpoint.json_file import quoted
from checkpoint.modelscope_errors import NoConnectionError, explained
from checkpoint.needed_files import needed_others, needed_weights
from checkpoint.shards import ShardIndex, read_catalog, read_index
from checkpoint.verified import Expected, check_files
from configs.command import warn
from configs.errors import FerryError, HubError, SourceError

if TYPE_CHECKING:
    from modelscope_hub import FileInfo, HubApi

_MANIFEST = "modelscope-files"
_DEFAULT_REVISION = "master"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# A revision names a folder in the client's cache.
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./+@-]*")
_THERE = "ModelScope"


def snapshot(repo_id: str, revision: str | None, *, quiet: bool = False) -> tuple[Path, str | None]:
    """A local folder with what a conversion needs of a model on ModelScope.

    One that we have filled before, and that is whole, asks no network.

    Args:
        repo_id: ModelScope's name of the model, `org/name`.
        revision: A branch, tag or commit; None for the branch `master`.
        quiet: Show no progress on stderr.

    Returns:
        The folder, and the commit if one was asked for; ModelScope names no others.

    Raises:
        HubError: The client is not installed, the model does not exist or may not be
            read, or ModelScope can't be reached.
        SourceError: A file is not what ModelScope says it is.
    """
    wanted = revision or _DEFAULT_REVISION
    if not _REVISION.fullmatch(wanted):
        mend = "give a branch, a tag or a commit"
        raise HubError(_called(repo_id), f"can't have a revision {quoted(wanted)}", mend)
    commit = wanted if _COMMIT.fullmatch(wanted) else None
    with _talking(repo_id, wanted, bars=not quiet and sys.stderr.isatty()):
        api = _api()
        cached = _cached(api, repo_id, wanted)
    if cached is not None and _is_whole(cached, repo_id, wanted, quiet=quiet):
        return cached, commit
    try:
        return _download(api, repo_id, wanted, quiet=quiet), commit
    except NoConnectionError:
        if cached is None or not _is_readable(cached):
            raise
        warn(f"{_called(repo_id)}: {_THERE} can't be reached; {cached} is used unchecked")
        return cached, commit


def _api() -> HubApi:
    from modelscope_hub import HubApi, HubConfig

    return HubApi(HubConfig())  # of the environment as it is now


def _cached(api: HubApi, repo_id: str, revision: str) -> Path | None:
    from modelscope_hub import CacheNotFound

    try:
        return api.download_repo(repo_id, "model", revision=revision, local_files_only=True)
    except CacheNotFound:
        return None


def _is_whole(folder: Path, repo_id: str, revision: str, *, quiet: bool) -> bool:
    """Whether the folder holds what we once downloaded into it, unchanged."""
    noted = own_cache.recall(_MANIFEST, f"{repo_id}@{revision}")
    files = noted.get("files")
    if noted.get("folder") != str(folder) or not isinstance(files, dict) or not files:
        return False
    expected = []
    for name, entry in files.items():
        match entry:
            case [int(size), str(value)] if (folder / name).exists():
                expected.append(Expected(folder / name, size, Digest.named(value)))
            case _:
                return False
    try:
        check_files(expected, _THERE, quiet=quiet)
    except SourceError:
        return False  # the client fetches again what is damaged
    return True


def _is_readable(folder: Path) -> bool:
    try:
        return (folder / CONFIG).exists() and bool(read_catalog(folder))
    except FerryError:
        return False


def _download(api: HubApi, repo_id: str, revision: str, *, quiet: bool) -> Path:
    with _talking(repo_id, revision, bars=not quiet and sys.stderr.isatty()):
        from modelscope_hub import HubApi, HubConfig

        endpoint = api.resolve_endpoint_for_read(repo_id)
        api = HubApi(HubConfig(endpoint=endpoint))
        listed = api.list_repo_files(repo_id, "model", revision=revision)
        files = {file.path: file for file in listed if not file.is_dir}

        def bring(names: Iterable[str]) -> Path:
            chosen = [_entry(files[name]) for name in names]
            return api.download_repo(repo_id, "model", revision=revision, file_list=chosen)

        def index(name: str) -> ShardIndex:
            return read_index(bring([name]), name)

        names = [*needed_others(files), *needed_weights(_called(repo_id), files, index)]
        folder = bring(names)
    check_files([_expected(folder, files[name]) for name in names], _THERE, quiet=quiet)
    known = {name: [files[name].size, files[name].sha256] for name in names}
    key = f"{repo_id}@{revision}"
    own_cache.note_down(_MANIFEST, key, {"folder": str(folder), "files": known})
    return folder


def _entry(file: FileInfo) -> dict[str, Any]:
    """A file of the list as the client takes it back; it takes no size for none."""
    return {"Path": file.path, "Size": file.size or None, "Sha256": file.sha256}


def _expected(folder: Path, file: FileInfo) -> Expected:
    digest = Digest.named(file.sha256)
    return Expected(folder / file.path, file.size or None, digest)


@contextlib.contextmanager
def _talking(repo_id: str, revision: str, *, bars: bool) -> Iterator[None]:
    """Use the client in this block: nothing of its own on stdout, its errors explained."""
    with explained(_called(repo_id), revision), contextlib.ExitStack() as stack:
        import modelscope_hub  # noqa: F401 -- so that it has made its logger

        logger = logging.getLogger("modelscope_hub")
        level = logger.level
        stack.callback(logger.setLevel, level)
        logger.setLevel(logging.CRITICAL + 1)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not bars:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def _called(repo_id: str) -> str:
    return f"modelscope:{repo_id}"
