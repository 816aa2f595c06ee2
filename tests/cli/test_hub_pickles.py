"""PyTorch's files from a hub: only where it has no safetensors, held to its hashes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from checkpoint.source import resolve_source
from configs.errors import FerryError
from convert.cli import main
from tests.factories_pickles import INDEX, as_pickle, as_sharded_pickles
from tests.hub_server import Hub, point_library_at, serving

REPO = "org/tiny-llama"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        point_library_at(hub, str(tmp_path / "cache"), monkeypatch)
        monkeypatch.chdir(tmp_path)
        yield hub
        close_session()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_they_are_fetched_where_there_are_no_safetensors(hub: Hub, llama: Path) -> None:
    files = content(as_sharded_pickles(llama))
    hub.add(REPO, files | {"optimizer.pt": b"x", "tf_model.h5": b"x", "pytorch_model.bin": b"x"})
    out = llama.parent / "out"
    assert main(["--hf-path", REPO, "--mlx-path", str(out)]) == 0
    receipt = json.loads((out / "conversion.json").read_text())
    assert receipt["source"]["repo_id"] == REPO
    folder = resolve_source(REPO).path
    shards = {name for name in files if name.endswith(".bin")}
    assert shards | {INDEX} <= names(folder)
    assert not names(folder) & {"optimizer.pt", "tf_model.h5", "pytorch_model.bin"}


def test_safetensors_are_preferred(hub: Hub, llama: Path) -> None:
    hub.add(REPO, content(llama) | {"pytorch_model.bin": b"x", INDEX: b"{}"})
    assert not names(resolve_source(REPO).path) & {"pytorch_model.bin", INDEX}


def test_a_cached_one_asks_no_network(hub: Hub, llama: Path) -> None:
    hub.add(REPO, content(as_pickle(llama)))
    first = resolve_source(REPO)
    hub.forget()
    assert resolve_source(REPO) == first
    assert hub.requests == []


def test_a_flipped_byte(hub: Hub, llama: Path) -> None:
    hub.add(REPO, content(as_pickle(llama)))
    real = (resolve_source(REPO).path / "pytorch_model.bin").resolve()
    data = bytearray(real.read_bytes())
    data[len(data) // 2] ^= 1
    real.write_bytes(data)
    with pytest.raises(FerryError, match=r"is damaged: it has (sha256|git id) "):
        resolve_source(REPO)


def test_they_are_not_consumed(hub: Hub, llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hub.add(REPO, content(as_sharded_pickles(llama)))
    flags = ["--hf-path", REPO, "--mlx-path", "out", "--consume-source"]
    assert main(flags) == 1
    assert "leave --consume-source out" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "holds an adapter alone"),
        (["model_index.json", "unet/config.json"], "holds a diffusion pipeline"),
        (["params.json", "consolidated.safetensors"], "only in Mistral's or Meta's own layout"),
    ],
)
def test_repositories_of_another_kind(
    hub: Hub, files: list[str], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.add(REPO, {"README.md": b"", **dict.fromkeys(files, b"{}")})
    assert main(["--hf-path", REPO, "--mlx-path", "out"]) == 1
    error = capfd.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_python_files_come_with_the_flag_alone(hub: Hub, llama: Path) -> None:
    files = content(llama) | {"modeling_x.py": b"raise SystemExit", "sub/y.py": b""}
    hub.add(REPO, files)
    assert not any(name.endswith(".py") for name in names(resolve_source(REPO).path))
    found = names(resolve_source(REPO, code=True).path)
    assert "modeling_x.py" in found
    hub.forget()
    assert resolve_source(REPO, code=True).path
    assert hub.requests == []
