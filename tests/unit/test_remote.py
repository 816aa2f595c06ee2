"""Headers read across the network, and shards that come and go one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, hf_hub_download

from checkpoint.remote import open_remote
from checkpoint.shards import read_catalog
from configs.errors import HeaderError, HubError, ShardIndexError, SourceError
from tests import http_server
from tests.factories import write_sharded
from tests.hub_server import Answer, Hub, Storage, point_library_at, serving, sha256

REPO = "org/tiny-model"
TOKEN = "hf_averysecrettokenindeed"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = {
    FIRST: {"a": ("F32", (300, 300)), "scalar": ("BF16", ())},
    SECOND: {"b": ("F16", (4,))},
}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = write_sharded(tmp_path / "made", SHARDS)
    for name in ("config.json", "tokenizer.json", "LICENSE", "README.md"):
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.fixture
def files(made: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in made.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        point_library_at(hub, str(tmp_path / "cache"), monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
        close_session()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder for shards."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def in_cache(tmp_path: Path) -> set[Path]:
    return {path for path in (tmp_path / "cache/hub").rglob("*") if not path.is_dir()}


def test_headers_without_the_weights(
    hub: Hub, files: dict[str, bytes], made: Path, here: Path
) -> None:
    commit = hub.add(REPO, files)
    model = open_remote(REPO, None, here)
    assert hub.asked("safetensors$") == []
    assert (model.commit, model.source.commit, model.source.repo_id) == (commit, commit, REPO)
    assert sorted(path.name for path in model.source.path.iterdir()) == sorted(
        files.keys() - {FIRST, SECOND}
    )
    catalog, local = model.catalog(), read_catalog(made)
    assert catalog.shards == (here / FIRST, here / SECOND)
    assert (catalog.metadata, catalog.warnings) == (local.metadata, local.warnings)
    for name, ref in local.items():
        assert catalog[name].file == here / ref.file.name
        assert (catalog[name].shape, catalog[name].dtype) == (ref.shape, ref.dtype)
        assert (catalog[name].offset, catalog[name].nbytes) == (ref.offset, ref.nbytes)
    assert [one["range"] for one in hub.asked(FIRST)] == ["bytes=0-131071"]
    assert list(here.iterdir()) == []


def test_a_long_header_takes_two_requests(hub: Hub, tmp_path: Path, here: Path) -> None:
    tensors = {f"a.tensor.with.a.long.name.{n:05}": ("U8", (1,)) for n in range(2000)}
    folder = write_sharded(tmp_path / "long", {FIRST: tensors})
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add(REPO, files | {"config.json": b"{}"})
    catalog = open_remote(REPO, None, here).catalog()
    assert len(catalog) == 2000
    begin, end = hub.asked(FIRST)[1]["range"].removeprefix("bytes=").split("-")
    assert (len(hub.asked(FIRST)), int(begin)) == (2, 1 << 17)
    assert int(end) == catalog["a.tensor.with.a.long.name.00000"].offset - 1


def test_shards_come_and_go(hub: Hub, files: dict[str, bytes], here: Path, tmp_path: Path) -> None:
    hub.add(REPO, files)
    model = open_remote(REPO, "main", here)
    before = in_cache(tmp_path)
    told: list[int] = []
    path = model.fetch(FIRST, told.append)
    assert path == model.shards[FIRST].path == here / FIRST
    assert (path.read_bytes(), sum(told)) == (files[FIRST], len(files[FIRST]))
    assert [one.name for one in here.iterdir()] == [FIRST]
    model.fetch(SECOND)
    model.release(FIRST)
    assert [one.name for one in here.iterdir()] == [SECOND]
    model.release(SECOND)
    model.release(SECOND)
    assert list(here.iterdir()) == []
    assert in_cache(tmp_path) == before


def test_a_shard_is_gone_on_with(hub: Hub, files: dict[str, bytes], here: Path) -> None:
    hub.add(REPO, files)
    hub.faults[FIRST] = [Answer(200, body=files[FIRST], cut=n) for n in (9000, 0, 0)]
    with pytest.raises(HubError, match="was cut"):
        open_remote(REPO, None, here).fetch(FIRST)
    hub.forget()
    assert open_remote(REPO, None, here).fetch(FIRST).read_bytes() == files[FIRST]
    assert [one["range"] for one in hub.asked(FIRST)] == ["bytes=9000-"]


def test_a_shard_that_an_earlier_process_left(
    hub: Hub, files: dict[str, bytes], here: Path
) -> None:
    hub.add(REPO, files)
    open_remote(REPO, None, here).fetch(FIRST)
    hub.forget()
    model = open_remote(REPO, None, here)
    assert model.fetch(FIRST).read_bytes() == files[FIRST]
    assert hub.asked(FIRST) == []
    model.release(FIRST)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("content", [b"short", None])
def test_what_lies_in_a_shards_place(
    hub: Hub, files: dict[str, bytes], here: Path, content: bytes | None
) -> None:
    hub.add(REPO, files)
    (here / FIRST).write_bytes(content or files[FIRST][:-1] + b"?")
    model = open_remote(REPO, None, here)
    with pytest.raises(SourceError, match="is not the shard that the hub has; delete it"):
        model.fetch(FIRST)
    model.release(FIRST)
    assert (here / FIRST).exists()


def test_shards_in_the_users_cache(
    hub: Hub, files: dict[str, bytes], here: Path, tmp_path: Path
) -> None:
    """They are used where they lie, and stay."""
    hub.add(REPO, files)
    cached = Path(hf_hub_download(REPO, FIRST))
    hub.forget()
    model = open_remote(REPO, None, here)
    assert model.catalog()["a"].file == cached
    assert model.fetch(FIRST) == cached
    model.release(FIRST)
    assert cached.read_bytes() == files[FIRST]
    assert hub.asked(FIRST) == []
    cached.resolve().write_bytes(files[FIRST][:-1] + b"?")
    with pytest.raises(SourceError, match="is damaged"):
        model.fetch(FIRST)


def test_a_branch_that_moves(hub: Hub, files: dict[str, bytes], here: Path) -> None:
    commit = hub.add(REPO, files)
    model = open_remote(REPO, None, here)
    hub.add(REPO, dict.fromkeys(files, b"newer"))
    hub.forget()
    assert sorted(model.catalog()) == ["a", "b", "scalar"]
    assert model.fetch(SECOND).read_bytes() == files[SECOND]
    assert [asked for asked in hub.requests if commit not in asked] == []


def test_wrong_bytes(hub: Hub, files: dict[str, bytes], here: Path) -> None:
    hub.add(REPO, files)
    model = open_remote(REPO, None, here)
    hub.faults[SECOND] = [Answer(200, body=files[SECOND][:-1] + b"?")] * 2
    with pytest.raises(HubError, match="arrived damaged, twice"):
        model.fetch(SECOND)
    assert list(here.iterdir()) == []


def test_a_server_that_knows_no_parts(hub: Hub, files: dict[str, bytes], here: Path) -> None:
    hub.add(REPO, files)
    hub.knows_ranges = False
    model = open_remote(REPO, None, here)
    with pytest.raises(HubError, match="sends files only whole") as caught:
        model.catalog()
    assert caught.value.where.startswith(f"{REPO}/model-0000")
    assert caught.value.mend == "download the whole model instead"
    assert model.fetch(FIRST).read_bytes() == files[FIRST]


def test_a_server_that_sends_another_file(hub: Hub, files: dict[str, bytes], here: Path) -> None:
    hub.add(REPO, files)
    model = open_remote(REPO, None, here)
    hub.faults[FIRST] = [Answer(200, body=files[FIRST] + b"?")] * 9
    with pytest.raises(HubError, match="is not the file of"):
        model.catalog()


@pytest.mark.parametrize("status", [429, 500])
def test_passing_faults(hub: Hub, files: dict[str, bytes], here: Path, status: int) -> None:
    hub.add(REPO, files)
    model = open_remote(REPO, None, here)
    hub.faults[FIRST] = [Answer(status), Answer(200, body=files[FIRST], cut=3)]
    assert len(model.catalog()) == 3


def test_hostile_headers(hub: Hub, files: dict[str, bytes], here: Path) -> None:
    """The same checks as for local shards, and nothing allocated on a header's word."""
    for content, what in (
        (b"", "is truncated"),
        (b"abc", "is truncated"),
        ((2**63).to_bytes(8, "little") + b"{", "has an invalid header: a length"),
        (b"<!doctype html>" + b" " * 99, "is an HTML page"),
        (files[FIRST][:-1], "is truncated"),
        (files[FIRST] + b"?", "after tensor"),
    ):
        hub.add(REPO, files | {FIRST: content})
        with pytest.raises(HeaderError, match=what) as caught:
            open_remote(REPO, None, here).catalog()
        assert caught.value.where == str(here / FIRST)


