"""A ModelScope of our own on 127.0.0.1, for tests: the calls that its client makes.

Speaks `/api/v1/models/<id>/repo/files` and `/api/v1/models/<id>/repo` as ModelScope does.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tests.http_server import Answer, Server

_LIST = re.compile(r"/api/v1/models/([^/]+/[^/]+)/repo/files")
_FILE = re.compile(r"/api/v1/models/([^/]+/[^/]+)/repo")


@dataclass
class ModelScope(Server):
    """Its repositories.

    Attributes:
        repos: Repository -> branch, tag or commit -> file name -> content.
        storage: Where it sends those who ask for weights; None for itself.
    """

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    storage: str | None = None

    def add(self, repo: str, files: dict[str, bytes], revision: str = "master") -> None:
        """Put these files under a revision."""
        self.repos.setdefault(repo, {})[revision] = files

    def respond(self, method: str, target: str) -> Answer:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        for pattern in (_LIST, _FILE):
            if match := pattern.fullmatch(parts.path):
                files = self.repos.get(match[1], {}).get(query.get("Revision", "master"))
                if files is None:
                    return _as_json(404, {"Code": 10010205001, "Message": "not found"})
                if pattern is _LIST:
                    return self._list(files)
                return self._file(files, query.get("FilePath", ""))
        return _as_json(404, {"Code": 404, "Message": "no such call"})

    def _list(self, files: dict[str, bytes]) -> Answer:
        entries = [
            {
                "Path": name,
                "Name": name.rpartition("/")[2],
                "Type": "blob",
                "Size": len(content),
                "Sha256": hashlib.sha256(content).hexdigest(),
                "IsLFS": name.endswith(".safetensors"),
            }
            for name, content in files.items()
        ]
        return _as_json(200, {"Code": 200, "Data": {"Files": entries}, "Success": True})

    def _file(self, files: dict[str, bytes], name: str) -> Answer:
        if name not in files:
            return _as_json(404, {"Code": 10010205001, "Message": "not found"})
        if self.storage is not None and name.endswith(".safetensors"):
            return Answer(302, {"Location": f"{self.storage}/{name}"}, b"")
        return Answer(200, {"Content-Type": "application/octet-stream"}, files[name])


def _as_json(status: int, value: object) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())
