"""How we talk to the hub: a quiet library, bounded waits, one pinned commit.

Owns the settings of the library's HTTP session while it is ours, the patience of the
calls that the library does not repeat itself, and the list of a repository's files with
what each should hash to. Importing this module imports `huggingface_hub`.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_url, set_client_factory
from huggingface_hub.errors import FileMetadataError, HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from checkpoint.digests import Digest
from checkpoint.hub_errors import (
    LONGEST_WAIT,
    explained,
    host,
    may_pass,
    seconds_asked,
    seconds_to_wait,
)
from checkpoint.json_file import quoted
from configs.errors import HubError

T = TypeVar("T")

TIMEOUT = 10.0
# Seconds to wait before each further try.
WAITS = (1.0, 3.0)
# Of git's rules for names, those that keep a name inside the cache's folder.
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./+@-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at one commit.

    Attributes:
        name: Its path in the repository.
        url: Where it is downloaded.
        size: Its bytes; None if the hub does not say.
        digest: What it should hash to; None if the hub does not say.
        large: Whether it is kept apart from git, in LFS or Xet.
    """

    name: str
    url: str
    size: int | None
    digest: Digest | None
    large: bool


@dataclass(frozen=True)
class Listing:
    """A repository's files at the commit that its revision meant when we asked."""

    commit: str
    files: dict[str, HubFile]


@contextlib.contextmanager
def talking(repo_id: str, revision: str | None, *, bars: bool = False) -> Iterator[None]:
    """Use the library in this block: our session, no noise, errors explained.

    Args:
        repo_id: The model, for messages.
        revision: What was asked for, likewise.
        bars: Let the library show its own bars.

    Raises:
        HubError: In place of whatever the library raises.
    """
    if revision is not None and not _REVISION.fullmatch(revision):
        what = f"can't have a revision {quoted(revision)}"
        raise HubError(repo_id, what, "give a branch, a tag or a commit")
    verbosity, bars_off = hub_logging.get_verbosity(), are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.CRITICAL)
    if not bars:
        disable_progress_bars()
    set_client_factory(_session)
    try:
        with explained(repo_id, revision):
            yield
    finally:
        set_client_factory(default_client_factory)
        hub_logging.set_verbosity(verbosity)
        if not bars_off:
            enable_progress_bars()


def list_files(repo_id: str, revision: str | None) -> Listing:
    """Ask the hub once what the revision is, and what is in it.

    Raises:
        HubError: The answer is not one of a hub.
    """
    info = patiently(lambda: _model_info(repo_id, revision))
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise HubError(repo_id, f"{host()} gives no commit", "check HF_ENDPOINT and the proxy")
    files = {}
    for sibling in info.siblings or []:
        url = hf_hub_url(repo_id, sibling.rfilename, revision=info.sha)
        lfs = sibling.lfs
        size = lfs.size if lfs else sibling.size
        files[sibling.rfilename] = HubFile(
            sibling.rfilename,
            url,
            size if type(size) is int and size >= 0 else None,
            Digest.named(lfs.sha256 if lfs else sibling.blob_id),
            lfs is not None,
        )
    return Listing(info.sha, files)


def _model_info(repo_id: str, revision: str | None) -> ModelInfo:
    try:
        return HfApi().model_info(repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except UnicodeEncodeError:  # of a header
        raise
    except (ValueError, AttributeError) as error:  # what the library can't make sense of
        raise FileMetadataError(f"no model info of {repo_id}") from error


def patiently(ask: Callable[[], T]) -> T:
    """Do what asks the hub, and again after a while if its fault is one that passes."""
    for wait in WAITS:
        try:
            return ask()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            if not may_pass(error):
                raise
            time.sleep(seconds_to_wait(error, wait))
    return ask()


def revision_name(revision: str | None) -> str:
    """The branch, tag or commit that is meant."""
    return revision or constants.DEFAULT_REVISION


def _session() -> httpx2.Client:
    client = default_client_factory()
    client.timeout = TIMEOUT
    client.event_hooks["response"].append(_refuse_long_waits)
    return client


def _refuse_long_waits(response: httpx2.Response) -> None:
    """Fail at once where the library would sleep as long as a server likes."""
    if response.is_error and (seconds_asked(response) or 0) > LONGEST_WAIT:
        hf_raise_for_status(response)
