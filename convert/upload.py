"""Publishes a verified model folder on the Hugging Face hub.

Owns the order of an upload: check, create, send what is missing, commit once, compare. The
repository is empty, old or whole at every moment, since all files come with one commit; what
was sent before an interruption is not sent again. The transfer itself is the hub's own client.
"""

from __future__ import annotations

import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    get_session,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, validate_repo_id  # type: ignore[attr-defined]

from checkpoint.folder import (
    CONFIG_PATTERNS,
    LICENSE_PATTERNS,
    PROCESSOR_PATTERNS,
    README,
    TOKENIZER_PATTERNS,
    WEIGHT_PATTERNS,
    matches,
    shown,
)
from checkpoint.hub_client import TIMEOUT, talking
from checkpoint.hub_errors import may_pass, seconds_to_wait
from checkpoint.json_file import quoted
from configs.command import warn
from configs.errors import HubError, UsageError, VerifyError
from convert.hub_upload_errors import LOGIN, cause_of, explained, repository_url
from convert.hub_upload_files import Publication, Published, read_publication
from convert.receipt import FILE

# Seconds before each further try; the client has shorter ones of its own for most requests.
_WAITS = (2.0, 10.0)
# A commit of many files may take the hub minutes to answer.
_TIMEOUT = httpx2.Timeout(TIMEOUT, read=300.0, write=300.0, pool=None)
# What a repository may hold beside a model, and every new one does.
_NO_MODEL = (".gitattributes", ".gitignore", README)
_OF_A_MODEL = WEIGHT_PATTERNS + CONFIG_PATTERNS + TOKENIZER_PATTERNS + PROCESSOR_PATTERNS
_FLAG = "--upload-repo"
_T = TypeVar("_T")


