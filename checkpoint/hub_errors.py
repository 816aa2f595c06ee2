"""What the hub's errors mean to a user: one line each, without tokens or a server's text.

Owns the explanation of every error that `huggingface_hub` and its HTTP client raise, and
which of them pass by themselves. Importing this module imports `huggingface_hub`.
"""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from checkpoint.json_file import quoted
from configs.command import warn
from configs.errors import HubError

# Seconds that a server may make us wait before a further try.
LONGEST_WAIT = 120
_LOGIN = "log in with `hf auth login`"
_AGAIN = "run it again; what is downloaded stays"
_NO_HUB = "check HF_ENDPOINT and the proxy"


@contextlib.contextmanager
def explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the library raises into one line that says what to do."""
    try:
        yield
    except LocalEntryNotFoundError as error:  # the library's word for many causes
        meant = _explanation(repo_id, revision, error.__cause__ or error)
        raise meant from without_secrets(error)
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, XetDownloadError) as error:
        raise _explanation(repo_id, revision, error) from without_secrets(error)
    except UnicodeEncodeError as error:  # a header must be ASCII
        raise _bad_token(repo_id) from without_secrets(error)
    except (FileMetadataError, json.JSONDecodeError, TypeError, KeyError) as error:
        # An answer of another shape.
        what = f"{host()} does not answer like a hub"
        raise HubError(repo_id, what, _NO_HUB) from without_secrets(error)


def may_pass(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        return (code in (408, 429) or code >= 500) and (wait_asked(error) or 0) <= LONGEST_WAIT
    return isinstance(
        error, httpx2.TimeoutException | httpx2.NetworkError | httpx2.RemoteProtocolError
    )


def seconds_to_wait(error: Exception, least: float) -> float:
    """How long to wait before a further try; said on stderr where it is the server's wish."""
    asked = wait_asked(error) or 0.0
    if asked > least:
        warn(f"{host()} asks to wait {asked:.0f} seconds")
    return max(asked, least)


def wait_asked(error: Exception) -> float | None:
    """Seconds that the server asks to wait; None if it does not."""
    return seconds_asked(error.response) if isinstance(error, HfHubHTTPError) else None


def seconds_asked(response: httpx2.Response) -> float | None:
    """What Retry-After, or the hub's own header, says; a date in it counts as nothing."""
    if response.status_code == 429:
        limit = parse_ratelimit_headers(response.headers)
        if limit is not None and limit.remaining == 0:
            return float(limit.reset_in_seconds)
    text = response.headers.get("Retry-After", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def host() -> str:
    """The hub's name, for messages."""
    return _endpoint().hostname or "the hub"


def _explanation(repo_id: str, revision: str | None, error: BaseException) -> HubError:
    match error:
        case OfflineModeIsEnabled():
            what, mend = "is not complete in the local cache", "unset HF_HUB_OFFLINE to download it"
        case GatedRepoError():
            what = "is gated: its owner grants access"
            mend = f"ask for it at https://{host()}/{repo_id}, then {_LOGIN}"
        case RepositoryNotFoundError():
            what = "is neither a folder here nor a public model on the hub"
            mend = f"check the name, or {_LOGIN} if it is private"
        case RevisionNotFoundError():
            what = f"has no revision {quoted(revision or constants.DEFAULT_REVISION)}"
            mend = "give a branch, a tag or a commit that it has"
        case RemoteEntryNotFoundError():
            what = "lacks a file that the hub lists (404)"
            mend = "try again in a few minutes, or choose another revision"
        case DisabledRepoError():
            what, mend = "was disabled by the hub", "choose another model"
        case HfHubHTTPError():
            what, mend = _status(error)
        case httpx2.LocalProtocolError():
            return _bad_token(repo_id)
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            what, mend = "HF_ENDPOINT is not an address", "give it as https://host"
        case httpx2.HTTPError():
            what, mend = network_fault(error)
        case FileMetadataError():
            what, mend = f"{host()} does not answer like a hub", _NO_HUB
        case OSError(errno=int(number)):
            what = f"can't be written to the cache: {os.strerror(number)}"
            mend = f"make room in {constants.HF_HUB_CACHE}, or set HF_HOME to another disk"
        case _:
            what, mend = "did not arrive whole", _AGAIN
    return HubError(repo_id, what, mend)


def _status(error: HfHubHTTPError) -> tuple[str, str]:
    code, asked = error.response.status_code, wait_asked(error)
    wait = f"wait {asked:.0f} seconds" if asked else "wait a few minutes"
    if code == 401:
        return "the hub does not accept the token", _LOGIN
    if code == 403:
        return "the hub forbids access with this token", f"{_LOGIN} and a token that may read it"
    if code == 429:
        return "the hub asks for fewer requests (429)", f"{wait}, or {_LOGIN}"
    if code >= 500:
        what = f"the hub has a fault of its own ({code})"
        return what, f"{wait} and {_AGAIN}" if asked else f"try again in a few minutes; {_AGAIN}"
    return f"the hub refused with status {code}", "check the name and the revision"


def network_fault(error: httpx2.HTTPError) -> tuple[str, str]:
    try:
        other = error.request.url.host or host()  # files may come from another host
    except RuntimeError:
        other = host()
    mend = f"check the network, then {_AGAIN}"
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return f"{other} can't be reached", mend
    if isinstance(error, httpx2.TimeoutException):
        return f"{other} does not answer in time", mend
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return f"the connection to {other} was cut", mend
    return f"{other} does not answer like a hub", _NO_HUB


def _bad_token(repo_id: str) -> HubError:
    return HubError(repo_id, "the hub token holds a character that no token has", _LOGIN)


def without_secrets(error: Exception) -> Exception | None:
    """The error as a cause for --debug to show; None if a token or a password is in it."""
    text = "".join(traceback.format_exception(error))
    shown = any(secret in text or repr(secret)[1:-1] in text for secret in _secrets())
    return None if shown else error


def _endpoint() -> SplitResult:
    try:
        return urlsplit(constants.ENDPOINT)
    except ValueError:  # it is no address, which the library will say
        return urlsplit("")


def _secrets() -> list[str]:
    """What no message may hold; read without the library, which may ask the network."""
    given = [os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")]
    given.append(_endpoint().password)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        given.append(Path(constants.HF_TOKEN_PATH).read_text())
    return [secret.strip() for secret in given if secret and secret.strip()]
