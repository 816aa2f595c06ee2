"""`convert --consume-source`: a hub model shard by shard, the same bytes with a small disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import close_session

from checkpoint import disk, transfer
from checkpoint.remote import RemoteModel
from convert.cli import main
from tests.factories_models import tiny_model
from tests.hub_server import Answer, Hub, point_library_at, serving

REPO = "org/tiny"
SHARDS = 6


def in_layer_order(folder: Path) -> dict[str, bytes]:
    """The files of a model whose tensors go from shard to shard as models are saved."""
    weights: dict[str, mx.array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        mx.eval(loaded)
        weights |= loaded
        path.unlink()
    names = sorted(weights, key=lambda name: ("layers" in name or "norm" in name, name))
    weight_map = {}
    each = -(-len(names) // SHARDS)
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        chosen = {name: weights[name] for name in names[number * each : (number + 1) * each]}
        mx.save_safetensors(str(folder / file), chosen, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        point_library_at(hub, str(tmp_path / "cache"), monkeypatch)
        monkeypatch.chdir(tmp_path)
        yield hub
        close_session()


def convert(out: str, *flags: str) -> int:
    return main(["--hf-path", REPO, "-q", "--mlx-path", out, *flags])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def weights_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.safetensors") if path.is_file()]


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_the_same_folder_with_few_shards_on_the_disk(
    kind: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = in_layer_order(tiny_model(tmp_path / "made", kind))
    hub.add(REPO, files)
    held: list[int] = []
    fetch = RemoteModel.fetch

    def watched(model: RemoteModel, name: str) -> Path:
        path = fetch(model, name)
        held.append(len(list(path.parent.glob("*.safetensors"))))
        return path

    monkeypatch.setattr(RemoteModel, "fetch", watched)
    assert convert("consumed", "--consume-source", "--quiet") == 0
    assert weights_in(tmp_path / "cache") == []
    assert len(held) == SHARDS and max(held) <= (2 if kind == "llama" else 3)
    assert convert("whole", "--quiet") == 0
    assert bytes_of(tmp_path / "consumed") == bytes_of(tmp_path / "whole")
    assert not any(path.name.endswith("staging") for path in tmp_path.iterdir())


def test_an_interrupted_one_goes_on_and_fetches_no_finished_shard_again(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = in_layer_order(tiny_model(tmp_path / "made", "llama"))
    hub.add(REPO, files)
    monkeypatch.setattr(transfer, "WAITS", (0.0,))
    fourth = f"model-00004-of-{SHARDS:05d}.safetensors"
    # The header is read first; the shard itself is refused, time after time.
    hub.faults[fourth] = [Answer(200, body=files[fourth]), *[Answer(503)] * 20]
    assert convert("out", "--consume-source") == 1
    err = capsys.readouterr().err
    assert "the same command goes on from there" in err and "fetching model-00003" in err
    hub.faults.clear()
    hub.forget()
    assert convert("out", "--consume-source") == 0
    assert "resuming: " in capsys.readouterr().err
    whole = [one for one in hub.asked("model-00001") if one["range"] != "bytes=0-131071"]
    assert whole == []
    assert convert("whole", "--quiet") == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_stored_head_that_is_tied_is_looked_at(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_model(tmp_path / "made", "llama")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    hub.add(REPO, in_layer_order(folder))
    assert convert("out", "--consume-source") == 1
    assert "ties the head" in capsys.readouterr().err


def test_the_disk_must_have_room_for_the_result_and_the_shards_held(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.add(REPO, in_layer_order(tiny_model(tmp_path / "made", "llama")))
    monkeypatch.setattr(disk, "free_bytes", lambda path: 64 << 20)
    assert convert("out", "--consume-source") == 1
    assert "bytes are needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hf-path", "{local}"], "a local folder, which is never removed"),
        (["--hf-path", "modelscope:org/x"], "is not a model on the hub"),
        (["--hf-path", REPO, "--prove"], "--prove"),
    ],
)
def test_what_is_never_consumed(
    flags: list[str], words: str, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = bytes_of(llama)
    flags = [flag.replace("{local}", str(llama)) for flag in flags]
    assert main([*flags, "-q", "--mlx-path", str(llama.parent / "x"), "--consume-source"]) == 2
    assert words in capsys.readouterr().err
    assert bytes_of(llama) == before