def check_upload(repo_id: str, *, private: bool) -> None:
    """Refuse an upload that could not go well, before the hours of a conversion.

    A hub that does not answer is no reason: it may, when the conversion is done.

    Args:
        repo_id: `ORG/NAME`.
        private: Whether the repository is to be private.

    Raises:
        UsageError: It is no repository's name.
        HubError: There is no token, or one that may not write; offline mode is set; the
            repository is there and public, though it should be private.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        what = f"{quoted(repo_id)} can't be a repository"
        raise UsageError(_FLAG, what, "give ORG/NAME") from error
    if repo_id.count("/") != 1:
        raise UsageError(_FLAG, f"{quoted(repo_id)} has no owner", "give ORG/NAME")
    if constants.is_offline_mode():
        raise HubError(_FLAG, "HF_HUB_OFFLINE is set, so nothing can be uploaded", "unset it")
    if get_token() is None:
        raise HubError(_FLAG, "there is no token for the hub", LOGIN)
    with talking(repo_id, None), explained(repo_id, ""):
        role = _role(_answer(HfApi().whoami))
        info = _answer(lambda: HfApi().model_info(repo_id)) if private else None
    if role == "read":
        raise HubError(repo_id, "the token may only read", f"{LOGIN} and a token that may write")
    if info is not None:
        _check_private(repo_id, info, private=private)


def upload(folder: Path, repo_id: str, *, private: bool, quiet: bool) -> str:
    """Upload a verified folder; the repository then holds it whole, and is held against it.

    Args:
        folder: A model folder of ours, just converted or just verified.
        repo_id: `ORG/NAME`; made if it is not there.
        private: Whether the repository is to be private.
        quiet: Show no progress, even on a terminal.

    Returns:
        The repository's URL.

    Raises:
        SourceError: The folder is not a whole one of ours.
        HubError: The hub refused, holds another model there, or can't be reached.
        VerifyError: What the hub holds afterwards is not what was sent.
    """
    publication = read_publication(folder, repo_id)
    if publication.left_out:
        warn(
            f"{folder}: not uploaded, since {FILE} does not list it: {shown(publication.left_out)}"
        )
    go_on = _command(folder, repo_id) + (" --private" if private else "")
    bars = not quiet and sys.stderr.isatty()
    with talking(repo_id, None, bars=bars), explained(repo_id, go_on), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's, on front matter
        for wait in (*_WAITS, None):
            try:
                _publish(publication, repo_id, private=private)
                break
            except (HfHubHTTPError, httpx2.HTTPError, RuntimeError) as error:
                cause = cause_of(error)
                if wait is None or not may_pass(cause):
                    raise
                time.sleep(seconds_to_wait(cause, wait))
    return repository_url(repo_id)


def _publish(publication: Publication, repo_id: str, *, private: bool) -> None:
    """One try; what the hub has already is found out first, and not sent again."""
    api, files = HfApi(), publication.files
    get_session().timeout = _TIMEOUT
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    info = api.model_info(repo_id)
    held = _held(api, repo_id, info.sha)
    _check_private(repo_id, info, private=private)
    _check_base(repo_id, info, held, publication)
    missing = [file for name, file in files.items() if not _same(held.get(name), file)]
    stale = [name for name in held if name not in files and matches(name, _OF_A_MODEL)]
    if not missing and not stale:
        return
    if stale:
        warn(f"{repo_id}: files of the model that was there go: {shown(stale)}")
    _check_card(files)
    additions = [CommitOperationAdd(file.name, file.source) for file in missing]
    for addition in additions:
        # One at a time, so that an interruption costs no more than one.
        if matches(addition.path_in_repo, WEIGHT_PATTERNS):
            api.preupload_lfs_files(repo_id, [addition], free_memory=False)
    commit = api.create_commit(
        repo_id,
        [*additions, *(CommitOperationDelete(name) for name in stale)],
        commit_message="Upload a model converted by mlx-ferry",
        parent_commit=info.sha,
    )
    held = _held(api, repo_id, commit.oid)
    wrong = [name for name, file in files.items() if not _same(held.get(name), file)]
    if wrong:
        raise VerifyError(
            repo_id, f"the hub has other bytes than were sent: {shown(wrong)}", "upload it again"
        )


def _held(api: HfApi, repo_id: str, revision: str | None) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _same(there: RepoFile | None, file: Published) -> bool:
    """Whether the hub has this very file, by the hash that it keeps of it."""
    if there is None or there.size != file.nbytes:
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == file.sha256)
    return bool(there.blob_id == file.git_id())


def _check_private(repo_id: str, info: ModelInfo, *, private: bool) -> None:
    if private and not info.private:
        mend = "make it private in its settings, or leave --private out"
        raise HubError(repo_id, "is there already, and public", mend)


def _check_base(
    repo_id: str, info: ModelInfo, held: Mapping[str, RepoFile], publication: Publication
) -> None:
    """Refuse a repository with another model: it is empty, of the same base, or ours already."""
    others = [
        name for name in held if name not in _NO_MODEL and not matches(name, LICENSE_PATTERNS)
    ]
    if not others or all(_same(held.get(name), file) for name, file in publication.files.items()):
        return
    base = getattr(info.card_data, "base_model", None)
    if publication.base_model is not None and base in (
        publication.base_model,
        [publication.base_model],
    ):
        return
    of = f", made from {quoted(base)}" if isinstance(base, str) else ""
    other = _command(publication.folder, "ORG/NAME")
    mend = f"empty it first, or choose another name with `{other}`"
    raise HubError(repo_id, f"holds another model{of}", mend)


def _command(folder: Path, repo_id: str) -> str:
    """What uploads the folder without making it again."""
    return shlex.join(["convert", "--verify", str(folder), "--upload-repo", repo_id])


def _check_card(files: Mapping[str, Published]) -> None:
    """Have the hub look at the front matter before anything is sent; afterwards is too late.

    Raises:
        HubError: It takes it not.
    """
    card = files.get(README)
    if card is None or not isinstance(card.source, bytes):
        return
    response = get_session().post(
        f"{constants.ENDPOINT}/api/validate-yaml",
        headers=build_hf_headers(),
        json={"content": card.source.decode(), "repoType": "model"},
    )
    if response.status_code == 400:
        errors = response.json().get("errors", [])
        said = "; ".join(str(error.get("message")) for error in errors)
        mend = "mend the README.md of the source, and convert again"
        raise HubError(README, f"the hub refuses its front matter: {quoted(said)}", mend)


def _answer(call: Callable[[], _T]) -> _T | None:
    """What the hub says; None if it has no such repository, or none at all for now."""
    try:
        return call()
    except RepositoryNotFoundError:
        return None
    except (HfHubHTTPError, httpx2.TransportError) as error:
        if isinstance(error, HfHubHTTPError):
            refused = error.response.status_code == 401
        else:
            refused = not may_pass(error)  # what can't even be sent
        if refused:
            raise
        return None


def _role(user: object) -> object:
    """What the token may do, as the hub's answer to "who am I" has it."""
    for key in ("auth", "accessToken", "role"):
        user = user.get(key) if isinstance(user, dict) else None
    return user
