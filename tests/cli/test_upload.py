"""`convert --upload-repo`: a model folder published on a hub by the hub's own client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, close_session, constants

from convert.cli import main
from tests.factories_models import tiny_model
from tests.hub_server import Answer
from tests.hub_upload_server import CUT, TOKEN, XET_TOKEN, UploadHub, serving_uploads

REPO = "me/tiny-4bit"
FRONT = "license: mit\nlanguage:\n- no\ntags: [chat]\nbase_model: org/older\n"
CARD = f"---\n{FRONT}---\n# Tiny\n\nIt is.\n"
FAULT = Answer(500)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """A hub on this machine, a token for it, and no waiting between tries."""
    with serving_uploads() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"))
        monkeypatch.setattr("convert.upload._WAITS", (0.0, 0.0))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        yield hub
        close_session()


@pytest.fixture(scope="module")
def made() -> dict[str, Path]:
    """What tests of this module have converted."""
    return {}


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted folder of several shards, made without a hub, that a test may change."""
    if "out" not in made:
        home = tmp_path_factory.mktemp("made")
        source = tiny_model(home / "llama", "llama")
        (source / "README.md").write_text(CARD)
        flags = ["-q", "--max-shard-size", "150KB", "--mlx-path", str(home / "out"), "--quiet"]
        assert main(["--hf-path", str(source), *flags]) == 0
        made["out"] = home / "out"
    shutil.copytree(made["out"], tmp_path / "out")
    return tmp_path / "out"


