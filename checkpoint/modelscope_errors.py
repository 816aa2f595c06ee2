"""What the errors of ModelScope's client mean to a user: one line each.

Owns the explanation alone. Importing this module does not import the client.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from checkpoint.json_file import quoted
from configs.errors import FerryError, HubError

_AGAIN = "run it again; what is downloaded stays"
_LOGIN = "set MODELSCOPE_API_TOKEN to a token that may read it"


class NoConnectionError(HubError):
    """ModelScope can't be reached."""


@contextlib.contextmanager
def explained(where: str, revision: str) -> Iterator[None]:
    """Turn what the client raises into one line that says what to do."""
    try:
        import modelscope_hub  # noqa: F401
        from requests import RequestException
    except ImportError as error:
        what = "needs ModelScope's own client, which is not installed"
        raise HubError(where, what, "pip install 'mlx-ferry[modelscope]'") from error
    from modelscope_hub import HubError as ClientError

    try:
        yield
    except FerryError:
        raise
    except (ClientError, RequestException, OSError) as error:
        raise _explanation(where, revision, error) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # an answer of another shape
        raise _no_modelscope(where) from error


def _explanation(where: str, revision: str, error: Exception) -> HubError:
    from modelscope_hub import errors
    from requests import RequestException

    while isinstance(error, errors.FileDownloadError) and error.failed_files:
        first = next(iter(error.failed_files.values()))
        if not isinstance(first, Exception):
            break
        error = first
    status = getattr(error, "status_code", None)
    match error:
        case errors.NotExistError():
            what = f"ModelScope has no such model, or not its revision {quoted(revision)}"
            mend = f"check the name; if it is private, {_LOGIN}"
        case errors.AuthenticationError():
            what, mend = "ModelScope does not accept the token", _LOGIN
        case errors.PermissionDeniedError():
            what, mend = "ModelScope forbids access", f"ask for it on its page, and {_LOGIN}"
        case errors.RateLimitError():
            what, mend = "ModelScope asks for fewer requests (429)", "wait a few minutes"
        case errors.FileIntegrityError():
            what = "a file does not arrive as ModelScope lists it"
            mend = "run it again; if that does not help, ask whoever runs the mirror or proxy"
        case errors.RequestTimeoutError():
            what, mend = "ModelScope does not answer in time", f"check the network, then {_AGAIN}"
            return NoConnectionError(where, what, mend)
        case RequestException() if isinstance(error, ValueError):  # no JSON
            return _no_modelscope(where)
        case errors.NetworkError() | RequestException():
            what, mend = "ModelScope can't be reached", f"check the network, then {_AGAIN}"
            return NoConnectionError(where, what, mend)
        case errors.ServerError():
            what = f"ModelScope has a fault of its own ({status or 'it does not say which'})"
            mend = f"try again in a few minutes; {_AGAIN}"
        case errors.APIError() if isinstance(status, int):
            what = f"ModelScope refused with status {status}"
            mend = "check the name and the revision"
        case OSError(errno=int(number)):
            what = f"can't be written to ModelScope's cache: {os.strerror(number)}"
            mend = "make room there, or set MODELSCOPE_CACHE to another disk"
        case _:
            return _no_modelscope(where)
    return HubError(where, what, mend)


def _no_modelscope(where: str) -> HubError:
    what = "ModelScope does not answer as it should"
    return HubError(where, what, "check MODELSCOPE_ENDPOINT and the proxy")
