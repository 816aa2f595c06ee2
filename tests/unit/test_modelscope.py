"""Models on ModelScope, by its own client: whole, checked, and without the hub's token."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint.shards import read_catalog
from checkpoint.source import SourceFolder, resolve_source
from configs.errors import HubError, SourceError
from tests import http_server
from tests.factories import write_sharded
from tests.http_server import Answer
from tests.hub_server import Storage
from tests.modelscope_server import ModelScope

REPO = "org/tiny.model"
NAMED = f"modelscope:{REPO}"
HUB_TOKEN, OWN_TOKEN = "hf_averysecrettokenindeed", "ms-anothersecrettoken"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = {FIRST: {"a": ("F32", (64, 64))}, SECOND: {"b": ("F16", (4,))}}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WANTED = ["config.json", "tokenizer.json", "LICENSE", "README.md"]
UNWANTED = ["pytorch_model.bin", "configuration.json", "modeling_tiny.py", "model.safetensors"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = write_sharded(tmp_path / "made", SHARDS)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    return content | {name: f"content of {name}".encode() for name in (*WANTED, *UNWANTED)}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScope]:
    """A ModelScope on this machine, an empty cache, and a token of the hub."""
    with http_server.serving(server := ModelScope()):
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.endpoint)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
        monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setattr(
            "modelscope_hub._download_control._DownloadControl.sleep", lambda *a: None
        )
        yield server


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_download(
    there: ModelScope, files: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    there.add(REPO, files)
    source = resolve_source(NAMED)
    assert source == SourceFolder(source.path, "modelscope", REPO, None)
    assert {path.name for path in source.path.iterdir()} == files.keys() - UNWANTED
    for name in files.keys() - UNWANTED:
        assert (source.path / name).read_bytes() == files[name]
    assert list(read_catalog(source.path)) == ["a", "b"]
    assert capfd.readouterr() == ("", "")


def test_a_complete_cache_asks_nobody(there: ModelScope, files: dict[str, bytes]) -> None:
    there.add(REPO, files)
    first = resolve_source(NAMED)
    there.forget()
    assert resolve_source(NAMED) == first
    assert there.requests == []


def test_revisions(there: ModelScope, files: dict[str, bytes]) -> None:
    there.add(REPO, files)
    there.add(REPO, files | {"config.json": b"another"}, "v1")
    there.add(REPO, files | {"config.json": b"a third"}, COMMIT)
    assert (resolve_source(NAMED).path / "config.json").read_bytes() == files["config.json"]
    source = resolve_source(NAMED, "v1")
    assert ((source.path / "config.json").read_bytes(), source.commit) == (b"another", None)
    source = resolve_source(NAMED, COMMIT)
    assert ((source.path / "config.json").read_bytes(), source.commit) == (b"a third", COMMIT)


@pytest.mark.parametrize("name", [FIRST, "config.json"])
def test_a_damaged_cache_is_mended(there: ModelScope, files: dict[str, bytes], name: str) -> None:
    there.add(REPO, files)
    folder = resolve_source(NAMED).path
    flip(folder / name)
    assert (resolve_source(NAMED).path / name).read_bytes() == files[name]
    (folder / name).unlink()
    there.forget()
    assert (resolve_source(NAMED).path / name).read_bytes() == files[name]
    assert len(there.asked("/repo$")) == 1


def test_a_damaged_cache_where_nobody_is_there(
    there: ModelScope, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not used, unlike one of which nothing speaks against."""
    there.add(REPO, files)
    folder = resolve_source(NAMED).path
    (folder / SECOND).unlink()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="ModelScope can't be reached"):
        resolve_source(NAMED)