def cached(source: Path, cache: Path, repo: str = "org/tiny") -> str:
    """Put a checkpoint into the hub's cache, as if it had been downloaded; gives its commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.copytree(source, home / "snapshots" / commit)
    return commit


def publish(folder: Path, *flags: str, repo: str = REPO) -> int:
    return main(["--verify", str(folder), "--upload-repo", repo, *flags])


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert TOKEN not in err and "Traceback" not in err
    return err.splitlines()[-1]


def test_converted_and_uploaded_in_one_command(
    hub: UploadHub, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (llama / "README.md").write_text(CARD)
    commit = cached(llama, tmp_path / "cache")
    out = tmp_path / "out"
    flags = ["-q", "--mlx-path", str(out), "--upload-repo", REPO, "--private"]
    assert main(["--hf-path", "org/tiny", *flags]) == 0
    printed, told = capsys.readouterr()
    assert printed == f"{out}\n"
    assert told.splitlines()[-1] == f"uploaded: {hub.endpoint}/{REPO}"
    assert "\x1b" not in told and "\r" not in told and TOKEN not in told

    repo = hub.repos[REPO]
    assert repo.private
    assert repo.messages == ["initial commit", "Upload a model converted by mlx-ferry"]
    assert set(repo.files) == {".gitattributes", *os.listdir(out)}
    for name in set(os.listdir(out)) - {"README.md", "conversion.json"}:
        assert repo.files[name] == (out / name).read_bytes(), name

    card = ModelCard(repo.files["README.md"].decode())
    assert card.data.base_model == "org/tiny"
    assert card.data.to_dict()["base_model_relation"] == "quantized"
    assert (card.data.license, card.data.library_name) == ("mit", "mlx")
    assert card.data.tags == ["chat", "mlx"]
    assert f"https://huggingface.co/org/tiny/tree/{commit}" in card.text
    assert f"infer --model {REPO} " in card.text and "mlx_lm.generate --model" in card.text
    assert repo.files["README.md"].endswith(b"# Tiny\n\nIt is.\n")
    assert b"- no\n" in repo.files["README.md"]


def test_what_was_uploaded_verifies_where_it_is_downloaded(
    hub: UploadHub, folder: Path, tmp_path: Path
) -> None:
    assert publish(folder) == 0
    there = tmp_path / "downloaded"
    there.mkdir()
    for name, content in hub.repos[REPO].files.items():
        (there / name).write_bytes(content)
    assert main(["--verify", str(there)]) == 0
    assert b"infer --model . " in (folder / "README.md").read_bytes()
    published = b"".join(
        (there / name).read_bytes() for name in ("README.md", "conversion.json", "config.json")
    )
    assert str(tmp_path.parent).encode() not in published
    assert (
        json.loads((there / "conversion.json").read_text())["source"]["given"] == "a local folder"
    )


def test_the_token_goes_to_the_hub_only(hub: UploadHub, folder: Path) -> None:
    assert publish(folder) == 0
    assert {request.token for request in hub.requests} == {f"Bearer {TOKEN}"}
    assert {request.token for request in hub.stored} == {""}
    assert len(hub.stored) == len(list(folder.glob("*.safetensors"))) > 1


def test_a_fault_in_the_middle_is_tried_again(hub: UploadHub, folder: Path) -> None:
    hub.faults = {
        "PUT /object": [FAULT, CUT],
        "POST .*/preupload": [Answer(503)],
        "POST .*/commit": [Answer(502), CUT],
        "GET .*/tree": [Answer(504)],
    }
    assert publish(folder) == 0
    assert not any(hub.faults.values())
    assert len(hub.repos[REPO].commits) == 2


def test_an_interrupted_upload_goes_on_where_it_stopped(
    hub: UploadHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    digests = [hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards]
    hub.faults = {f"PUT /object/{digests[1]}": [Answer(403)]}
    assert publish(folder) == 1
    line = last_line(capsys)
    assert line.startswith(f"error: {REPO}: ")
    assert f"go on with `convert --verify {folder} --upload-repo {REPO}`" in line
    assert hub.repos[REPO].files.keys() == {".gitattributes"}, "half a model is never there"
    assert list(hub.objects) == digests[:1]

    hub.stored.clear()
    assert publish(folder) == 0
    assert [request.path for request in hub.stored] == [f"/object/{oid}" for oid in digests[1:]]
    assert {shard.name for shard in shards} < hub.repos[REPO].files.keys()

    hub.stored.clear()
    assert publish(folder) == 0
    assert not hub.stored and len(hub.repos[REPO].commits) == 2, "nothing is new"


KILLED = (
    "import os, sys\nfrom convert import upload\nfrom convert.cli import main\n"
    "sent = upload.HfApi.preupload_lfs_files\n"
    "def once(*args, **options):\n"
    "    sent(*args, **options)\n    os.kill(os.getpid(), 9)\n"
    "upload.HfApi.preupload_lfs_files = once\nmain(sys.argv[1:])\n"
)
WHOLE = "import sys\nfrom convert.cli import main\nsys.exit(main(sys.argv[1:]))\n"


def in_a_process(
    code: str, hub: UploadHub, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, "--verify", str(folder), "--upload-repo", REPO]
    apart = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder.parent / "home")}
    return subprocess.run(
        command, env=os.environ | apart | environment, capture_output=True, text=True
    )


def test_killed_in_the_middle(hub: UploadHub, folder: Path) -> None:
    assert in_a_process(KILLED, hub, folder, HF_HUB_DISABLE_XET="1").returncode == -9
    (first,) = hub.objects
    hub.stored.clear()
    assert publish(folder) == 0
    assert f"/object/{first}" not in {request.path for request in hub.stored}


def test_by_xet_too_nothing_is_sent_twice(hub: UploadHub, folder: Path) -> None:
    """The way large files go by default; a process of its own, for the client's threads."""
    for shard in folder.glob("*.safetensors"):  # what the blocks would be put together to
        hub.objects[hashlib.sha256(shard.read_bytes()).hexdigest()] = shard.read_bytes()

    def blocks() -> list[str]:
        return [request.path for request in hub.stored if "/xorbs/" in request.path]

    assert in_a_process(KILLED, hub, folder).returncode == -9
    first = blocks()
    assert first and REPO in hub.repos and len(hub.repos[REPO].commits) == 1
    done = in_a_process(WHOLE, hub, folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"uploaded: {hub.endpoint}/{REPO}\n"
    assert len(blocks()) > len(first) and len(set(blocks())) == len(blocks())
    assert {request.token for request in hub.stored} == {f"Bearer {XET_TOKEN}"}
    assert len(hub.repos[REPO].commits) == 2


def test_xet_storage_that_refuses(hub: UploadHub, folder: Path) -> None:
    hub.faults = {"GET .*/xet-write-token": [Answer(403)]}
    refused = in_a_process(WHOLE, hub, folder)
    assert refused.returncode == 1
    assert "does not let this token write there" in refused.stderr
    assert TOKEN not in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_only_the_files_of_the_receipt_go(
    hub: UploadHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".DS_Store").write_bytes(b"junk")
    (folder / ".git").mkdir()
    (folder / "notes.txt").write_text("mine")
    assert publish(folder) == 0
    err = capsys.readouterr().err
    assert "not uploaded" in err and ".DS_Store" in err and "notes.txt" in err
    strays = {".DS_Store", ".git", "notes.txt"}
    assert set(hub.repos[REPO].files) == {".gitattributes", *os.listdir(folder)} - strays


def test_a_repository_with_another_model_is_left_alone(
    hub: UploadHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"README.md": b"---\nbase_model: org/other\n---\n", "model.safetensors": b"weights"}
    repo = hub.add(REPO, files)
    assert publish(folder) == 1
    line = last_line(capsys)
    assert "holds another model, made from 'org/other'" in line
    assert f"`convert --verify {folder} --upload-repo ORG/NAME`" in line
    assert len(repo.commits) == 2 and not hub.stored


def test_a_repository_of_the_same_base_is_brought_up_to_date(
    hub: UploadHub, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(llama, tmp_path / "cache")
    old = {
        "README.md": b"---\nbase_model:\n- org/tiny\n---\n",
        "model-00001-of-00002.safetensors": b"old weights",
        "picture.png": b"kept",
    }
    repo = hub.add(REPO, old)
    out = tmp_path / "out"
    flags = ["-q", "--mlx-path", str(out), "--upload-repo", REPO]
    assert main(["--hf-path", "org/tiny", *flags]) == 0
    assert set(repo.files) == {".gitattributes", "picture.png", *os.listdir(out)}
    assert "files of the model that was there go: 'model-00001" in capsys.readouterr().err


def test_an_empty_repository_is_filled(hub: UploadHub, folder: Path) -> None:
    repo = hub.add(REPO, {"README.md": b"# soon\n", "LICENSE": b"mine"}, private=True)
    assert publish(folder, "--private") == 0
    assert repo.private and "conversion.json" in repo.files


def test_private_is_not_made_public_by_a_repository_that_is(
    hub: UploadHub, llama: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(REPO, {})
    assert publish(folder, "--private") == 1
    assert "is there already, and public" in last_line(capsys)
    new = tmp_path / "new"
    flags = ["--mlx-path", str(new), "--upload-repo", REPO, "--private"]
    assert main(["--hf-path", str(llama), *flags]) == 1
    assert not new.exists(), "refused before the conversion"


@pytest.mark.parametrize(
    ("request_line", "answer", "said"),
    [
        ("POST /api/repos/create", Answer(403), "does not let this token write there"),
        ("GET /api/whoami", Answer(401), "does not accept the token"),
        ("POST .*/preupload", Answer(404), "has no such repository"),
        ("POST .*/preupload", Answer(413), "takes no file or commit of this size"),
        ("POST .*/commit", Answer(409), "is being changed by someone else"),
        ("POST .*/commit", Answer(412), "was changed by someone else meanwhile"),
        ("POST .*/commit", Answer(429), "asks for fewer requests"),
        ("POST .*/commit", Answer(500), "has a fault of its own (500)"),
        ("PUT /object", Answer(503), "has a fault of its own (503)"),
        ("PUT /object", CUT, "the connection to 127.0.0.1 was cut"),
        ("GET .*/tree", CUT, "the connection to 127.0.0.1 was cut"),
        ("POST .*/commit", Answer(200, body=b"<html>"), "does not answer like a hub"),
        ("POST .*/batch", Answer(200, body=b"[]"), "does not answer like a hub"),
        (
            "POST .*/batch",
            Answer(403, {"X-Error-Message": "Private repository storage limit reached"}),
            "storage for this account is used up",
        ),
        (
            "POST .*/commit",
            Answer(400, {"X-Error-Message": f"bad\x1b[2J {TOKEN} name"}),
            "refused the upload (400)",
        ),
    ],
)
def test_what_can_go_wrong_is_told_in_one_line(
    hub: UploadHub,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    request_line: str,
    answer: Answer,
    said: str,
) -> None:
    hub.faults = {request_line: [answer] * 40}
    assert publish(folder) == 1
    line = last_line(capsys)
    assert line.startswith("error: ") and said in line
    assert "\x1b" not in line
    hub.faults.clear()
    assert publish(folder) == 0
    assert len(hub.repos[REPO].commits) == 2


def test_a_quota_told_for_a_file(
    hub: UploadHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"code": 403, "message": "storage quota exceeded"}
    body = json.dumps({"objects": [{"oid": "0" * 64, "size": 1, "error": error}]}).encode()
    hub.faults = {"POST .*/batch": [Answer(200, body=body)]}
    assert publish(folder) == 1
    assert "storage for this account is used up" in last_line(capsys)


def test_a_name_is_no_message_about_a_quota(
    hub: UploadHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(folder, repo="nobody/quota") == 1
    assert "does not let this token write there" in last_line(capsys)


def test_bytes_that_arrive_otherwise_are_noticed(
    hub: UploadHub,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = UploadHub._commit

    def damaged(self: UploadHub, *args: Any) -> Answer:
        reply = commit(self, *args)
        files = self.repos[REPO].files
        files["tokenizer.json"] = files["tokenizer.json"][:-1] + b"X"
        return reply

    from tests import hub_upload_server

    (route,) = [key for key in hub_upload_server._ROUTES if "/commit/" in key]
    monkeypatch.setitem(hub_upload_server._ROUTES, route, damaged)
    assert publish(folder) == 1
    assert "has other bytes than were sent: 'tokenizer.json'" in last_line(capsys)


def test_front_matter_that_the_hub_refuses_stops_before_anything_is_sent(
    hub: UploadHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps({"errors": [{"message": '"license" must be one of ...'}]}).encode()
    hub.faults = {"POST /api/validate-yaml": [Answer(400, body=body)]}
    assert publish(folder) == 1
    assert 'refuses its front matter: \'"license" must be' in last_line(capsys)
    assert not hub.stored


NEVER_TRIED = [
    (["--upload-repo", "a//b"], {}, 2, "can't be a repository"),
    (["--upload-repo", "tiny"], {}, 2, "has no owner"),
    (["--upload-repo", "me/ti ny"], {}, 2, "can't be a repository"),
    (["--upload-repo", REPO], {"HF_TOKEN": ""}, 1, "hf auth login"),
    (["--upload-repo", REPO], {"HF_TOKEN": "hf_ünsafe"}, 1, "a character that no token has"),
]


@pytest.mark.parametrize(("flags", "environment", "code", "said"), NEVER_TRIED)
def test_refused_before_the_conversion(
    hub: UploadHub,
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    environment: dict[str, str],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    assert main(["--hf-path", str(llama), "--mlx-path", str(out), *flags]) == code
    assert said in last_line(capsys)
    assert not out.exists() and not hub.requests


def test_offline_is_refused_before_the_conversion(
    hub: UploadHub,
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    out = tmp_path / "out"
    assert main(["--hf-path", str(llama), "--mlx-path", str(out), "--upload-repo", REPO]) == 1
    assert "HF_HUB_OFFLINE is set" in last_line(capsys)
    assert not out.exists()


def test_a_token_that_may_only_read_is_refused_before_the_conversion(
    hub: UploadHub, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.role = "read"
    out = tmp_path / "out"
    assert main(["--hf-path", str(llama), "--mlx-path", str(out), "--upload-repo", REPO]) == 1
    assert "the token may only read" in last_line(capsys)
    assert not out.exists()


def test_a_folder_without_receipt_and_a_damaged_one(
    hub: UploadHub, llama: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(llama) == 1
    assert "has no conversion.json" in last_line(capsys)
    with (folder / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    assert publish(folder) == 1
    (folder / "tokenizer.json").unlink()
    assert publish(folder) == 1
    assert not hub.repos


def test_a_second_conversion_gives_the_same_card(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "llama", "llama")
    (source / "README.md").write_text(CARD)
    for name in ("a", "b"):
        assert main(["--hf-path", str(source), "-q", "--mlx-path", str(tmp_path / name)]) == 0
    cards = [(tmp_path / name / "README.md").read_bytes() for name in ("a", "b")]
    assert cards[0] == cards[1] and str(tmp_path).encode() not in cards[0]
    assert b"base_model: org/older" in cards[0], "of a local source nothing better is known"


def test_a_source_card_that_can_t_be_read_is_left_out_and_said(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    (llama / "README.md").write_bytes(f"---\n{bomb}---\n# Tiny \x1b[2J".encode() + b"\xff")
    out = tmp_path / "out"
    assert main(["--hf-path", str(llama), "--mlx-path", str(out)]) == 0
    err = capsys.readouterr().err
    assert (
        "warning: README.md: its front matter is left out of the new card: it has an alias" in err
    )
    card = (out / "README.md").read_text()
    assert "*a" not in card and ModelCard(card).data.library_name == "mlx"
    warnings = json.loads((out / "conversion.json").read_text())["warnings"]
    assert any("front matter" in warning for warning in warnings)
