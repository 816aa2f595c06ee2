"""Models on the Hugging Face hub: what the local cache has, and how the rest gets there.

Owns the one call that pins a commit, its retries, and what the hub's errors mean to a
user. The library does the downloading, the cache and the tokens; no token and no text
of a server is ever shown. Importing this module imports `huggingface_hub`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, ModelInfo, constants, get_session, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from checkpoint.folder import (
    CARRIED_PATTERNS,
    CONFIG,
    CONFIG_PATTERNS,
    README,
    TOKENIZER_PATTERNS,
    WEIGHT_PATTERNS,
    WEIGHTS,
    WEIGHTS_INDEX,
    files_like,
    matches,
    shown,
)
from checkpoint.json_file import quoted
from checkpoint.shards import read_index
from configs.errors import HubError, SourceError

_PATTERNS = [*WEIGHT_PATTERNS, *CONFIG_PATTERNS, *CARRIED_PATTERNS, README]
_TIMEOUT = 10.0
# Seconds to wait before each further try of the first call.
_WAITS = (1.0, 3.0)
# Of git's rules for names, those that keep a name inside the cache's folder.
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./+@-]*")
_LOGIN = "log in with `hf auth login`"


def cached_snapshot(repo_id: str, revision: str | None) -> Path | None:
    """The folder of the model in the local cache, if it is complete; asks no network."""
    _check_revision(repo_id, revision)
    with _library_silent(), _explained(repo_id, revision):
        try:
            path = snapshot_download(
                repo_id, revision=revision, allow_patterns=_PATTERNS, local_files_only=True
            )
        except LocalEntryNotFoundError:
            return None
    return Path(path) if _is_complete(Path(path)) else None


def download_snapshot(repo_id: str, revision: str | None, *, bars: bool = False) -> Path:
    """Download what a conversion needs of the model, all of one commit, into the cache.

    Args:
        repo_id: The hub's name of the model.
        revision: A branch, tag or commit; None for the main branch.
        bars: Show the library's progress bars on stderr.

    Raises:
        HubError: It does not exist, may not be read, has no safetensors, or the hub can't
            be reached.
    """
    _check_revision(repo_id, revision)
    with _library_silent(bars=bars), _explained(repo_id, revision):
        info = _pinned(repo_id, revision)
        names = [sibling.rfilename for sibling in info.siblings or []]
        if not any(matches(name, WEIGHT_PATTERNS) for name in names):
            what = f"has no model*.safetensors, only {shown(names)}" if names else "is empty"
            raise HubError(repo_id, what, "choose a repository with safetensors")
        commit = str(info.sha)
        get_session().timeout = _TIMEOUT
        snapshot = Path(snapshot_download(repo_id, revision=commit, allow_patterns=_PATTERNS))
    _remember(snapshot, revision or constants.DEFAULT_REVISION, commit)
    return snapshot


def _check_revision(repo_id: str, revision: str | None) -> None:
    if revision is not None and not _REVISION.fullmatch(revision):
        what = f"can't have a revision {quoted(revision)}"
        raise HubError(repo_id, what, "give a branch, a tag or a commit")


def _is_complete(folder: Path) -> bool:
    """Whether all that a conversion can't do without is there.

    The library knows what is missing only where it has the repository's list of files,
    which a folder filled by single downloads has not.
    """
    if not (folder / CONFIG).exists() or not files_like(folder, TOKENIZER_PATTERNS):
        return False
    if not (folder / WEIGHTS_INDEX).exists():
        return (folder / WEIGHTS).exists()
    try:
        shards = set(read_index(folder).weight_map.values())
    except SourceError:
        return True  # no download would mend it: let it be read and named
    return all((folder / shard).exists() for shard in shards)


def _pinned(repo_id: str, revision: str | None) -> ModelInfo:
    """What the hub says of the model at this revision, its commit above all."""
    for wait in _WAITS:
        try:
            return HfApi().model_info(repo_id, revision=revision, timeout=_TIMEOUT)
        except (HfHubHTTPError, httpx2.TimeoutException) as error:
            if isinstance(error, HfHubHTTPError) and not _may_pass(error):
                raise
        time.sleep(wait)
    return HfApi().model_info(repo_id, revision=revision, timeout=_TIMEOUT)


def _may_pass(error: HfHubHTTPError) -> bool:
    return error.response.status_code == 429 or error.response.status_code >= 500


def _remember(snapshot: Path, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch or tag was, so that the next run asks nobody.

    The library does so itself when it is given a branch; it was given the pinned commit.
    """
    if snapshot.name == revision:
        return
    ref = snapshot.parents[1] / "refs" / revision
    with contextlib.suppress(OSError):  # a cache that can't be written to still serves
        ref.parent.mkdir(parents=True, exist_ok=True)
        new = ref.with_name(f"{ref.name}.{os.getpid()}")
        new.write_text(commit)
        new.replace(ref)