def test_a_cache_that_others_filled(
    there: ModelScope,
    files: dict[str, bytes],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there.add(REPO, files)
    folder = resolve_source(NAMED).path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    there.forget()
    flip(folder / FIRST)
    assert resolve_source(NAMED).path == folder
    assert (folder / FIRST).read_bytes() == files[FIRST]
    assert len(there.asked("/repo$")) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    assert resolve_source(NAMED).path == folder
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err == (
        f"warning: {NAMED}: ModelScope can't be reached; {folder} is used unchecked\n"
    )


def test_wrong_bytes_that_the_client_takes(
    there: ModelScope, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own check finds what a client without one would let pass."""
    monkeypatch.setattr("modelscope_hub._download._finish_download", _finish_without_a_look)
    there.add(REPO, _Listed(files, files | {FIRST: files[FIRST][:-1] + b"?"}))
    with pytest.raises(SourceError, match=r"is damaged: it has sha256 .*, ModelScope's has sha256"):
        resolve_source(NAMED)


class _Listed(dict[str, bytes]):
    """Files that are listed as one thing and sent as another."""

    def __init__(self, listed: dict[str, bytes], sent: dict[str, bytes]) -> None:
        super().__init__(listed)
        self._sent = sent

    def __getitem__(self, name: str) -> bytes:
        return self._sent[name]


def _finish_without_a_look(tmp: Path, target: Path, *rest: object, **more: object) -> None:
    tmp.replace(target)


def test_wrong_bytes(there: ModelScope, files: dict[str, bytes]) -> None:
    there.add(REPO, _Listed(files, files | {FIRST: files[FIRST][:-1] + b"?"}))
    with pytest.raises(HubError, match="does not arrive as ModelScope lists it"):
        resolve_source(NAMED)


def test_a_cut_connection_is_gone_on_with(there: ModelScope, files: dict[str, bytes]) -> None:
    there.add(REPO, files)
    there.faults[f"FilePath={FIRST}"] = [Answer(200, body=files[FIRST], cut=5000)]
    assert (resolve_source(NAMED).path / FIRST).read_bytes() == files[FIRST]
    assert there.faults[f"FilePath={FIRST}"] == []


def test_the_next_run_goes_on(
    there: ModelScope, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    there.add(REPO, files)
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 0)
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_CHUNK_SIZE", 1000)
    there.faults[f"FilePath={FIRST}"] = [Answer(200, body=files[FIRST], cut=5000)]
    with pytest.raises(HubError, match="ModelScope can't be reached"):
        resolve_source(NAMED)
    there.forget()
    assert (resolve_source(NAMED).path / FIRST).read_bytes() == files[FIRST]
    assert [headers["range"] for headers in there.asked("/repo$")] == ["bytes=5000-"]


FAULTS = {
    "bad token": (Answer(401), "does not accept the token", "MODELSCOPE_API_TOKEN"),
    "forbidden": (Answer(403), "forbids access", "ask for it"),
    "not there": (Answer(404), "has no such model, or not its revision 'master'", "check the name"),
    "too many requests": (Answer(429), "asks for fewer requests (429)", "wait a few minutes"),
    "fault": (Answer(500), "a fault of its own (500)", "try again in a few minutes"),
    "bad gateway": (Answer(502, body=b"<html>"), "a fault of its own (502)", "try again"),
    "teapot": (Answer(418), "refused with status 418", "check the name"),
    "login page": (Answer(200, body=b"<html>"), "does not answer as it should", "the proxy"),
    "another shape": (Answer(200, body=b"[]"), "does not answer as it should", "the proxy"),
    "cut": (Answer(200, body=b"{" * 99, cut=5), "can't be reached", "check the network"),
}


@pytest.mark.parametrize(("answer", "what", "mend"), FAULTS.values(), ids=FAULTS.keys())
def test_faults(
    there: ModelScope,
    files: dict[str, bytes],
    answer: Answer,
    what: str,
    mend: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    there.add(REPO, files)
    there.faults["^/api/v1/models/"] = [answer] * 99
    with pytest.raises(HubError) as caught:
        resolve_source(NAMED)
    assert caught.value.where == NAMED
    assert what in caught.value.what
    assert mend in caught.value.mend
    assert len(there.requests) < 20
    assert capfd.readouterr() == ("", "")


def test_a_fault_during_the_download(there: ModelScope, files: dict[str, bytes]) -> None:
    there.add(REPO, files)
    there.faults["/repo$"] = [Answer(403)]
    with pytest.raises(HubError, match="forbids access"):
        resolve_source(NAMED)
    assert resolve_source(NAMED).origin == "modelscope"


def test_passing_faults(there: ModelScope, files: dict[str, bytes]) -> None:
    there.add(REPO, files)
    there.faults["repo/files"] = [Answer(503)]
    there.faults["/repo$"] = [Answer(502), Answer(429)]
    assert resolve_source(NAMED).origin == "modelscope"


def test_no_token_of_the_hub_is_sent(
    there: ModelScope, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    there.add(REPO, files)
    resolve_source(NAMED)
    told = [value for headers in there.headers for value in headers.values()]
    assert not any(HUB_TOKEN in value for value in told)
    assert {headers.get("authorization") for headers in there.headers} == {None}
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", OWN_TOKEN)
    there.add(REPO, files, "v2")
    there.forget()
    storage = Storage(objects={f"/{name}": files[name] for name in (FIRST, SECOND)})
    with http_server.serving(storage, "localhost"):
        there.storage = storage.endpoint
        resolve_source(NAMED, "v2")
    assert f"Bearer {OWN_TOKEN}" in there.tokens
    told = [value for headers in there.headers for value in headers.values()]
    assert not any(HUB_TOKEN in value for value in told)
    assert storage.requests
    told = [value for headers in storage.headers for value in headers.values()]
    assert not any(HUB_TOKEN in value or OWN_TOKEN in value for value in told)


def test_hostile_names_in_the_list(
    there: ModelScope, files: dict[str, bytes], tmp_path: Path
) -> None:
    outside = {
        "../../../../escaped.safetensors": b"x",
        "model/../../../../../../escaped.safetensors": b"x",
        "/tmp/LICENSE-escaped": b"x",
        "additional_chat_templates/../../x.jinja": b"x",
    }
    there.add(REPO, files | outside)
    folder = resolve_source(NAMED).path
    assert {path.name for path in folder.iterdir()} == files.keys() - UNWANTED
    assert list(tmp_path.rglob("*escaped*")) == []


@pytest.mark.parametrize(
    "named", ["", "name", "a/b/c", "../x", "org/..", "org/na me", "/x", "org/", "org/x\n"]
)
def test_ids_that_are_none(there: ModelScope, named: str) -> None:
    with pytest.raises(SourceError, match="is no id of ModelScope; name a model there as"):
        resolve_source(f"modelscope:{named}")
    assert there.requests == []


@pytest.mark.parametrize("revision", ["../../x", "a b", "-x", "a..b", "/x"])
def test_revisions_that_are_none(there: ModelScope, revision: str) -> None:
    with pytest.raises(HubError, match="can't have a revision"):
        resolve_source(NAMED, revision)
    assert there.requests == []


def test_repositories_without_weights(there: ModelScope) -> None:
    there.add(REPO, {"config.json": b"{}", "model.gguf": b"x"})
    what = r"has neither model\*\.safetensors nor .* only 'config\.json"
    with pytest.raises(HubError, match=what):
        resolve_source(NAMED)


def test_shards_that_are_missing(there: ModelScope, files: dict[str, bytes]) -> None:
    del files[SECOND]
    there.add(REPO, files)
    with pytest.raises(HubError, match="lacks 1 of the 2 shards") as caught:
        resolve_source(NAMED)
    assert caught.value.where == NAMED


def test_without_the_extra(there: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(HubError, match="needs ModelScope's own client") as caught:
        resolve_source(NAMED)
    assert caught.value.mend == "pip install 'mlx-ferry[modelscope]'"


def test_a_cache_that_can_not_be_written(
    there: ModelScope, files: dict[str, bytes], tmp_path: Path
) -> None:
    there.add(REPO, files)
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(HubError, match="can't be written to ModelScope's cache: ") as caught:
        resolve_source(NAMED)
    assert "MODELSCOPE_CACHE" in caught.value.mend


def test_the_client_is_not_imported_for_others(tmp_path: Path) -> None:
    code = (
        "import json, sys; from checkpoint.source import resolve_source;"
        "resolve_source(sys.argv[1]); import checkpoint.hub, checkpoint.modelscope;"
        "print(json.dumps([m for m in ('modelscope_hub', 'requests') if m in sys.modules]))"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert json.loads(ran.stdout) == [], ran.stderr
