"""Brings one large file over HTTP, so that a cut connection costs only what was in the air.

Owns the requests for the rest of a file, the partial file that outlives the process, the
bounded tries, and the hash of every byte before the file gets its name. Knows nothing of
repositories. Importing this module imports `huggingface_hub`, for its session and tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import httpx2
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from checkpoint import disk
from checkpoint.at_once import StoppedError
from checkpoint.digests import Digest, Hasher
from checkpoint.hub_errors import may_pass, seconds_to_wait
from configs.errors import HubError

# Seconds to wait before each further try, of those in a row that brought next to nothing.
WAITS = (1.0, 3.0, 9.0, 27.0)
_NEXT_TO_NOTHING = 1 << 20
_BLOCK = 1 << 20
_PART = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_LENGTH = re.compile(r"[0-9]{1,18}")
_IDENTITY = {"Accept-Encoding": "identity"}  # a compressed part is no part


class Part:
    """The beginning of a file that is on its way, and its hash so far.

    Args:
        fd: The open partial file.
        path: Where it lies.
        size: Bytes of the whole.
        digest: What the whole should hash to.
    """

    def __init__(self, fd: int, path: Path, size: int, digest: Digest) -> None:
        self.fd, self.path, self.size = fd, path, size
        self.done = 0
        self.hasher = Hasher(digest, size)

    def take_up(self, stop: Event) -> None:
        """Hash what an earlier run has left, and go on behind it."""
        left = disk.file_bytes(self.fd, self.path)
        if left > self.size:
            self.restart()
            return
        block = bytearray(min(left, _BLOCK))
        while self.done < left:
            if stop.is_set():
                raise StoppedError
            view = memoryview(block)[: left - self.done]
            disk.read_into(self.fd, self.path, view, self.done)
            self.hasher.update(view)
            self.done += len(view)

    def append(self, data: bytes) -> None:
        """Write the next bytes."""
        disk.write_at(self.fd, self.path, data, self.done)
        self.hasher.update(data)
        self.done += len(data)

    def restart(self) -> None:
        """Forget what is there."""
        disk.truncate(self.fd, self.path, 0)
        self.done = 0
        self.hasher = Hasher(self.hasher.digest, self.size)


def fetch(
    url: str,
    partial: Path,
    size: int,
    digest: Digest,
    tell: Callable[[int], None],
    stop: Event,
) -> None:
    """Fill the partial file up to the whole, and hold it to its hash.

    What is there already is kept. If the whole has another hash, it is fetched once
    more from its beginning; after that nothing of it is left.

    Args:
        url: Where the file is; the hub's token goes to this host alone.
        partial: The file to fill; an existing one is gone on with.
        size: Bytes of the whole.
        digest: What the whole should hash to.
        tell: Told of bytes as they come; of fewer than none when they came in vain.
        stop: Set by another thread to end the transfer.

    Raises:
        HubError: What comes is not what the hub says, time after time.
        DiskError: The partial file can't be written.
        HfHubHTTPError, httpx2.HTTPError: As the hub or the network says.
    """
    with _opened(partial) as fd:
        part = Part(fd, partial, size, digest)
        part.take_up(stop)
        tell(part.done)
        for last in (False, True):
            _fill(url, part, tell, stop)
            if part.hasher.matches:
                disk.fsync(fd, partial)  # before anyone notes that it was checked
                return
            found = part.hasher.found
            tell(-part.done)
            part.restart()
            if last:
                disk.remove(partial)
                what = f"arrived damaged, twice: its {found} should be {digest}"
                mend = "run it again; if that does not help, ask whoever runs the mirror or proxy"
                raise HubError(url_shown(url), what, mend)


def _fill(url: str, part: Part, tell: Callable[[int], None], stop: Event) -> None:
    fails = 0
    while part.done < part.size:
        before = part.done
        try:
            _request_rest(url, part, tell, stop)
        except (HfHubHTTPError, httpx2.TransportError) as error:
            if part.done - before >= _NEXT_TO_NOTHING:
                fails = 0
            if not may_pass(error) or fails >= len(WAITS):
                raise
            stop.wait(seconds_to_wait(error, WAITS[fails]))
            fails += 1


def _request_rest(url: str, part: Part, tell: Callable[[int], None], stop: Event) -> None:
    """One request for all that is still missing."""
    if stop.is_set():
        raise StoppedError
    headers = build_hf_headers() | _IDENTITY
    if part.done:
        headers["Range"] = f"bytes={part.done}-"
    with get_session().stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # what is here can't be a beginning of it
            tell(-part.done)
            part.restart()
            raise httpx2.RemoteProtocolError("the rest was refused", request=response.request)
        hf_raise_for_status(response)
        begin, total = part_of(response)
        if total is not None and total != part.size:
            what = f"has {total:,} bytes, where the hub lists {part.size:,}"
            raise HubError(url_shown(url), what, "run it again; a mirror or proxy may be stale")
        if begin != part.done:  # a server that knows no parts begins at the beginning
            tell(-part.done)
            part.restart()
            if begin:
                raise httpx2.RemoteProtocolError("another part came", request=response.request)
        for block in response.iter_bytes():  # in no blocks of ours, which a cut would lose
            if stop.is_set():
                raise StoppedError
            if part.done + len(block) > part.size:
                what = f"has more than the {part.size:,} bytes that the hub lists"
                raise HubError(url_shown(url), what, "run it again; a mirror or proxy may be stale")
            part.append(block)
            tell(len(block))
        if part.done < part.size:
            raise httpx2.RemoteProtocolError("it ended early", request=response.request)


def read_part(url: str, begin: int, count: int, size: int) -> bytearray:
    """Some bytes of a file on the hub, by one request.

    Args:
        url: Where it is.
        begin: The first byte.
        count: How many; at least one, and all within the file.
        size: Bytes of the whole.

    Raises:
        HubError: The server sends no parts, or other ones.
        HfHubHTTPError, httpx2.HTTPError: As the hub or the network says.
    """
    headers = build_hf_headers() | _IDENTITY | {"Range": f"bytes={begin}-{begin + count - 1}"}
    with get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            what = "the server sends files only whole, so that headers can't be read ahead"
            raise HubError(url_shown(url), what, "download the whole model instead")
        if part_of(response) != (begin, size):
            what = f"is not the file of {size:,} bytes that the hub lists"
            raise HubError(url_shown(url), what, "run it again; a mirror or proxy may be stale")
        data = bytearray()
        for block in response.iter_bytes():
            data += block
            if len(data) > count:
                break
    if len(data) != count:
        raise httpx2.RemoteProtocolError("it ended early", request=response.request)
    return data


def part_of(response: httpx2.Response) -> tuple[int, int | None]:
    """Where in the file the response begins, and the size of the whole if it says."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise httpx2.DecodingError("it is compressed", request=response.request)
    if response.status_code == 206:
        given = _PART.fullmatch(response.headers.get("Content-Range", ""))
        if given is None:
            raise httpx2.DecodingError("it names no part", request=response.request)
        return int(given[1]), int(given[3])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if _LENGTH.fullmatch(length) else None


def url_shown(url: str) -> str:
    """A file's address for a message: what stands behind the host, without the commit."""
    repo, _, rest = httpx2.URL(url).path.strip("/").partition("/resolve/")
    return f"{repo}/{rest.partition('/')[2]}"


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = disk.open_write(path) if path.exists() else disk.create(path)
    try:
        yield fd
    finally:
        os.close(fd)
