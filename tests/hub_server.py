"""A hub of our own on 127.0.0.1, for tests: the few calls that a download makes.

Speaks `/api/models/<id>[/revision/<r>]`, `/api/models/<id>/tree/<r>` and
`/<id>/resolve/<r>/<file>` as the Hugging Face hub does. Faults, parts and cut connections
are those of `tests.http_server`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

from tests import http_server
from tests.http_server import Answer, Server

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Storage(Server):
    """Where a hub keeps its large files: another host, which must see no token."""

    objects: dict[str, bytes] = field(default_factory=dict)

    def respond(self, method: str, target: str) -> Answer:
        found = self.objects.get(urlsplit(target).path)
        return Answer(404) if found is None else Answer(200, body=found)


@dataclass
class Hub(Server):
    """Its repositories.

    Attributes:
        repos: Repository -> commit -> file name -> content.
        branches: Repository -> branch or tag -> commit.
        prefix: What stands before every path.
        storage: Where it sends those who ask for large files; None for itself.
        tells_metadata: Whether it says sizes and hashes in a model's info.
        xet: Whether it says that its large files are in Xet as well.
    """

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    prefix: str = ""
    storage: Storage | None = None
    tells_metadata: bool = True
    xet: bool = False

    def add(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit these files to a branch; returns the commit."""
        text = repr((repo, branch, sorted(files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = files
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def answer(self, method: str, target: str, headers: dict[str, str]) -> Answer:
        path = urlsplit(target).path
        if path.endswith("/api/agent-harnesses"):  # the library's own business, once a day
            return Answer(404)
        return super().answer(method, target, headers)

    def respond(self, method: str, target: str) -> Answer:
        path = urlsplit(target).path
        if not path.startswith(self.prefix):
            return Answer(404)
        path = path.removeprefix(self.prefix)
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
        siblings = [
            {"rfilename": name} | (_metadata(name, content) if self.tells_metadata else {})
            for name, content in self.repos[repo][commit].items()
        ]
        return _as_json({"id": repo, "sha": commit, "siblings": siblings})

    def _tree(self, repo: str, revision: str) -> Answer:
        commit = self._commit(repo, revision)
        if isinstance(commit, Answer):
            return commit
        return _as_json(
            [
                {"type": "file", "path": name}
                | _metadata(name, content, oid="oid")
                | ({"xetHash": "ab" * 32} if self.xet and _is_large(name) else {})
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
        etag = sha256(content) if _is_large(name) else git_id(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        if self.xet and _is_large(name):
            headers["X-Xet-Hash"] = "ab" * 32
            headers["Link"] = f'<{self.endpoint}/xet-token>; rel="xet-auth"'
        if self.storage is None or not _is_large(name):
            return Answer(200, headers, content)
        self.storage.objects[f"/objects/{etag}"] = content
        headers["Location"] = f"{self.storage.endpoint}/objects/{etag}"
        headers["X-Linked-ETag"], headers["X-Linked-Size"] = f'"{etag}"', str(len(content))
        return Answer(302, headers, b"")


@contextmanager
def serving(hub: Hub | None = None) -> Iterator[Hub]:
    """A hub that answers on `endpoint` for the length of a `with` block."""
    hub = hub or Hub()
    with http_server.serving(hub):
        hub.endpoint += hub.prefix
        yield hub


def point_library_at(hub: Hub, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the library in this process use this hub and an empty cache."""
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{cache}/hub")
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", f"{cache}/harnesses.json")
    monkeypatch.setattr("checkpoint.hub_client.WAITS", (0.0, 0.0))
    monkeypatch.setattr("checkpoint.transfer.WAITS", (0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", f"{cache}/own")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    close_session()


def sha256(content: bytes) -> str:
    """The hash by which large files go."""
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    """The hash by which all others go."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors") or name == "tokenizer.json"


def _metadata(name: str, content: bytes, oid: str = "blobId") -> dict[str, object]:
    """What the hub says of a file, in a model's info or, with "oid", in a tree."""
    if not _is_large(name):
        return {"size": len(content), oid: git_id(content)}
    key = "oid" if oid == "oid" else "sha256"
    lfs = {key: sha256(content), "size": len(content), "pointerSize": 134}
    return {"size": len(content), oid: git_id(b"the pointer of " + content), "lfs": lfs}


def _as_json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())
