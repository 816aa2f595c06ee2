"""Pickles and PyTorch files that nobody vouches for: cases 35 to 39."""

from __future__ import annotations

import collections
import datetime
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoint.pickles.archive import read_archive
from checkpoint.pickles.unpickle import Record, load
from configs.errors import PickleError
from convert.cli import main
from inference.cli import main as infer
from tests.factories_pickles import as_pickle, stored_zip, tensor_pickle, torch_zip

ROWS = np.arange(24, dtype=np.float32).tobytes()
LIMIT = 40_000_000


class Evil:
    """What runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


# Values


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_pickle_makes_of_them(protocol: int) -> None:
    values: dict[Any, Any] = {
        "numbers": [0, 1, -1, 255, 256, 65536, -(2**40), 2**70, 1.5, -0.0, True, False, None],
        "text": ("", "é" * 300, "你好", "a\nb\\c"),
        "sets": [{1, 2}, frozenset({"a"})],
        "bytes": {b"": 0, b"\x00\xff" * 200: 1},
        "ordered": collections.OrderedDict(a=1),
        7: (),
    }
    if protocol < 2:
        values["bytes"] = {"needs": "protocol 2 or later"}
    assert load(pickle.dumps(values, protocol), (), "x.pkl") == values


def test_what_would_be_made_is_a_record() -> None:
    data = pickle.dumps(datetime.date(2026, 1, 2))
    record = load(data, {"datetime.date"}, "x.pkl")
    assert isinstance(record, Record)
    assert record.name == "datetime.date"
    assert record.args == (b"\x07\xea\x01\x02",)


# 35: code


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "weights.pth"])
def test_the_refused_global_is_named_and_nothing_runs(
    llama: Path, name: str, protocol: int, capfd: pytest.CaptureFixture[str]
) -> None:
    as_pickle(llama, name)
    trace = llama / "trace"
    evil = pickle.dumps({"weight": Evil(trace)}, protocol)
    for content in ("bare", "zipped"):
        if content == "bare":
            (llama / name).write_bytes(evil)
        else:
            torch_zip(llama / name, evil)
        assert main(["--hf-path", str(llama), "--mlx-path", str(llama.parent / "out")]) == 1
        error = capfd.readouterr().err
        assert error.count("\n") == 1
        assert f"{name}: refers to '{os.system.__module__}.system', which is not on" in error
        assert not trace.exists()
        assert infer(["--model", str(llama), "--prompt", "hello"]) == 1
        assert "nothing of it was run" in capfd.readouterr().err
        assert not trace.exists()
    assert not (llama.parent / "out").exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "refers to 'os.system'"),
        (b"\x80\x02(ios\nsystem\n.", "refers to 'os.system'"),
        (b"\x80\x02\x82\x01.", "has the pickle instruction EXT1"),
        (b"\x80\x02K\x01K\x02R.", "calls something that is not a global"),
        (b"\x80\x02}K\x01b.", "loads"),
        (b"\x80\x02K\x01K\x01b.", "gives a state to something that has none"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01R.", "something that is not arguments"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "that are not understood"),
        (b"\x80\x02K\x01Q.", "refers to something outside its pickle"),
        (b"\x80\x02K\x01K\x02a.", "appends to something that is not a list"),
        (b"\x80\x02}(K\x01u.", "has a key without a value"),
        (b"\x80\x02}(K\x01K\x02K\x01K\x03u.", "has the key '1' twice"),
        (b"\x80\x02}(}K\x01u.", "has a key that is no number, text or bytes"),
        (b"\x80\x02h\x00.", "refers to place 0 of its memo"),
        (b"\x80\x02a.", "finds nothing to work on"),
        (b"\x80\x02t.", "finds nothing to work on"),
        (b"\x80\x02K\x01K\x01.", "ends with values left over"),
        (b"\x80\x02\xf3.", "is not a pickle: it has the byte 0xf3"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "has a string that is not valid UTF-8"),
        (b"\x80\x02X\x03\x00\x00\x00\xed\xa0\x80.", "has a string that is not valid UTF-8"),
        (b"V\\ud800\n.", "has a string that is not valid Unicode"),
        (b"I" + b"9" * 200 + b"x\n.", "has the number"),
    ],
)
def test_instructions(data: bytes, reason: str) -> None:
    if reason == "loads":  # attributes of a dict are left out
        assert load(data, (), "x.pkl") == {}
        return
    with pytest.raises(PickleError) as caught:
        load(data, (), "x.pkl")
    assert reason in caught.value.what
    assert caught.value.mend


# 39: bombs


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is truncated"),
        (b"\x80\x02K", "is truncated"),
        (b"\x80\x02X\xff\xff\xff\xffabc", "is truncated"),
        (b"\x80\x04\x8d" + b"\xff" * 8 + b"abc", "is truncated"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc", "is truncated"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f", "is truncated"),
        (b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".", "has an integer of 255 bytes"),
        (b"c" + b"a" * 1000, "has a line without an end"),
        (b"\x80\x02" + b"}" * 1_000_000 + b".", "take too much memory"),
        (b"\x80\x04" + b"\x8f" * 1_000_000 + b".", "take too much memory"),
        (b"\x80\x02K\x01" + b"2" * 4_000_000 + b".", "take too much memory"),
        (b"\x80\x04N" + b"\x94" * 1_000_000 + b".", "take too much memory"),
        (b"\x80\x02" + b"(" * 2000, "nested deeper than 1,000"),
        (b"\x80\x02)" + b"\x85" * 1000 + b".", "nested deeper than 100"),
        (b"\x80\x02]q\x00h\x00a.", "has a value that contains itself"),
    ],
)
def test_bombs_stay_small(data: bytes, reason: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PickleError) as caught:
            load(data, (), "x.pkl", memory=LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reason in caught.value.what
    assert peak < LIMIT


def test_memo_places_take_no_room() -> None:
    assert load(b"\x80\x02K\x01r\xff\xff\xff\xff.", (), "x.pkl") == 1


def test_every_truncation_is_refused() -> None:
    data = pickle.dumps({"a": [1, "b", (2.5, b"c")]}, 4)
    for length in range(len(data)):
        with pytest.raises(PickleError):
            load(data[:length], (), "x.pkl")


# 36: other formats


def refusal(path: Path) -> PickleError:
    with pytest.raises(PickleError) as caught:
        read_archive(path)
    assert caught.value.where == str(path)
    return caught.value


def test_formats_that_are_not_zip(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    error = refusal(path)
    assert "from before version 1.6" in error.what
    assert error.mend == "save it again as safetensors"
    path.write_bytes(bytes(257) + b"ustar" + bytes(1000))
    assert "is a tar archive" in refusal(path).what
    path.write_bytes(pickle.dumps({"a": [1] * 100}))
    assert "is a bare pickle" in refusal(path).what
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "Git-LFS pointer" in refusal(path).what
    path.write_bytes(b"<!DOCTYPE html><html><body></body></html>")
    assert "is an HTML page" in refusal(path).what
    path.write_bytes(b"")
    assert "is truncated" in refusal(path).what


def test_torchscript(tmp_path: Path) -> None:
    code = {"m/code/a.py": b"", "m/constants.pkl": b"", "m/data.pkl": b"."}
    path = stored_zip(tmp_path / "model.pt", code, method=8)
    error = refusal(path)
    assert "is a TorchScript archive" in error.what
    assert error.mend == "save its state dict again as safetensors"


def test_another_zip(tmp_path: Path) -> None:
    assert "not one of PyTorch's" in refusal(stored_zip(tmp_path / "a.pt", {"a": b""})).what
    assert "not one of PyTorch's" in refusal(stored_zip(tmp_path / "b.pt", {"m/a": b""})).what


# 37: the archive


def whole() -> dict[str, bytes]:
    return {"m/data.pkl": tensor_pickle((6, 4), (4, 1)), "m/data/0": ROWS}


def test_the_archive_built_by_hand_is_right(tmp_path: Path) -> None:
    path = stored_zip(tmp_path / "a.pt", whole())
    ref = read_archive(path).tensors["weight"]
    assert (ref.shape, ref.dtype, ref.nbytes) == ((6, 4), "F32", 96)
    assert path.read_bytes()[ref.offset : ref.offset + 96] == ROWS


@pytest.mark.parametrize(
    ("extra", "options", "reason"),
    [
        ([("m/data/0", ROWS)], {}, "has the zip entry 'm/data/0' twice"),
        ([("m/../x", b"")], {}, "has the zip entry 'm/../x', which leaves the archive"),
        ([("../x", b"")], {}, "which leaves the archive"),
        ([("/etc/x", b"")], {}, "which leaves the archive"),
        ([("m\\x", b"")], {}, "which leaves the archive"),
        ([], {"method": 8}, "has the compressed zip entry 'm/data.pkl'"),
        ([], {"flags": 1}, "has the encrypted zip entry 'm/data.pkl'"),
        ([], {"crcs": {"m/data/0": 1}}, "is damaged: 'm/data/0' does not have its checksum"),
        ([], {"crcs": {"m/data.pkl": 1}}, "is damaged: 'm/data.pkl' does not have its checksum"),
        ([], {"sizes": {"m/data/0": 40_000_000_000 % 2**32}}, "ends beyond the data"),
        ([], {"sizes": {"m/data/0": 92}}, "has a storage of 96 bytes, and 92 are there"),
        ([("m/byteorder", b"big")], {}, "was not saved on a little-endian machine"),
    ],
)
def test_archives(
    tmp_path: Path, extra: list[tuple[str, bytes]], options: dict[str, Any], reason: str
) -> None:
    path = stored_zip(tmp_path / "a.pt", [*whole().items(), *extra], **options)
    assert reason in str(refusal(path))


def test_entries_that_overlap(tmp_path: Path) -> None:
    entries = [("m/data.pkl", b"x" * 50), ("m/data/0", b"x" * 50)]
    assert "overlaps" in refusal(stored_zip(tmp_path / "a.pt", entries, twice_over=True)).what


def test_a_compression_bomb_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
        bomb.open("m/data.pkl", "w", force_zip64=True) as entry,
    ):
        for _ in range(64):
            entry.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        assert "compressed" in refusal(path).what
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


def test_every_truncation_of_an_archive_is_refused(tmp_path: Path) -> None:
    path = stored_zip(tmp_path / "a.pt", whole())
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusal(path)


def test_a_directory_that_lies(tmp_path: Path) -> None:
    path = stored_zip(tmp_path / "a.pt", whole())
    content = path.read_bytes()
    at = content.index(b"PK\x05\x06")
    for offset, value in ((10, 3), (10, 1), (12, 2**32 - 1), (16, 2**32 - 1), (16, 0)):
        code = "<H" if offset == 10 else "<I"
        wrong = bytearray(content)
        struct.pack_into(code, wrong, at + offset, value)
        path.write_bytes(wrong)
        refusal(path)


# 38: strides and offsets


@pytest.mark.parametrize(
    ("size", "stride", "offset", "numel", "reason"),
    [
        ((7, 4), (4, 1), 0, 24, "reaches beyond its storage of 24 elements"),
        ((6, 4), (4, 1), 1, 24, "reaches beyond its storage"),
        ((6, 4), (2**30, 1), 0, 24, "reaches beyond its storage"),
        ((6, 4), (4, 1), -1, 24, "reaches beyond its storage"),
        ((-6, 4), (4, 1), 0, 24, "has the dimensions"),
        ((6, 4), (-4, 1), 0, 24, "has the dimensions"),
        ((6, 4), (4,), 0, 24, "has another number of strides than of dimensions"),
        ((6, 4), (0, 1), 0, 24, "is a view with strides [0, 1]"),
        ((6, 2), (4, 1), 0, 24, "is a view with strides [4, 1]"),
        ((6, 4), (4, 1), 0, 2**30, "has a storage of 4,294,967,296 bytes, and 96 are there"),
    ],
)
def test_strides(
    tmp_path: Path,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    numel: int,
    reason: str,
) -> None:
    path = torch_zip(tmp_path / "a.pt", tensor_pickle(size, stride, offset, numel), _0=ROWS)
    assert reason in refusal(path).what
    assert "'weight'" in refusal(path).what


def test_a_storage_that_is_missing(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "a.pt", tensor_pickle((6, 4), (4, 1)), _1=ROWS)
    assert "which the archive lacks" in refusal(path).what


# Which tensors are meant


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"model": {"a": torch.zeros(1)}, "ema": {"a": torch.zeros(1)}}, "'model', 'ema'"),
        ({"a": [torch.zeros(1)]}, "holds tensors in 'a', which is neither"),
        ({1: torch.zeros(1)}, "has a tensor under the key '1'"),
        ({"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)}, "holds tensor 'a.b' twice"),
        ({"a": 1}, "holds no tensors"),
        ([torch.zeros(1)], "something else than a dict of tensors"),
        (torch.nn.Linear(1, 1), "refers to 'torch.nn.modules.linear.Linear'"),
        ({"a": torch.zeros(1, dtype=torch.float64)}, "has dtype F64, which MLX can't carry"),
    ],
)
def test_values_that_are_no_state_dict(tmp_path: Path, value: object, reason: str) -> None:
    torch.save(value, tmp_path / "a.pt")
    assert reason in refusal(tmp_path / "a.pt").what


def test_a_big_model_of_zeros_is_not_needed_to_refuse_it(llama: Path) -> None:
    """The whole command stays small over a bomb of 8 million dicts."""
    as_pickle(llama)
    torch_zip(llama / "pytorch_model.bin", b"\x80\x02" + b"}" * 8_000_000 + b".")
    code = (
        "import sys, json; from convert.cli import main; from convert.receipt import *; "
        "code = main(sys.argv[1:]); print(json.dumps([code, peak_memory_bytes()]))"
    )
    flags = ["--hf-path", str(llama), "--mlx-path", str(llama.parent / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, check=True
    )
    status, peak = json.loads(done.stdout)
    assert status == 1
    assert "take too much memory" in done.stderr
    assert peak < 800_000_000
