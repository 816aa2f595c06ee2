"""PyTorch's files in place of safetensors: the same model comes out, byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from checkpoint.architecture.reader import TensorReader, same_bytes
from checkpoint.architecture.recipes import whole
from checkpoint.architecture.trace import copies, trace
from checkpoint.pickles.archive import read_archive
from checkpoint.shards import read_catalog
from convert.cli import main
from inference.cli import main as infer
from inference.device import parameters, place
from inference.load import load, open_folder
from tests.factories_pickles import (
    INDEX,
    as_pickle,
    as_sharded_pickles,
    state_dict,
    without_safetensors,
)

WAYS: dict[str, Callable[[Path], Path]] = {
    "pytorch_model.bin": as_pickle,
    "shards": as_sharded_pickles,
    "weights.pt": lambda folder: as_pickle(folder, "weights.pt"),
    "weights.pth": lambda folder: as_pickle(folder, "weights.pth"),
}


def convert(folder: Path, *flags: str) -> Path:
    out = folder.parent / "-".join(("out", folder.name, *flags))
    assert main(["--hf-path", str(folder), "--mlx-path", str(out), "--force", *flags]) == 0
    return out


def weights(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("*.safetensors")
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flags", [(), ("-q", "--bits", "4")])
def test_convert_makes_the_same_of_them(qwen2: Path, way: str, flags: tuple[str, ...]) -> None:
    expected = weights(convert(qwen2, *flags))
    assert weights(convert(WAYS[way](qwen2), *flags)) == expected


@pytest.mark.parametrize("way", ["pytorch_model.bin", "shards"])
def test_infer_runs_them_as_they_are(llama: Path, way: str) -> None:
    expected = parameters(load(open_folder(llama), place("cpu", "float32")).model)
    found = parameters(load(open_folder(WAYS[way](llama)), place("cpu", "float32")).model)
    assert expected.keys() == found.keys()
    assert all(mx.array_equal(expected[name], found[name]) for name in expected)


def test_infer_answers_from_them(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompt", "hello", "--max-tokens", "6", "--temperature", "0", "--json"]
    assert infer(["--model", str(llama), *flags]) == 0
    expected = json.loads(capfd.readouterr().out)["text"]
    assert infer(["--model", str(as_pickle(llama)), *flags]) == 0
    assert json.loads(capfd.readouterr().out)["text"] == expected


def test_safetensors_are_preferred(llama: Path) -> None:
    (llama / "pytorch_model.bin").write_bytes(b"not looked at")
    assert all(path.suffix == ".safetensors" for path in read_catalog(llama).shards)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "module"])
def test_a_training_checkpoint(
    llama: Path, wrapper: str, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = weights(convert(llama))
    tensors = {f"module.{name}": tensor for name, tensor in state_dict(llama).items()}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2, 2)
    optimizer.step()
    saved = {wrapper: tensors, "optimizer": optimizer.state_dict(), "step": 7}
    torch.save(saved, without_safetensors(llama) / "last.pt")
    torch.save(optimizer.state_dict(), llama / "optimizer.pt")
    capfd.readouterr()
    assert weights(convert(llama)) == expected
    said = "also holds 'optimizer', 'step', no weights, which are left out"
    assert said in capfd.readouterr().err


def test_tensors_that_share_a_storage_and_transposed_ones(llama: Path) -> None:
    expected = weights(convert(llama))
    tensors = state_dict(llama)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].t().contiguous().t()
    fused = torch.cat([tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]])
    rows = tensors["model.embed_tokens.weight"].shape[0]
    tensors["model.embed_tokens.weight"] = fused[:rows]
    tensors["lm_head.weight"] = fused[rows:]
    torch.save(tensors, without_safetensors(llama) / "pytorch_model.bin")
    catalog = read_catalog(llama)
    assert catalog[name].axes == (1, 0)
    one, other = catalog["model.embed_tokens.weight"], catalog["lm_head.weight"]
    assert other.offset == one.offset + one.nbytes
    assert weights(convert(llama)) == expected


def test_a_tied_head_that_was_saved(qwen2: Path) -> None:
    expected = weights(convert(qwen2))
    tensors = state_dict(qwen2)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, without_safetensors(qwen2) / "pytorch_model.bin")
    catalog = read_catalog(qwen2)
    assert same_bytes(catalog["lm_head.weight"], catalog["model.embed_tokens.weight"])
    assert weights(convert(qwen2)) == expected


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
def test_boxes_of_transposed_tensors(tmp_path: Path, axes: tuple[int, ...]) -> None:
    tensor = torch.arange(60, dtype=torch.int32).reshape(3, 4, 5).permute(axes)
    torch.save({"t": tensor}, tmp_path / "a.pt")
    ref = read_archive(tmp_path / "a.pt").tensors["t"]
    with TensorReader() as reader:
        for box in (whole(ref.shape), ((1, 3), (0, 2), (2, 3)), ((0, 1), (1, 1), (0, 2))):
            found = np.array(reader.read(ref, box).view(mx.int32))
            cut = tuple(slice(low, high) for low, high in box)
            assert np.array_equal(found, tensor[cut].numpy())


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint16, torch.uint32, torch.uint64),
    ],
)
def test_dtypes_are_those_of_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    torch.save(
        {"t": tensor, "scalar": tensor[0, 1].clone(), "empty": tensor[:0]}, tmp_path / "a.pt"
    )
    found = read_archive(tmp_path / "a.pt").tensors
    (tmp_path / "folder").mkdir()
    parts = {"t": tensor, "scalar": tensor[0, 1].clone(), "empty": tensor[:0].clone()}
    save_file(parts, tmp_path / "folder/model.safetensors")
    for name, ref in read_catalog(tmp_path / "folder").items():
        assert (found[name].dtype, found[name].shape) == (ref.dtype, ref.shape)
        assert found[name].nbytes == ref.nbytes
        assert same_bytes(found[name], ref)


def test_what_has_to_be_computed_whole(tmp_path: Path) -> None:
    one, other = torch.rand(4, 3), torch.rand(3, 4)
    torch.save({"one": one, "other": other, "third": one + 1}, tmp_path / "a.pt")
    sources = copies(read_archive(tmp_path / "a.pt").tensors)
    traced = trace(lambda w: {"out": w["one"] @ w["other"], "third": w["third"]}, sources)
    with TensorReader() as reader:
        for _ in range(2):
            found = np.array(traced.recipes["out"].read(((0, 4), (1, 3)), reader))
            assert np.allclose(found, (one @ other)[:, 1:3].numpy(), atol=1e-5)
            traced.recipes["out"].release()
        assert np.array_equal(traced.recipes["third"].read(((0, 4), (0, 3)), reader), one + 1)


def test_without_checksums(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        as_pickle(llama)
    finally:
        torch.serialization.set_crc32_options(before)
    convert(llama)
    assert "was saved without checksums" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        ("../x.bin", "the plain name of a .bin file"),
        ("model.safetensors", "the plain name of a .bin file"),
        ("none.bin", "1 of 3 shards are missing: none.bin"),
        ("pytorch_model-00002-of-00002.bin", "are in another shard than the index says"),
    ],
)
def test_an_index_that_does_not_fit(
    llama: Path, shard: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    as_sharded_pickles(llama)
    index = json.loads((llama / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = shard
    (llama / INDEX).write_text(json.dumps(index))
    out = llama.parent / "out"
    assert main(["--hf-path", str(llama), "--mlx-path", str(out)]) == 1
    assert reason in capfd.readouterr().err
    assert not out.exists()


def test_the_other_modes(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = convert(as_pickle(llama), "--dtype", "float32")
    assert main(["--verify", str(llama), "--json"]) == 0
    checks = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert "they are not looked at in PyTorch's files" in json.dumps(checks)
    assert main(["--diff", str(llama), str(out)]) == 0
    assert main(["--hf-path", str(llama), "--mlx-path", str(llama / "../no"), "--prove"]) == 1
    assert "holds PyTorch's files, and a proof reads safetensors alone" in capfd.readouterr().err