@contextlib.contextmanager
def _library_silent(*, bars: bool = False) -> Iterator[None]:
    """Keep the library's own warnings off stderr, which is ours, and unless told its bars."""
    verbosity, bars_off = hub_logging.get_verbosity(), are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.ERROR)
    if not bars:
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if not bars_off:
            enable_progress_bars()


@contextlib.contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the library raises into one line that says what to do."""
    try:
        yield
    except LocalEntryNotFoundError as error:  # the library's word for many causes
        raise _explanation(repo_id, revision, error.__cause__ or error) from error
    except (OSError, httpx2.HTTPError, XetDownloadError, FileMetadataError) as error:
        raise _explanation(repo_id, revision, error) from error
    except (json.JSONDecodeError, TypeError, KeyError) as error:  # an answer of another shape
        what = f"{_host()} does not answer like a hub"
        raise HubError(repo_id, what, "check HF_ENDPOINT and the proxy") from error


def _explanation(repo_id: str, revision: str | None, error: BaseException) -> HubError:
    again = "run it again; what is downloaded stays"
    match error:
        case OfflineModeIsEnabled():
            what, mend = "is not complete in the local cache", "unset HF_HUB_OFFLINE to download it"
        case GatedRepoError():
            what = "is gated: its owner grants access"
            mend = f"ask for it at https://{_host()}/{repo_id}, then {_LOGIN}"
        case RepositoryNotFoundError():
            what = "is neither a folder here nor a public model on the hub"
            mend = f"check the name, or {_LOGIN} if it is private"
        case RevisionNotFoundError():
            what = f"has no revision {quoted(revision or constants.DEFAULT_REVISION)}"
            mend = "give a branch, a tag or a commit that it has"
        case DisabledRepoError():
            what, mend = "was disabled by the hub", "choose another model"
        case HfHubHTTPError():
            what, mend = _status(error.response.status_code)
        case httpx2.HTTPError():
            what, mend = f"{_host()} can't be reached", f"check the network, then {again}"
        case FileMetadataError():
            what = f"{_host()} does not answer like a hub"
            mend = "check HF_ENDPOINT and the proxy"
        case OSError(errno=int(number)):
            what = f"can't be written to the cache: {os.strerror(number)}"
            mend = f"make room in {constants.HF_HUB_CACHE}, or set HF_HOME to another disk"
        case _:
            what, mend = "did not arrive whole", again
    return HubError(repo_id, what, mend)


def _status(code: int) -> tuple[str, str]:
    if code == 401:
        return "the hub does not accept the token", _LOGIN
    if code == 403:
        return "the hub forbids access with this token", f"{_LOGIN} and a token that may read it"
    if code == 429:
        return "the hub asks for fewer requests (429)", f"wait a few minutes, or {_LOGIN}"
    if code >= 500:
        return f"the hub has a fault of its own ({code})", "try again in a few minutes"
    return f"the hub refused with status {code}", "check the name and the revision"


def _host() -> str:
    return urlsplit(constants.ENDPOINT).hostname or "the hub"
