"""A hub of our own on 127.0.0.1 that takes uploads, with a second host for the large files.

Speaks what the real client asks of the Hugging Face hub: whoami, repos/create, model info,
tree, validate-yaml, preupload, the LFS batch, PUT to the storage host, verify, and commit.
The storage host is another origin, as on the real hub, so that a token sent there shows. It
also takes the blocks of the Xet client, without being able to put files together from them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml  # type: ignore[import-untyped]

from tests.hub_server import Answer

TOKEN = "hf_averysecrettokenindeed"
XET_TOKEN = "xet_forthestorageonly"
CUT = Answer(0)
"""The connection is closed and nothing is said."""
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Request:
    """What was asked of one of the hosts."""

    method: str
    path: str
    token: str
    body: bytes

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Repository:
    """A repository: its commits, the last of which is its main branch."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]

    def commit(self, files: dict[str, bytes], message: str) -> str:
        text = repr((len(self.commits), sorted(files.items())))
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = files
        self.messages.append(message)
        return oid


@dataclass
class UploadHub:
    """The hub and its storage.

    Attributes:
        repos: By name.
        objects: What the storage host holds, by sha256.
        owners: Whose repositories the token may write.
        role: Of the token.
        faults: Pattern on "METHOD path" -> the answers that the next matching requests get.
        requests: What the hub was asked.
        stored: What the storage host was asked.
    """

    repos: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    owners: tuple[str, ...] = ("me", "org")
    role: str = "write"
    faults: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    stored: list[Request] = field(default_factory=list)
    endpoint: str = ""
    storage: str = ""

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Repository:
        """A repository with these files."""
        repo = self.repos[name] = Repository(private)
        repo.commit({".gitattributes": ATTRIBUTES}, "initial commit")
        if files:
            repo.commit({**repo.files, **files}, "before")
        return repo

    def asked(self, pattern: str) -> list[Request]:
        """The requests to the hub whose line matches."""
        return [request for request in self.requests if re.search(pattern, request.line)]

    def answer(self, request: Request) -> Answer:
        if request.path == "/api/agent-harnesses":  # the library's own business, once a day
            return Answer(404)
        self.requests.append(request)
        if fault := self._fault(request):
            return fault
        if request.token != f"Bearer {TOKEN}":
            return Answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        for pattern, reply in _ROUTES.items():
            if match := re.fullmatch(pattern, request.line):
                return reply(self, request, *map(unquote, match.groups()))
        return Answer(404)

    def store(self, request: Request) -> Answer:
        """The storage host: takes a file under its sha256."""
        self.stored.append(request)
        if fault := self._fault(request):
            return fault
        for path, reply in _XET.items():
            if request.path.startswith(path):
                return reply
        digest = request.path.removeprefix("/object/")
        if hashlib.sha256(request.body).hexdigest() != digest:
            return Answer(400)
        self.objects[digest] = request.body
        return Answer(200)

    def _fault(self, request: Request) -> Answer | None:
        for pattern, answers in self.faults.items():
            if answers and re.search(pattern, request.line):
                return answers.pop(0)
        return None

    def _whoami(self, request: Request) -> Answer:
        token = {"displayName": "laptop", "role": self.role}
        orgs = [{"name": name} for name in self.owners[1:]]
        return _as_json({"name": self.owners[0], "auth": {"accessToken": token}, "orgs": orgs})

    def _create(self, request: Request) -> Answer:
        asked = request.json()
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.endpoint}/{name}"}
        if asked["organization"] not in self.owners:
            return Answer(403, {"X-Error-Message": "You don't have the rights"})
        if name in self.repos:
            return _as_json({"error": "You already created this model repo", **url}, 409)
        self.add(name, {}, private=asked.get("visibility") == "private")
        return _as_json(url)

    def _info(self, request: Request, name: str, revision: str = "main") -> Answer:
        if name not in self.repos:
            return Answer(404, {"X-Error-Code": "RepoNotFound"})
        repo = self.repos[name]
        card = yaml.safe_load(repo.files.get("README.md", b"").decode().partition("\n---\n")[0])
        told = {"id": name, "sha": repo.head, "private": repo.private, "siblings": []}
        return _as_json(told | ({"cardData": card} if isinstance(card, dict) else {}))

    def _tree(self, request: Request, name: str, revision: str) -> Answer:
        repo = self.repos[name]
        files = repo.commits[repo.head if revision == "main" else revision]
        return _as_json([_entry(path, content) for path, content in files.items()])

    def _validate(self, request: Request) -> Answer:
        text = request.json()["content"].removeprefix("---\n").partition("\n---\n")[0]
        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            return _as_json({"errors": [{"message": f"bad YAML: {error}"}]}, 400)
        return _as_json({"warnings": [{"message": "licenses are welcome"}], "errors": []})

    def _preupload(self, request: Request, name: str, revision: str) -> Answer:
        files = []
        for asked in request.json()["files"]:
            held = self.repos[name].files.get(asked["path"])
            lfs = _is_large(asked["path"])
            oid = None if held is None else _sha256(held) if lfs else _git_id(held)
            mode = "lfs" if lfs else "regular"
            files.append(
                {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        return _as_json({"files": files})

    def _batch(self, request: Request, name: str) -> Answer:
        objects = []
        for asked in request.json()["objects"]:
            told = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.objects:
                told["actions"] = {
                    "upload": {"href": f"{self.storage}/object/{asked['oid']}"},
                    "verify": {"href": f"{self.endpoint}/api/verify"},
                }
            objects.append(told)
        return _as_json({"transfer": "basic", "objects": objects})

    def _verify(self, request: Request) -> Answer:
        asked = request.json()
        held = self.objects.get(asked["oid"])
        return Answer(200 if held is not None and len(held) == asked["size"] else 422)

    def _xet_token(self, request: Request, name: str, revision: str) -> Answer:
        told = {"casUrl": self.storage, "exp": 2_000_000_000, "accessToken": XET_TOKEN}
        names = ("X-Xet-Cas-Url", "X-Xet-Token-Expiration", "X-Xet-Access-Token")
        headers = dict(zip(names, map(str, told.values()), strict=True))
        return Answer(200, headers, json.dumps(told).encode())

    def _commit(self, request: Request, name: str, revision: str) -> Answer:
        repo = self.repos[name]
        files = dict(repo.files)
        header, *lines = [json.loads(line) for line in request.body.splitlines()]
        if header["value"].get("parentCommit", repo.head) != repo.head:
            return Answer(412, {"X-Error-Message": "A commit has happened since"})
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = repo.commit(files, header["value"]["summary"])
        url = f"{self.endpoint}/{name}/commit/{oid}"
        return _as_json({"success": True, "commitOid": oid, "commitUrl": url})


_NAME = "([^/]+/[^/]+)"
_ROUTES: dict[str, Callable[..., Answer]] = {
    "GET /api/whoami-v2": UploadHub._whoami,
    "POST /api/repos/create": UploadHub._create,
    "POST /api/validate-yaml": UploadHub._validate,
    "POST /api/verify": UploadHub._verify,
    f"GET /api/models/{_NAME}": UploadHub._info,
    f"GET /api/models/{_NAME}/tree/([^/]+)": UploadHub._tree,
    f"POST /api/models/{_NAME}/preupload/([^/]+)": UploadHub._preupload,
    f"GET /api/models/{_NAME}/xet-write-token/([^/]+)": UploadHub._xet_token,
    f"POST /api/models/{_NAME}/commit/([^/]+)": UploadHub._commit,
    f"POST /{_NAME}.git/info/lfs/objects/batch": UploadHub._batch,
}

_JSON = {"Content-Type": "application/json"}
_XET = {
    "/v1/chunks/": Answer(404),  # known to nobody else
    "/v1/xorbs/": Answer(200, _JSON, b'{"was_inserted": true}'),
    "/v1/xorb-grants/": Answer(404),  # newer ways, which the client tries first
    "/v2/": Answer(404),
    "/v1/shards": Answer(200, _JSON, b'{"result": 1}'),
}


@contextmanager
def serving_uploads() -> Iterator[UploadHub]:
    """A hub and its storage host for the length of a `with` block."""
    hub = UploadHub()
    with ExitStack() as stack:
        hub.endpoint = stack.enter_context(_serving(hub.answer))
        hub.storage = stack.enter_context(_serving(hub.store))
        yield hub


@contextmanager
def _serving(answer: Callable[[Request], Answer]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer in one piece
        disable_nagle_algorithm = True

        def _reply(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            token = self.headers.get("Authorization", "")
            path = urlsplit(self.path).path
            reply = answer(Request(self.command, path, token, self.rfile.read(length)))
            if reply is CUT:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = do_PUT = _reply  # noqa: N815 -- the names that http.server asks for

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _entry(path: str, content: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    if not _is_large(path):
        return told | {"oid": _git_id(content)}
    lfs = {"oid": _sha256(content), "size": len(content), "pointerSize": 130}
    return told | {"oid": _git_id(b"pointer of " + content), "lfs": lfs}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _as_json(value: object, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())
