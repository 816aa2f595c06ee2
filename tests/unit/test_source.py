"""Where a model comes from: a path, the hub's cache, or the hub; and case 52."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants, snapshot_download

from checkpoint.folder import files_like
from checkpoint.shards import read_catalog
from checkpoint.source import SourceFolder, resolve_source
from configs.errors import DiskError, HubError, SourceError
from tests.factories import write_sharded
from tests.hub_server import Answer, Hub, point_library_at, serving

REPO = "org/tiny-model"
TOKEN = "hf_averysecrettokenindeed"
SHARDS = {
    "model-00001-of-00002.safetensors": {"a": ("F32", (2, 2))},
    "model-00002-of-00002.safetensors": {"b": ("F16", (4,))},
}
UNWANTED = [
    "pytorch_model.bin",
    "modeling_tiny.py",
    "onnx/model.onnx",
    "original/model.safetensors",
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = write_sharded(tmp_path / "made", SHARDS)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    wanted = ["config.json", "tokenizer.json", "LICENSE", "README.md", "chat_template.jinja"]
    for name in [*wanted, "additional_chat_templates/tool.jinja", *UNWANTED]:
        content[name] = f"content of {name}".encode()
    return content


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, an empty cache, and a token that must never be shown."""
    with serving() as hub:
        point_library_at(hub, str(tmp_path / "cache"), monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
        close_session()


def test_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_source(str(tmp_path)) == SourceFolder(tmp_path, "local")
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve_source(f"~/{tmp_path.name}").path == tmp_path


def test_local_folder_named_like_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_source("org/name") == SourceFolder(Path("org/name"), "local")


NO_FOLDERS = ["", " ", "nothing", "/no/such/folder", "./nothing", "../up", "~nobody-here/x"]
NO_IDS = ["a/b/c", "org/na me", "org/name.git", "org//name", "https://huggingface.co/org/name"]


@pytest.mark.parametrize("named", [*NO_FOLDERS, *NO_IDS, "org/naïve"])
def test_neither_folder_nor_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="there is no such folder") as caught:
        resolve_source(named)
    assert "org/name" in caught.value.mend


@pytest.mark.parametrize("named", ["n" * 5000, "nul\0"])
def test_path_that_can_not_be(named: str) -> None:
    with pytest.raises(DiskError, match="can't look at"):
        resolve_source(named)


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(SourceError, match="is a file, not a folder"):
        resolve_source(str(path))


def test_revision_of_a_local_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no revisions"):
        resolve_source(str(tmp_path), "main")


def test_local_folder_needs_no_hub_library(tmp_path: Path) -> None:
    code = (
        "import sys; from checkpoint.source import resolve_source; resolve_source(sys.argv[1]);"
        "print(sorted({'huggingface_hub', 'mlx', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert ran.stdout == "[]\n", ran.stderr


def test_download(hub: Hub, files: dict[str, bytes]) -> None:
    """Only the files that are needed, all of the pinned commit, and a token that was sent."""
    commit = hub.add(REPO, files)
    source = resolve_source(REPO)
    assert (source.origin, source.repo_id, source.commit) == ("hub", REPO, commit)
    assert files_like(source.path, ("*", "*/*")) == sorted(files.keys() - UNWANTED)
    for name in files.keys() - UNWANTED:
        assert (source.path / name).read_bytes() == files[name]
    assert list(read_catalog(source.path)) == ["a", "b"]
    assert [asked for asked in hub.requests[1:] if commit not in asked] == []
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}


def test_complete_cache_asks_nobody(hub: Hub, files: dict[str, bytes]) -> None:
    commit = hub.add(REPO, files)
    first = resolve_source(REPO)
    hub.forget()
    hub.add(REPO, files | {"config.json": b"newer"})
    assert resolve_source(REPO) == first
    assert resolve_source(REPO, commit) == first
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1"])
def test_revisions(hub: Hub, files: dict[str, bytes], revision: str) -> None:
    hub.add(REPO, files)
    other = hub.add(REPO, files | {"config.json": b"another"}, revision)
    source = resolve_source(REPO, revision)
    assert source.commit == other
    assert (source.path / "config.json").read_bytes() == b"another"
    hub.forget()
    assert resolve_source(REPO, revision) == source
    assert resolve_source(REPO, other) == source
    assert hub.requests == []


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00002.safetensors"])
@pytest.mark.parametrize("noted", [True, False])
def test_incomplete_cache_is_completed(
    hub: Hub, files: dict[str, bytes], name: str, noted: bool, tmp_path: Path
) -> None:
    """With our own list of the files, or by what the index names."""
    hub.add(REPO, files)
    source = resolve_source(REPO)
    (source.path / name).resolve().unlink()
    if not noted:
        shutil.rmtree(tmp_path / "cache/own")
    hub.forget()
    assert resolve_source(REPO) == source
    assert (source.path / name).read_bytes() == files[name]
    assert any(asked.endswith(name) for asked in hub.requests)
    assert not any(asked.endswith("tokenizer.json") for asked in hub.requests)


