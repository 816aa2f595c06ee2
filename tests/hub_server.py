"""A hub of our own on 127.0.0.1, for tests: the few calls that a download makes, and faults.

Speaks `/api/models/<id>[/revision/<r>]`, `/api/models/<id>/tree/<r>` and
`/<id>/resolve/<r>/<file>` as the Hugging Face hub does.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Answer:
    """What a fault makes the hub say."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"


@dataclass
class Hub:
    """Its repositories, its faults, and what it was asked.

    Attributes:
        repos: Repository -> commit -> file name -> content.
        branches: Repository -> branch or tag -> commit.
        faults: Path pattern -> the answers that the next matching requests get.
        requests: "METHOD path" of every request so far.
        tokens: The Authorization header of each.
    """

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    endpoint: str = ""

    def add(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit these files to a branch; returns the commit."""
        text = repr((repo, branch, sorted(files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = files
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def answer(self, method: str, target: str, token: str) -> Answer:
        path = urlsplit(target).path
        if path == "/api/agent-harnesses":  # the library's own business, once a day
            return Answer(404)
        self.requests.append(f"{method} {path}")
        self.tokens.append(token)
        for pattern, answers in self.faults.items():
            if answers and re.search(pattern, path):
                return answers.pop(0)
        if match := _INFO.fullmatch(path):
            return self._info(match[1], unquote(match[2] or "main"))
        if match := _TREE.fullmatch(path):
            return self._tree(match[1], unquote(match[2]))
        if match := _FILE.fullmatch(path):
            return self._file(match[1], unquote(match[2]), unquote(match[3]))
        return Answer(404)

    def _commit(self, repo: str, revision: str) -> str | Answer:
        if repo not in self.repos:
            return Answer(401, {"X-Error-Code": "RepoNotFound"})
        commit = self.branches[repo].get(revision, revision)
        if commit not in self.repos[repo]:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _info(self, repo: str, revision: str) -> Answer:
        commit = self._commit(repo, revision)
        if isinstance(commit, Answer):
            return commit
        names = [{"rfilename": name} for name in self.repos[repo][commit]]
        return _as_json({"id": repo, "sha": commit, "siblings": names})

    def _tree(self, repo: str, revision: str) -> Answer:
        commit = self._commit(repo, revision)
        if isinstance(commit, Answer):
            return commit
        return _as_json(
            [
                {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                for name, content in self.repos[repo][commit].items()
            ]
        )

    def _file(self, repo: str, revision: str, name: str) -> Answer:
        commit = self._commit(repo, revision)
        if isinstance(commit, Answer):
            return commit
        if name not in self.repos[repo][commit]:
            return Answer(404, {"X-Error-Code": "EntryNotFound"})
        content = self.repos[repo][commit][name]
        return Answer(200, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit}, content)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers on `endpoint` for the length of a `with` block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def _reply(self, *, with_body: bool) -> None:
            token = self.headers.get("Authorization", "")
            answer = hub.answer(self.command, self.path, token)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if with_body:
                self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _as_json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())
