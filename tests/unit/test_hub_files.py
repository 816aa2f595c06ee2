"""What comes from the hub is what the hub has: hashes, resumed downloads, tokens; cases 52, 53."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from filelock import FileLock
from huggingface_hub import close_session, constants

from checkpoint import disk
from checkpoint.source import resolve_source
from checkpoint.verified import hash_file
from configs.errors import DiskError, HubError, SourceError
from tests import http_server
from tests.factories import write_sharded
from tests.hub_server import Answer, Hub, Storage, git_id, point_library_at, serving, sha256

REPO = "org/tiny-model"
TOKEN = "hf_averysecrettokenindeed"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = {
    FIRST: {"a": ("F32", (64, 64))},
    SECOND: {"b": ("F16", (4,))},
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = write_sharded(tmp_path / "made", SHARDS)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("config.json", "tokenizer.json", "LICENSE"):
        content[name] = f"content of {name}".encode()
    return content


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        point_library_at(hub, str(tmp_path / "cache"), monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
        close_session()


def flip(path: Path, at: int = -1) -> Path:
    """Change one byte of the file behind a link; gives that file."""
    real = path.resolve()
    data = bytearray(real.read_bytes())
    data[at] ^= 1
    real.write_bytes(data)
    return real


def blobs(tmp_path: Path) -> Path:
    return tmp_path / "cache/hub/models--org--tiny-model/blobs"


# What is in the cache


@pytest.mark.parametrize("name", [FIRST, "config.json", "tokenizer.json", "LICENSE", INDEX])
def test_a_flipped_byte_in_the_cache(hub: Hub, files: dict[str, bytes], name: str) -> None:
    hub.add(REPO, files)
    blob = flip(resolve_source(REPO).path / name)
    hub.forget()
    with pytest.raises(SourceError, match=r"is damaged: it has (sha256|git id) ") as caught:
        resolve_source(REPO)
    assert caught.value.where == str(blob)
    assert "delete it and run this again" in caught.value.mend
    assert hub.requests == []
    blob.unlink()
    assert (resolve_source(REPO).path / name).read_bytes() == files[name]


def test_all_damaged_files_are_named(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    folder = resolve_source(REPO).path
    damaged = [flip(folder / name) for name in (FIRST, "config.json")]
    with pytest.raises(SourceError) as caught:
        resolve_source(REPO)
    assert all(str(blob) in str(caught.value) for blob in damaged)


def test_a_file_is_hashed_again_only_when_it_changed(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files)
    folder = resolve_source(REPO).path
    hashed: list[str] = []
    monkeypatch.setattr(
        "checkpoint.verified.hash_file",
        lambda path, *rest: hashed.append(path.name) or hash_file(path, *rest),
    )
    resolve_source(REPO)
    assert hashed == []
    os.utime((folder / FIRST).resolve())
    resolve_source(REPO)
    assert hashed == [sha256(files[FIRST])]
    resolve_source(REPO)
    assert len(hashed) == 1


def test_a_cache_that_others_filled_is_checked_once(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our own notes every file counts as unchecked."""
    hub.add(REPO, files)
    blob = (resolve_source(REPO).path / FIRST).resolve()
    state = blob.stat()
    blob.write_bytes(files[FIRST][:-1] + b"?")
    os.utime(blob, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert resolve_source(REPO).commit  # the notes say that nothing has changed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(SourceError, match="is damaged"):
        resolve_source(REPO)


def test_own_notes_that_can_not_be_read_or_written(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(REPO, files)
    own = tmp_path / "cache/own"
    own.parent.mkdir()
    own.write_text("a file where the folder should be")
    folder = resolve_source(REPO).path
    own.unlink()
    assert resolve_source(REPO).path == folder
    notes = list((own / "mlx-ferry/checked").iterdir())
    assert notes
    for note in notes:
        note.write_text("[" * 100_000)
    assert resolve_source(REPO).path == folder


def test_a_cache_without_links(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk with exFAT: each file lies in the snapshot itself, and is checked too."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    hub.add(REPO, files)
    folder = resolve_source(REPO).path
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert (folder / FIRST).read_bytes() == files[FIRST]
    assert resolve_source(REPO).path == folder
    assert flip(folder / FIRST) == folder / FIRST
    with pytest.raises(SourceError, match="is damaged"):
        resolve_source(REPO)


def test_long_checks_are_told_of(
    hub: Hub,
    files: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.add(REPO, files)
    monkeypatch.setattr("checkpoint.byte_bar._WORTH_A_LINE", 10_000)
    folder = resolve_source(REPO).path
    os.utime((folder / FIRST).resolve())
    capfd.readouterr()
    resolve_source(REPO)
    assert capfd.readouterr() == ("", "checking 1 file (0.0 GB)\n")
    os.utime((folder / FIRST).resolve())
    resolve_source(REPO, quiet=True)
    assert capfd.readouterr() == ("", "")


# What comes over the network


def test_wrong_bytes(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """A large file that arrives damaged is fetched once more, and nothing of it stays."""
    hub.add(REPO, files)
    wrong = files[FIRST][:-1] + b"?"
    hub.faults[FIRST] = [Answer(200, body=wrong)]
    assert (resolve_source(REPO).path / FIRST).read_bytes() == files[FIRST]
    hub.add(REPO, other := files | {FIRST: files[FIRST][:-1] + b"!"}, "v2")
    hub.faults[FIRST] = [Answer(200, body=wrong)] * 2
    with pytest.raises(HubError, match="arrived damaged, twice: its sha256 ") as caught:
        resolve_source(REPO, "v2")
    assert caught.value.where == f"{REPO}/{FIRST}"
    assert not [path for path in blobs(tmp_path).iterdir() if "incomplete" in path.name]
    assert (resolve_source(REPO, "v2").path / FIRST).read_bytes() == other[FIRST]


def test_wrong_bytes_of_a_small_file(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """The library takes them without a look."""
    commit = hub.add(REPO, files)
    right = files["config.json"]
    answer = {"ETag": f'"{git_id(right)}"', "X-Repo-Commit": commit}
    hub.faults["resolve/.*/config.json"] = [Answer(200, answer, b"?" * len(right))] * 2
    with pytest.raises(SourceError, match="is damaged: it has git id") as caught:
        resolve_source(REPO)
    assert caught.value.where == str(blobs(tmp_path) / git_id(right))
    Path(caught.value.where).unlink()
    assert resolve_source(REPO).commit == commit


@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_size(hub: Hub, files: dict[str, bytes], change: int) -> None:
    hub.add(REPO, files)
    size = len(files[FIRST]) + change
    hub.faults[FIRST] = [Answer(200, body=b"x" * size)]
    with pytest.raises(HubError, match=f"has {size:,} bytes, where the hub lists") as caught:
        resolve_source(REPO)
    assert caught.value.where == f"{REPO}/{FIRST}"
    assert resolve_source(REPO).origin == "hub"


def test_a_cut_connection_is_gone_on_with(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    hub.faults[FIRST] = [Answer(200, body=files[FIRST], cut=n) for n in (5000, 3000)]
    assert (resolve_source(REPO).path / FIRST).read_bytes() == files[FIRST]
    assert [one.get("range") for one in hub.asked(FIRST)] == [None, "bytes=5000-", "bytes=8000-"]


def test_the_next_run_goes_on(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(REPO, files)
    hub.faults[FIRST] = [Answer(200, body=files[FIRST], cut=n) for n in (5000, 1000, 0)]
    with pytest.raises(HubError, match=r"the connection to 127\.0\.0\.1 was cut") as caught:
        resolve_source(REPO)
    assert "what is downloaded stays" in caught.value.mend
    [left] = blobs(tmp_path).glob(f"{sha256(files[FIRST])}*incomplete")
    assert left.stat().st_size == 6000
    hub.forget()
    assert (resolve_source(REPO).path / FIRST).read_bytes() == files[FIRST]
    assert [one.get("range") for one in hub.asked(FIRST)] == ["bytes=6000-"]
    assert not list(blobs(tmp_path).glob("*incomplete"))


def test_what_is_left_of_another_file(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """A beginning that is damaged, or longer than the whole, costs a fresh start."""
    hub.add(REPO, files)
    left = blobs(tmp_path) / f"{sha256(files[FIRST])}.mlx-ferry.incomplete"
    left.parent.mkdir(parents=True)
    for content in (b"x" * 100, b"x" * (len(files[FIRST]) + 1), b"x" * len(files[FIRST])):
        left.write_bytes(content)
        path = resolve_source(REPO).path / FIRST
        assert path.read_bytes() == files[FIRST]
        path.resolve().unlink()


def test_a_server_that_knows_no_parts(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    hub.knows_ranges = False
    hub.faults[FIRST] = [Answer(200, body=files[FIRST], cut=5000)]
    assert (resolve_source(REPO).path / FIRST).read_bytes() == files[FIRST]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(206, {"Content-Range": "bytes 7-99/100"}, b"x" * 93),
        Answer(206, {}, b"x"),
        Answer(200, {"Content-Encoding": "gzip"}, b"x"),
    ],
    ids=["another part", "no part named", "compressed"],
)
def test_answers_that_are_no_part(hub: Hub, files: dict[str, bytes], answer: Answer) -> None:
    hub.add(REPO, files)
    hub.faults[FIRST] = [answer] * 9
    with pytest.raises(HubError):
        resolve_source(REPO)
    assert len(hub.asked(FIRST)) <= 3
    hub.faults.clear()
    assert (resolve_source(REPO).path / FIRST).read_bytes() == files[FIRST]


@pytest.mark.parametrize(
    ("status", "what"), [(429, r"fewer requests \(429\)"), (503, r"a fault of its own \(503\)")]
)
def test_bounded_tries(hub: Hub, files: dict[str, bytes], status: int, what: str) -> None:
    hub.add(REPO, files)
    hub.faults[FIRST] = [Answer(status)] * 2
    assert resolve_source(REPO).origin == "hub"
    hub.add(REPO, files | {FIRST: files[FIRST][:-1] + b"!"}, "v2")
    hub.forget()
    hub.faults[FIRST] = [Answer(status)] * 99
    with pytest.raises(HubError, match=what):
        resolve_source(REPO, "v2")
    assert len(hub.asked(FIRST)) == 3


@pytest.mark.parametrize("pattern", ["^/api/models/[^/]*/[^/]*$", "config.json", FIRST])
def test_a_server_that_asks_to_wait_too_long(
    hub: Hub, files: dict[str, bytes], pattern: str
) -> None:
    hub.add(REPO, files)
    hub.faults[pattern] = [Answer(429, {"Retry-After": "86400"})] * 9
    with pytest.raises(HubError, match="asks for fewer requests") as caught:
        resolve_source(REPO)
    assert "wait 86400 seconds" in caught.value.mend
    assert len(hub.faults[pattern]) >= 7


def test_a_server_that_asks_to_wait(
    hub: Hub, files: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    hub.add(REPO, files)
    hub.faults["^/api/models/[^/]*/[^/]*$"] = [Answer(503, {"Retry-After": "1"})]
    hub.faults[FIRST] = [Answer(429, {"Retry-After": "1"})]
    assert resolve_source(REPO).origin == "hub"
    assert capfd.readouterr().err == "warning: 127.0.0.1 asks to wait 1 seconds\n" * 2


@pytest.mark.parametrize("pattern", ["^/api/models/", FIRST])
def test_a_server_that_goes_silent(
    hub: Hub, files: dict[str, bytes], pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpoint.hub_client.TIMEOUT", 0.2)
    hub.add(REPO, files)
    go_on = Event()
    body = files[FIRST] if pattern == FIRST else b"{" * 99
    try:
        hub.faults[pattern] = [Answer(200, body=body, cut=50, held=go_on) for _ in range(9)]
        with pytest.raises(HubError, match=r"127\.0\.0\.1 does not answer in time"):
            resolve_source(REPO)
        assert len(hub.faults[pattern]) == 6
    finally:
        go_on.set()


def test_another_process_that_downloads_the_same(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is waited for, and its file taken."""
    hub.add(REPO, files)
    name = sha256(files[FIRST])
    lock = blobs(tmp_path).parents[1] / ".locks/models--org--tiny-model" / f"{name}.lock"
    lock.parent.mkdir(parents=True)
    blobs(tmp_path).mkdir(parents=True)
    held = FileLock(lock, thread_local=False)
    held.acquire()

    def finish() -> None:
        while "waiting for another process" not in (told := capfd.readouterr().err):
            assert told == ""
        (blobs(tmp_path) / name).write_bytes(files[FIRST])
        held.release()

    other = Thread(target=finish)
    other.start()
    assert (resolve_source(REPO).path / FIRST).read_bytes() == files[FIRST]
    other.join()
    assert hub.asked(FIRST) == []


def test_only_the_files_that_are_needed(hub: Hub, files: dict[str, bytes]) -> None:
    unwanted = ["model.safetensors", "model.fp16.safetensors", "model-00003-of-00003.safetensors"]
    hub.add(REPO, files | dict.fromkeys(unwanted, b"not one of the shards"))
    folder = resolve_source(REPO).path
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    hub.forget()
    assert resolve_source(REPO).path == folder
    assert hub.requests == []


def test_a_single_file(hub: Hub, files: dict[str, bytes]) -> None:
    single = {name: files[name] for name in ("config.json", "tokenizer.json", "LICENSE")}
    single["model.safetensors"] = files[FIRST]
    hub.add(REPO, single | {"model.fp16.safetensors": b"another precision"})
    folder = resolve_source(REPO).path
    assert sorted(path.name for path in folder.iterdir()) == sorted(single)


def test_shards_that_the_repository_lacks(hub: Hub, files: dict[str, bytes]) -> None:
    del files[SECOND]
    hub.add(REPO, files)
    with pytest.raises(HubError, match=f"lacks 1 of the 2 shards .*: '{SECOND}'"):
        resolve_source(REPO)
    assert hub.asked(FIRST) == []


def test_an_index_that_is_none(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files | {INDEX: json.dumps({"weight_map": {"a": "../x"}}).encode()})
    with pytest.raises(SourceError, match="puts tensor 'a' into"):
        resolve_source(REPO)
    assert hub.asked("safetensors$") == []


def test_a_mirror_that_tells_no_sizes(hub: Hub, files: dict[str, bytes]) -> None:
    """The library downloads it all then; the names in its cache still tell the hashes."""
    hub.tells_metadata = False
    hub.add(REPO, files)
    folder = resolve_source(REPO).path
    assert (folder / FIRST).read_bytes() == files[FIRST]
    flip(folder / FIRST)
    with pytest.raises(SourceError, match="is damaged"):
        resolve_source(REPO)


def test_files_that_are_in_xet_too(hub: Hub, files: dict[str, bytes]) -> None:
    """They come by plain HTTP, which can be gone on with."""
    hub.xet = True
    hub.add(REPO, files)
    hub.faults[FIRST] = [Answer(200, body=files[FIRST], cut=5000)]
    assert (resolve_source(REPO).path / FIRST).read_bytes() == files[FIRST]
    assert not any("xet" in asked for asked in hub.requests)


@pytest.mark.parametrize("setting", ["HF_XET_HIGH_PERFORMANCE", "MAX_HTTP_DOWNLOAD_SIZE"])
def test_what_is_left_to_the_library(
    hub: Hub, files: dict[str, bytes], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is checked all the same."""
    monkeypatch.setattr(constants, setting, 1000)
    hub.add(REPO, files)
    if setting == "MAX_HTTP_DOWNLOAD_SIZE":
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        with pytest.raises(HubError, match="more than the hub sends by plain HTTP"):
            resolve_source(REPO)
        return
    hub.faults[f"resolve/.*/{FIRST}"] = [
        Answer(
            200,
            {"ETag": f'"{sha256(files[FIRST])}"', "X-Repo-Commit": hub.branches[REPO]["main"]},
            files[FIRST][:-1] + b"?",
        )
        for _ in range(2)
    ]
    with pytest.raises(SourceError, match="is damaged"):
        resolve_source(REPO)


def test_a_disk_that_is_too_small(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files)
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    with pytest.raises(HubError, match=r"needs \d+,\d+ bytes in .*, where 1,000 are free"):
        resolve_source(REPO)
    assert hub.asked("safetensors$") == []


def test_room_for_what_is_still_missing(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files)
    blobs(tmp_path).mkdir(parents=True)
    partial = blobs(tmp_path) / f"{sha256(files[FIRST])}.mlx-ferry.incomplete"
    partial.write_bytes(files[FIRST][:-100])
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    assert resolve_source(REPO).origin == "hub"


def test_a_disk_that_is_full(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files)
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 1000:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskError, match="the disk is full"):
        resolve_source(REPO)
    monkeypatch.setattr(os, "pwrite", real)
    assert resolve_source(REPO).origin == "hub"


@pytest.mark.parametrize(
    "said",
    [
        {"siblings": [5]},
        {"siblings": "config.json"},
        {"siblings": [{"rfilename": 5}]},
        {"siblings": [{"rfilename": "x", "lfs": 5}]},
        {"lastModified": "yesterday"},
        {"lastModified": 5},
    ],
)
def test_info_of_another_shape(hub: Hub, files: dict[str, bytes], said: dict[str, object]) -> None:
    commit = hub.add(REPO, files)
    body = json.dumps({"id": REPO, "sha": commit} | said).encode()
    hub.faults["^/api/"] = [Answer(200, body=body)]
    with pytest.raises(HubError, match="does not answer like a hub"):
        resolve_source(REPO)


@pytest.mark.parametrize("sha", ["../../../x", "0" * 39, None, 5])
def test_a_commit_that_is_none(hub: Hub, files: dict[str, bytes], sha: object) -> None:
    hub.add(REPO, files)
    body = json.dumps({"id": REPO, "sha": sha, "siblings": []}).encode()
    hub.faults["^/api/"] = [Answer(200, body=body)]
    with pytest.raises(HubError, match="gives no commit"):
        resolve_source(REPO)


@pytest.mark.parametrize(
    ("oid", "size"), [("../../x", -1), ("", "5"), ("0" * 65, 2.5), (7, None), (None, True)]
)
def test_metadata_that_is_none(
    hub: Hub, files: dict[str, bytes], oid: object, size: object, tmp_path: Path
) -> None:
    """No name of a file is made of it; the library's own word counts then."""
    commit = hub.add(REPO, files)
    lfs = {"sha256": oid, "size": size, "pointerSize": 1}
    siblings = [{"rfilename": name, "size": size, "blobId": oid, "lfs": lfs} for name in files]
    body = json.dumps({"id": REPO, "sha": commit, "siblings": siblings}).encode()
    hub.faults["^/api/models/[^/]*/[^/]*$"] = [Answer(200, body=body)]
    assert (resolve_source(REPO).path / FIRST).read_bytes() == files[FIRST]
    assert {path.name for path in blobs(tmp_path).parent.iterdir()} <= {
        "blobs", "refs", "snapshots", "trees",
    }  # fmt: skip


# Tokens


def test_tokens_go_to_the_hub_alone(hub: Hub, files: dict[str, bytes]) -> None:
    storage = Storage()
    with http_server.serving(storage, "localhost"):
        hub.storage = storage
        hub.add(REPO, files)
        hub.faults["resolve/.*/LICENSE"] = []
        assert (resolve_source(REPO).path / FIRST).read_bytes() == files[FIRST]
    assert len(storage.requests) >= 3
    assert set(storage.tokens) == {""}
    assert not any(TOKEN in value for one in storage.headers for value in one.values())
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("name", ["config.json", FIRST])
def test_redirects_to_another_host_carry_no_token(
    hub: Hub, files: dict[str, bytes], name: str
) -> None:
    commit = hub.add(REPO, files)
    other = Storage(objects={"/elsewhere": files[name]})
    with http_server.serving(other):  # the same name, another port
        etag = git_id(files[name])
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        headers["Location"] = f"{other.endpoint}/elsewhere"
        hub.faults[f"resolve/.*/{name}"] = [Answer(302, headers, b"")] * 2
        assert (resolve_source(REPO).path / name).read_bytes() == files[name]
    assert other.requests
    assert set(other.tokens) == {""}


@pytest.mark.parametrize("token", [f"{TOKEN}\x00x", f"{TOKEN}é"])
def test_a_token_that_can_not_be_sent(
    hub: Hub, files: dict[str, bytes], token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The HTTP library would show it."""
    hub.add(REPO, files)
    monkeypatch.delenv("HF_TOKEN")
    path = tmp_path / "token"
    path.write_text(token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(path))
    with pytest.raises(HubError, match="the hub token holds a character") as caught:
        resolve_source(REPO)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_tracebacks_show_no_token(hub: Hub, files: dict[str, bytes], status: int) -> None:
    """Not even where the server sends it back."""
    hub.add(REPO, files)
    body = json.dumps({"error": f"token {TOKEN} is bad"}).encode()
    hub.faults["^/api/"] = [Answer(status, {"X-Error-Message": TOKEN}, body)] * 9
    with pytest.raises(HubError) as caught:
        resolve_source(REPO)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_tracebacks_show_no_password(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:verysecret@127.0.0.1:9")
    with pytest.raises(HubError, match="can't be reached") as caught:
        resolve_source(REPO)
    assert "verysecret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("endpoint", ["huggingface", "ftp://127.0.0.1", "http://[", "http://a:b"])
def test_endpoints_that_are_none(hub: Hub, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(HubError, match=r"HF_ENDPOINT is not an address|can't be reached"):
        resolve_source(REPO)