@pytest.mark.parametrize("listed_by", ["us", "the library"])
def test_a_licence_that_is_missing_is_fetched(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, listed_by: str
) -> None:
    hub.add(REPO, files)
    source = resolve_source(REPO)
    if listed_by == "the library":
        shutil.rmtree(tmp_path / "cache/own")
        snapshot_download(REPO, allow_patterns="LICENSE")
    (source.path / "LICENSE").resolve().unlink()
    assert resolve_source(REPO) == source
    assert (source.path / "LICENSE").read_bytes() == files["LICENSE"]


def test_passing_faults_are_ridden_out(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    hub.faults["^/api/models/[^/]*/[^/]*/?"] = [Answer(503), Answer(429)]
    assert resolve_source(REPO).origin == "hub"


FAULTS = {
    "gated, unknown": (
        Answer(401, {"X-Error-Code": "GatedRepo"}),
        "is gated: its owner grants access",
        "hf auth login",
    ),
    "gated, known": (Answer(403, {"X-Error-Code": "GatedRepo"}), "is gated", "ask for it at"),
    "bad token": (
        Answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        "the hub does not accept the token",
        "hf auth login",
    ),
    "forbidden": (Answer(403), "the hub forbids access", "a token that may read it"),
    "disabled": (
        Answer(403, {"X-Error-Message": "Access to this resource is disabled."}),
        "was disabled by the hub",
        "another model",
    ),
    "too many requests": (Answer(429), "asks for fewer requests (429)", "wait a few minutes"),
    "fault of the hub": (Answer(500), "a fault of its own (500)", "try again in a few minutes"),
    "bad gateway": (Answer(502, body=b"<html>"), "a fault of its own (502)", "try again"),
    "teapot": (Answer(418), "refused with status 418", "check the name"),
    "login page": (Answer(200, body=b"<html>"), "does not answer like a hub", "HF_ENDPOINT"),
    "JSON of another shape": (Answer(200, body=b"[]"), "does not answer like a hub", "HF_ENDPOINT"),
}


@pytest.mark.parametrize(("answer", "what", "mend"), FAULTS.values(), ids=FAULTS.keys())
def test_faults(
    hub: Hub,
    files: dict[str, bytes],
    answer: Answer,
    what: str,
    mend: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.add(REPO, files)
    hub.faults["^/api/"] = [answer] * 9
    with pytest.raises(HubError) as caught:
        resolve_source(REPO)
    assert caught.value.where == REPO
    assert what in caught.value.what
    assert mend in caught.value.mend
    assert TOKEN not in str(caught.value)
    assert len(hub.requests) <= 3
    assert capfd.readouterr().err == ""


def test_a_folder_that_is_not_there_may_look_like_a_hub_id(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.faults["/api/models/models/lama"] = Answer(500)
    with pytest.raises(HubError) as caught:
        resolve_source("models/lama")
    assert "local folder" not in caught.value.mend
    (tmp_path / "models").mkdir()
    with pytest.raises(HubError) as caught:
        resolve_source("models/lama")
    assert caught.value.mend.endswith("if a local folder is meant, there is none of this name")


def test_repository_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(HubError, match="neither a folder here nor a public model on the hub"):
        resolve_source("org/nothing")


@pytest.mark.parametrize("revision", ["nothing", "0" * 40])
def test_revision_that_is_not_there(hub: Hub, files: dict[str, bytes], revision: str) -> None:
    hub.add(REPO, files)
    with pytest.raises(HubError, match=f"has no revision '{revision}'"):
        resolve_source(REPO, revision)


@pytest.mark.parametrize("revision", ["", "../../x", "a b", "-x", "a..b", "/x", "x\n"])
def test_revision_that_is_none(hub: Hub, revision: str) -> None:
    with pytest.raises(HubError, match="can't have a revision"):
        resolve_source(REPO, revision)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("names", "what"),
    [([], "is empty"), (["tf_model.h5", "config.json"], "only 'tf_model.h5', 'config.json'")],
)
def test_repository_without_safetensors(hub: Hub, names: list[str], what: str) -> None:
    hub.add(REPO, dict.fromkeys(names, b"x"))
    with pytest.raises(HubError, match=what):
        resolve_source(REPO)
    assert len(hub.requests) == 1


def test_fault_during_the_download(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    hub.faults["resolve/.*/config.json"] = [Answer(404, {"X-Error-Code": "EntryNotFound"})]
    with pytest.raises(HubError, match=r"lacks a file that the hub lists \(404\)"):
        resolve_source(REPO)
    assert resolve_source(REPO).origin == "hub"


def test_nobody_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:secret@127.0.0.1:9")
    with pytest.raises(HubError, match=r"127\.0\.0\.1 can't be reached") as caught:
        resolve_source(REPO)
    assert "secret" not in str(caught.value)


def test_offline(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="is not complete in the local cache") as caught:
        resolve_source(REPO)
    assert "HF_HUB_OFFLINE" in caught.value.mend
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    source = resolve_source(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget()
    assert resolve_source(REPO) == source
    assert hub.requests == []


def test_cache_that_can_not_be_written(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(REPO, files)
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(HubError, match="can't be written to the cache: ") as caught:
        resolve_source(REPO)
    assert "HF_HOME" in caught.value.mend
