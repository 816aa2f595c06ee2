"""An HTTP server on 127.0.0.1, for tests: parts of files, cut connections, what was asked."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Answer:
    """What the server says.

    Attributes:
        status: 200 becomes 206 where a part was asked for and the server knows parts.
        headers: Beside Content-Length.
        body: All of it, even where only a part was asked for.
        cut: Bytes of the body after which the connection is cut.
        held: Set once the answer may go on behind those bytes, in place of being cut.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    cut: int | None = None
    held: threading.Event | None = None


@dataclass
class Server:
    """What it was asked, and its faults.

    Attributes:
        endpoint: Its address.
        requests: "METHOD path" of every request so far.
        headers: The headers of each.
        faults: Pattern of a path, with or without its query -> the answers that the next
            matching requests get.
        after: Path pattern -> what is called once after the first answer to it.
        knows_ranges: Whether it sends parts of files.
    """

    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    faults: dict[str, list[Answer]] = field(default_factory=dict)
    after: dict[str, Callable[[], object]] = field(default_factory=dict)
    knows_ranges: bool = True

    @property
    def tokens(self) -> list[str]:
        """The Authorization header of every request."""
        return [headers.get("authorization", "") for headers in self.headers]

    def asked(self, pattern: str) -> list[dict[str, str]]:
        """The headers of the GET requests whose path matches."""
        pairs = zip(self.requests, self.headers, strict=True)
        return [h for asked, h in pairs if re.search(f"^GET .*{pattern}", asked)]

    def forget(self) -> None:
        """Forget what was asked so far."""
        self.requests.clear()
        self.headers.clear()

    def answer(self, method: str, target: str, headers: dict[str, str]) -> Answer:
        """The answer to one request, faults included."""
        path = urlsplit(target).path
        self.requests.append(f"{method} {path}")
        self.headers.append(headers)
        for pattern, answers in self.faults.items():
            if answers and (re.search(pattern, path) or re.search(pattern, target)):
                return answers.pop(0)
        answer = self.respond(method, target)
        for pattern in [one for one in self.after if re.search(one, path)]:
            self.after.pop(pattern)()
        return answer

    def respond(self, method: str, target: str) -> Answer:
        """The answer where no fault is due."""
        return Answer(404)


@contextmanager
def serving(server: Server, host: str = "127.0.0.1") -> Iterator[None]:
    """Let a server answer on its `endpoint` for the length of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def _reply(self, *, with_body: bool) -> None:
            asked = {name.lower(): value for name, value in self.headers.items()}
            answer = server.answer(self.command, self.path, asked)
            status, headers, body = answer.status, dict(answer.headers), answer.body
            part = _RANGE.fullmatch(asked.get("range", ""))
            if part and status == 200 and server.knows_ranges:
                begin = int(part[1])
                end = int(part[2]) + 1 if part[2] else len(body)
                if begin >= len(body):
                    status, body = 416, b""
                    headers["Content-Range"] = f"bytes */{len(answer.body)}"
                else:
                    status, body = 206, body[begin:end]
                    last = begin + len(body) - 1
                    headers["Content-Range"] = f"bytes {begin}-{last}/{len(answer.body)}"
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body[: answer.cut])
            if answer.held is not None:
                self.wfile.flush()
                answer.held.wait()
            if answer.cut is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server.endpoint = f"http://{host}:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
