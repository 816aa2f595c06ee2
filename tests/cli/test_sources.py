"""Models from a hub through the commands: what is said, and what is left; cases 52 and 53."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from huggingface_hub import close_session, constants

from convert.cli import main
from inference.cli import main as infer
from tests import http_server
from tests.hub_server import Answer, Hub, point_library_at, serving, sha256
from tests.modelscope_server import ModelScope

ROOT = Path(__file__).parents[2]
REPO = "org/tiny-llama"
TOKEN = "hf_averysecrettokenindeed"
WEIGHTS = "model-00002-of-00003.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        point_library_at(hub, str(tmp_path / "cache"), monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield hub
        close_session()


@pytest.fixture
def files(llama: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in llama.iterdir()}


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """What users set, for a process of its own."""
    return os.environ | {
        "HF_ENDPOINT": f"{hub.endpoint}/",
        "HF_HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "own"),
        "HF_TOKEN": TOKEN,
        "NO_PROXY": "127.0.0.1",
    }


def resolve(hub: Hub, tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Resolve the model in a process of its own."""
    code = "import sys; from checkpoint.source import *; print(resolve_source(sys.argv[1]))"
    return subprocess.run(
        [sys.executable, "-c", code, REPO],
        cwd=ROOT,
        env=environment(hub, tmp_path) | more,
        capture_output=True,
        text=True,
    )


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert TOKEN not in err
    return err