def test_an_index_that_does_not_fit(hub: Hub, files: dict[str, bytes], here: Path) -> None:
    index = {"weight_map": {"a": FIRST, "b": SECOND, "c": SECOND, "scalar": FIRST}}
    hub.add(REPO, files | {INDEX: json.dumps(index).encode()})
    with pytest.raises(ShardIndexError, match="1 tensors of the index are in no shard"):
        open_remote(REPO, None, here).catalog()


def test_a_single_file(hub: Hub, files: dict[str, bytes], here: Path) -> None:
    hub.add(REPO, {"config.json": b"{}", "model.safetensors": files[SECOND]})
    model = open_remote(REPO, None, here)
    assert list(model.shards) == ["model.safetensors"]
    assert list(model.catalog()) == ["b"]


def test_a_hub_that_tells_no_hashes(hub: Hub, files: dict[str, bytes], here: Path) -> None:
    hub.tells_metadata = False
    hub.add(REPO, files)
    with pytest.raises(HubError, match=r"does not say what .* hashes to"):
        open_remote(REPO, None, here)


def test_large_files_on_another_host_get_no_token(
    hub: Hub, files: dict[str, bytes], here: Path
) -> None:
    hub.add(REPO, files)
    with http_server.serving(storage := Storage(), "localhost"):
        hub.storage = storage
        model = open_remote(REPO, None, here)
        assert len(model.catalog()) == 3
        assert model.fetch(FIRST).read_bytes() == files[FIRST]
    assert f"GET /objects/{sha256(files[FIRST])}" in storage.requests
    assert set(storage.tokens) == {""}
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}
