"""What went wrong on the way to the hub, in one line that says how to go on.

Owns the table from the library's errors to messages. No token is ever in one of them, and of a
server's words only those about a refused request, quoted and cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    BadRequestError,
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from checkpoint.hub_errors import host, network_fault, without_secrets
from checkpoint.json_file import quoted
from configs.errors import HubError

LOGIN = "log in with `hf auth login`"
_WRITE_TOKEN = "log in with `hf auth login` and a token that may write there"
_QUOTA_WORDS = ("quota", "storage limit", "storage space", "upgrade your plan")

_STATUSES = {
    402: ("the hub's storage for this account is used up", "free some there"),
    403: ("the hub does not let this token write there", _WRITE_TOKEN),
    404: ("the hub has no such repository, or the token may not see it", _WRITE_TOKEN),
    408: ("the hub took too long to answer", ""),
    409: ("the repository is being changed by someone else", "wait until that is done"),
    412: ("the repository was changed by someone else meanwhile", ""),
    413: ("the hub takes no file or commit of this size (413)", "use a smaller --max-shard-size"),
    429: ("the hub asks for fewer requests (429)", "wait a few minutes"),
}
_FAILURES = (
    OSError,
    httpx2.HTTPError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
)
# A token or an address that can't be sent: told by `checkpoint.hub_client.talking`.
_NOT_OURS = (UnicodeEncodeError, httpx2.LocalProtocolError, httpx2.UnsupportedProtocol)


@contextmanager
def explained(repo_id: str, go_on: str) -> Iterator[None]:
    """Turn what the library raises into one line.

    Args:
        repo_id: The repository.
        go_on: The command that goes on with the upload; empty where none was begun.

    Raises:
        HubError: For everything that the library raises.
    """
    try:
        yield
    except _NOT_OURS:
        raise
    except _FAILURES as error:
        what, mend = explanation(cause_of(error))
        then = f"go on with `{go_on}`" if go_on else ""
        mend = ", then ".join(filter(None, (mend, then)))
        raise HubError(repo_id, what, mend) from without_secrets(error)


def cause_of(error: Exception) -> Exception:
    """What is behind the library's "error while uploading"."""
    while type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def explanation(error: BaseException) -> tuple[str, str]:
    """What happened and how to mend it."""
    match error:
        case OfflineModeIsEnabled():
            return "can't be reached: HF_HUB_OFFLINE is set", "unset it"
        case DisabledRepoError():
            return "was disabled by the hub", "choose another repository"
        case GatedRepoError():
            return "is gated: its owner grants access", f"ask for it at https://{host()}"
        case HfHubHTTPError():
            return _refusal(error)
        case httpx2.HTTPError():
            return network_fault(error)[0], "check the network"
        case OSError(errno=None):  # of the transfer library, which tries for minutes
            return _transfer_fault(str(error))
        case OSError(errno=int(number)):
            where = f"{os.fsdecode(error.filename)} " if error.filename else ""
            return f"a file {where}can't be read: {os.strerror(number)}", ""
        case RuntimeError() | ValueError() if _about_quota(str(error)):
            return _STATUSES[402]
        case RuntimeError() | ValueError() if str(error) and not isinstance(error, JSONDecodeError):
            return f"the upload failed: {_shown(str(error))}", ""
        case _:
            return f"{host()} does not answer like a hub", "check HF_ENDPOINT and the proxy"


def _refusal(error: HfHubHTTPError) -> tuple[str, str]:
    code = error.response.status_code
    if code in (400, 403, 413) and _about_quota(error.server_message or ""):
        return _STATUSES[402]
    if isinstance(error, RepositoryNotFoundError):
        return _STATUSES[404]
    if code == 401:
        return "the hub does not accept the token", LOGIN
    if code >= 500:
        return f"the hub has a fault of its own ({code})", "wait a few minutes"
    if isinstance(error, BadRequestError) or code not in _STATUSES:
        said = f": {_shown(error.server_message)}" if error.server_message else ""
        return f"the hub refused the upload ({code}){said}", ""
    return _STATUSES[code]


def _transfer_fault(text: str) -> tuple[str, str]:
    """The library for large files names a status in words only."""
    found = re.search(r"\b([45]\d\d) [A-Z]", text)
    code = int(found[1]) if found else 0
    if code == 401:
        return _STATUSES[403]
    if code >= 500:
        return f"the hub's storage has a fault of its own ({code})", "wait a few minutes"
    return _STATUSES.get(code, ("the transfer to the hub's storage failed", "check the network"))


def _about_quota(text: str) -> bool:
    return any(word in text.lower() for word in _QUOTA_WORDS)


def _shown(text: str) -> str:
    token = get_token()
    if token:
        text = text.replace(token, "…")
    return quoted(" ".join(text.split()))


def repository_url(repo_id: str) -> str:
    """Where a person finds the repository; without the password of an endpoint that has one."""
    endpoint = urlsplit(constants.ENDPOINT)
    return f"{endpoint.scheme}://{endpoint.netloc.rpartition('@')[2]}{endpoint.path}/{repo_id}"