def test_a_branch_that_moves(
    hub: Hub, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """All files are of the commit that the branch was when we asked."""
    commit = hub.add(REPO, files)
    newer = files | {"config.json": b"newer", WEIGHTS: b"newer"}
    hub.after["^/api/models/"] = lambda: hub.add(REPO, newer)
    assert main(["--hf-path", REPO, "--quiet", "--json"]) == 0
    out, err = capsys.readouterr()
    source = json.loads(out)["source"]
    assert source == {"given": REPO, "origin": "hub", "repo_id": REPO, "commit": commit}
    assert err == ""
    assert [asked for asked in hub.requests[1:] if commit not in asked] == []
    assert {asked.rpartition("/")[2] for asked in hub.requests[1:]} <= files.keys()


def test_a_flipped_byte_in_the_cache(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(REPO, files)
    assert main(["--hf-path", REPO, "--dry-run", "--quiet"]) == 0
    capsys.readouterr()
    [link] = (tmp_path / "cache").rglob(f"snapshots/*/{WEIGHTS}")
    blob = link.resolve()
    blob.write_bytes(files[WEIGHTS][:-1] + bytes([files[WEIGHTS][-1] ^ 1]))
    assert main(["--hf-path", REPO]) == 1
    error = error_of(capsys)
    assert error.startswith(f"error: {blob}: is damaged: it has sha256 ")
    assert error.endswith("; delete it and run this again\n")
    blob.unlink()
    assert main(["--hf-path", REPO, "--dry-run", "--quiet"]) == 0


def test_a_partial_snapshot_offline(
    hub: Hub,
    files: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.add(REPO, files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["--hf-path", REPO]) == 1
    assert "is not complete in the local cache; unset HF_HUB_OFFLINE" in error_of(capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert main(["--hf-path", REPO, "--dry-run", "--quiet"]) == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget()
    assert main(["--hf-path", REPO, "--quiet"]) == 0
    assert hub.requests == []
    capsys.readouterr()
    [link] = (tmp_path / "cache").rglob(f"snapshots/*/{WEIGHTS}")
    link.resolve().unlink()
    assert main(["--hf-path", REPO, "--force"]) == 1
    assert "is not complete in the local cache" in error_of(capsys)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(401, {"X-Error-Code": "GatedRepo"}), "is gated"),
        (Answer(403), "the hub forbids access with this token"),
        (Answer(404, {"X-Error-Code": "RevisionNotFound"}), "has no revision 'main'"),
        (Answer(429), "asks for fewer requests (429)"),
        (Answer(503), "has a fault of its own (503)"),
    ],
)
def test_faults(
    hub: Hub,
    files: dict[str, bytes],
    answer: Answer,
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    hub.add(REPO, files)
    answer.headers["X-Error-Message"] = f"\x1b[31m{TOKEN}"
    for command in (main, infer):
        flags = ["--hf-path", REPO] if command is main else ["--model", REPO, "--prompt", "x"]
        hub.faults["^/api/"] = [answer] * 9
        assert command(flags) == 1
        error = error_of(capsys)
        assert error.startswith(f"error: {REPO}: ") and said in error
        hub.faults["^/api/"] = [answer] * 9
        assert command([*flags, "--debug"]) == 1
        assert TOKEN not in capsys.readouterr().err
    assert not (tmp_path / "mlx_models").exists()


def test_the_next_run_goes_on(
    hub: Hub, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(REPO, files)
    hub.faults[WEIGHTS] = [Answer(200, body=files[WEIGHTS], cut=n) for n in (900, 0, 0)]
    assert main(["--hf-path", REPO]) == 1
    assert "was cut; check the network, then run it again; what is" in error_of(capsys)
    hub.forget()
    assert main(["--hf-path", REPO, "--quiet"]) == 0
    assert [headers["range"] for headers in hub.asked(WEIGHTS)] == ["bytes=900-"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_download_that_is_ended(
    files: dict[str, bytes], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """What has come stays, and the next run asks only for the rest."""
    go_on = Event()
    shard = files[WEIGHTS] + b"\0" * 500_000
    with serving() as hub:
        hub.add(REPO, files | {WEIGHTS: shard})
        hub.faults[WEIGHTS] = [Answer(200, body=shard, cut=400_000, held=go_on)]
        blobs = tmp_path / "home/hub/models--org--tiny-llama/blobs"
        partial = blobs / f"{sha256(shard)}.mlx-ferry.incomplete"
        with subprocess.Popen(
            [sys.executable, "-m", "convert", "--hf-path", REPO],
            cwd=ROOT,
            env=environment(hub, tmp_path),
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            while child.poll() is None:
                if partial.exists() and partial.stat().st_size == 400_000:
                    break
            child.send_signal(number)
            go_on.set()
            assert (child.communicate()[1], child.returncode) == ("", code)
        assert resolve(hub, tmp_path).returncode == 0
        assert [one.get("range") for one in hub.asked(WEIGHTS)] == [None, "bytes=400000-"]


def test_a_mirror_under_a_path(files: dict[str, bytes], tmp_path: Path) -> None:
    """HF_ENDPOINT as users set it, with the cache where HF_HOME says."""
    with serving(Hub(prefix="/mirror/hf")) as hub:
        commit = hub.add(REPO, files)
        first = resolve(hub, tmp_path)
        assert commit in first.stdout, first.stderr
        assert all(asked.split()[1].startswith("/mirror/hf/") for asked in hub.requests)
        hub.forget()
        assert resolve(hub, tmp_path, HF_HUB_OFFLINE="1").stdout == first.stdout
        assert hub.requests == []


def test_modelscope(
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with http_server.serving(there := ModelScope()):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", there.endpoint)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        there.add(REPO, files, "v1")
        named = f"modelscope:{REPO}"
        assert main(["--hf-path", named, "--revision", "v1", "--quiet"]) == 0
        assert capfd.readouterr() == (f"{tmp_path / 'mlx_models/tiny-llama-bfloat16'}\n", "")
        receipt = json.loads(Path("mlx_models/tiny-llama-bfloat16/conversion.json").read_text())
        source = receipt["source"]
        assert (source["origin"], source["repo_id"]) == ("modelscope", REPO)
        assert main(["--hf-path", named]) == 1
        error = capfd.readouterr().err
        assert error.startswith(f"error: {named}: ModelScope has no such model")
    assert not any(TOKEN in value for one in there.headers for value in one.values())
