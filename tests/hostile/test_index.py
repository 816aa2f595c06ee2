"""Cases 12 to 18: an index that lies, links that leave, shards that are not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from checkpoint.shards import read_catalog
from configs.errors import HeaderError, ShardIndexError, SourceError
from tests.factories import write_index, write_safetensors, write_sharded

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = {
    FIRST: {"a": ("F32", (2, 2)), "b": ("BF16", (3,))},
    SECOND: {"c": ("F16", (4,))},
}
WEIGHT_MAP = {"a": FIRST, "b": FIRST, "c": SECOND}
TOTAL = 16 + 6 + 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sharded(tmp_path / "model", SHARDS)


def test_the_folder_itself_is_right(folder: Path) -> None:
    catalog = read_catalog(folder)
    assert list(catalog) == ["a", "b", "c"]
    assert catalog["c"].file == folder / SECOND
    assert catalog["c"].shape == (4,)
    assert catalog.shards == (folder / FIRST, folder / SECOND)
    assert catalog.total_bytes == TOTAL
    assert catalog.metadata == {"format": "pt"}
    assert catalog.warnings == ()


def test_without_an_index(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", SHARDS[FIRST])
    catalog = read_catalog(tmp_path)
    assert list(catalog) == ["a", "b"]
    assert catalog.warnings == ()


PATHS = ["../x", "/x", "a/b", "C:\\x", "C:x", "\\\\host\\x", "x\0", "x\n"]


@pytest.mark.parametrize(
    "name",
    [f"{path}.safetensors" for path in PATHS]
    + ["", ".", "..", ".safetensors/..", "pytorch_model.bin", 7, None, True, ["x"], {}],
)
def test_shard_names_that_are_no_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: object
) -> None:
    """Case 12: refused before any shard is opened."""
    write_index(folder, WEIGHT_MAP | {"b": name}, TOTAL)
    monkeypatch.setattr("checkpoint.shards.read_header", None)
    with pytest.raises(ShardIndexError, match="puts tensor 'b' into") as caught:
        read_catalog(folder)
    assert caught.value.where == str(folder / INDEX)
    assert "plain name" in caught.value.mend


@pytest.mark.parametrize("name", [FIRST, INDEX])
def test_link_that_leaves_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    """Case 13."""
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="symbolic link that leaves the folder"):
        read_catalog(folder)


def test_link_inside_the_folder(folder: Path) -> None:
    (folder / FIRST).rename(folder / "data")
    (folder / FIRST).symlink_to("data")
    assert list(read_catalog(folder)) == ["a", "b", "c"]


def test_circle_of_links(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / FIRST).symlink_to(FIRST)
    with pytest.raises(ShardIndexError, match=f"1 of 2 shards are missing: {FIRST}"):
        read_catalog(folder)


def cached(folder: Path, cache: Path, blobs: Path) -> Path:
    """The folder's files as the hub's cache lays them out, with the blobs where told."""
    snapshot = cache / "models--org--name" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    blobs.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = blobs / f"{number:040x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize("blobs", ["models--org--name/blobs", "blobs/ab"])
def test_links_of_the_hub_cache(folder: Path, tmp_path: Path, blobs: str) -> None:
    cache = tmp_path / "cache"
    assert list(read_catalog(cached(folder, cache, cache / blobs))) == ["a", "b", "c"]


@pytest.mark.parametrize("blobs", ["models--other--name/blobs", "elsewhere", "models--org--name"])
def test_links_that_only_look_like_the_hub_cache(folder: Path, tmp_path: Path, blobs: str) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(SourceError, match="leaves the folder"):
        read_catalog(cached(folder, cache, cache / blobs))


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_shard_that_is_no_file(folder: Path, kind: str) -> None:
    """Case 14."""
    (folder / FIRST).unlink()
    if kind == "fifo":
        os.mkfifo(folder / FIRST)
    else:
        (folder / FIRST).mkdir()
    with pytest.raises(SourceError, match="not a file") as caught:
        read_catalog(folder)
    assert caught.value.where == str(folder / FIRST)


def test_missing_shards_are_all_listed(folder: Path) -> None:
    """Case 15; one of them is a link to nothing."""
    missing = [f"model-{number:05}-of-00009.safetensors" for number in range(3, 10)]
    missing.append("n" * 300 + ".safetensors")
    (folder / missing[0]).symlink_to("nothing")
    write_index(folder, WEIGHT_MAP | {name: name for name in missing}, TOTAL)
    with pytest.raises(ShardIndexError) as caught:
        read_catalog(folder)
    assert caught.value.what == f"8 of 10 shards are missing: {', '.join(missing)}"


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        (WEIGHT_MAP | {"d": SECOND}, "1 tensors of the index are in no shard ('d')"),
        ({"a": FIRST, "c": SECOND}, "1 tensors of the shards are not in the index ('b')"),
        (WEIGHT_MAP | {"a": SECOND}, "1 tensors are in another shard than the index says ('a')"),
        (
            WEIGHT_MAP | {f"x{number}": FIRST for number in range(9)},
            "9 tensors of the index are in no shard ('x0', 'x1', 'x2', 'x3', 'x4' and 4 more)",
        ),
        (
            {"a": SECOND, "d": FIRST},
            "1 tensors of the index are in no shard ('d'); "
            "2 tensors of the shards are not in the index ('b', 'c'); "
            "1 tensors are in another shard than the index says ('a')",
        ),
    ],
)
def test_index_against_shards(folder: Path, weight_map: dict[str, str], reason: str) -> None:
    """Case 16."""
    write_index(folder, weight_map, TOTAL)
    with pytest.raises(ShardIndexError) as caught:
        read_catalog(folder)
    assert caught.value.what == reason


def test_tensor_in_two_shards(folder: Path) -> None:
    """Case 17."""
    write_safetensors(folder / SECOND, {"a": ("F32", (1,)), "c": ("F16", (4,))})
    with pytest.raises(ShardIndexError, match=f"holds tensor 'a', and so does {FIRST}") as caught:
        read_catalog(folder)
    assert caught.value.where == str(folder / SECOND)


def test_stale_shards_and_sizes_are_warnings(folder: Path) -> None:
    """Case 18: the index wins."""
    write_safetensors(folder / "model.safetensors", {"a": ("F32", (9,))})
    write_index(folder, WEIGHT_MAP, TOTAL + 1)
    catalog = read_catalog(folder)
    assert catalog["a"].shape == (2, 2)
    assert catalog.total_bytes == TOTAL
    extra, size = catalog.warnings
    assert "model.safetensors is not one of the model's shards" in extra
    assert f"gives total_size as {TOTAL + 1}, but the shards hold {TOTAL} bytes" in size


@pytest.mark.parametrize("total_size", ["30", [], True])
def test_total_size_that_is_no_number(folder: Path, total_size: object) -> None:
    write_index(folder, WEIGHT_MAP, total_size)
    assert len(read_catalog(folder).warnings) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf{}", "starts with a byte-order mark"),
        (b"[]", "holds an array where an object was expected"),
        (b"{}", "has no object named weight_map"),
        (b'{"weight_map": []}', "has no object named weight_map"),
        (b'{"weight_map": {}}', "has an empty weight_map"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "key 'a' is given twice"),
        (b'{"weight_map": ' + b'{"a":' * 100_000, "nested too deep"),
        (b'{"weight_map": {"\\ud800": "x"}}', "half of a surrogate pair"),
    ],
)
def test_index_that_is_no_index(folder: Path, text: bytes, reason: str) -> None:
    (folder / INDEX).write_bytes(text)
    with pytest.raises(ShardIndexError, match=reason) as caught:
        read_catalog(folder)
    assert caught.value.where == str(folder / INDEX)


def test_index_without_metadata(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": WEIGHT_MAP}))
    assert read_catalog(folder).warnings == ()


def test_bad_shard_is_named(folder: Path) -> None:
    (folder / SECOND).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(HeaderError, match="git lfs pull") as caught:
        read_catalog(folder)
    assert caught.value.where == str(folder / SECOND)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "holds no weights"),
        (["config.json"], "holds no weights"),
        ([FIRST, SECOND], f"has neither {INDEX} nor model.safetensors, only '{FIRST}'"),
        (["weights.safetensors"], "only 'weights.safetensors'"),
        (["adapter_model.safetensors"], "holds an adapter alone (adapter_model.safetensors)"),
        (["epoch=3.ckpt"], "only as a training checkpoint (epoch=3.ckpt)"),
        (["a.pt", "b.pth", "optimizer.pt"], "holds 2 PyTorch files: 'a.pt', 'b.pth'"),
        (["model.gguf"], "only as GGUF (model.gguf)"),
    ],
)
def test_no_weights(tmp_path: Path, files: list[str], reason: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ShardIndexError) as caught:
        read_catalog(tmp_path)
    assert reason in caught.value.what
    assert caught.value.where == str(tmp_path)
    assert caught.value.mend
