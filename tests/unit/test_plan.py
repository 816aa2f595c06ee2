"""The plan: shards, offsets, sizes and figures, checked by the safetensors library itself."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
from safetensors import safe_open

from convert.plan import OutputTensor, Parameter, Plan, Quantization, lay_out

_BYTES = {"U32": 4, "BF16": 2, "U8": 1}


def tensor(name: str, dtype: str, *shape: int) -> OutputTensor:
    return OutputTensor(name, dtype, shape, _BYTES[dtype] * math.prod(shape))


def plain(name: str, *shape: int) -> Parameter:
    return Parameter(name, shape, "BF16", "copy", None, (tensor(name, "BF16", *shape),), (name,))


def quantized(name: str, rows: int, columns: int) -> Parameter:
    outputs = (
        tensor(f"{name}.weight", "U32", rows, columns // 8),
        tensor(f"{name}.scales", "BF16", rows, columns // 64),
        tensor(f"{name}.biases", "BF16", rows, columns // 64),
    )
    how = Quantization(bits=4, group_size=64, mode="affine")
    return Parameter(
        f"{name}.weight", (rows, columns), "BF16", "quantize", how, outputs, (f"{name}.weight",)
    )


PARAMETERS = (plain("odd", 3), quantized("q", 4, 128), plain("norm", 64), plain("scalar"))


def test_one_shard_keeps_the_plain_name() -> None:
    (shard,) = lay_out(PARAMETERS, 1 << 30)
    assert shard.file == "model.safetensors"


def test_shards_close_before_the_limit_and_keep_parameters_whole() -> None:
    shards = lay_out(PARAMETERS, PARAMETERS[1].nbytes)
    assert [[p.name for p in shard.parameters] for shard in shards] == [
        ["odd"],
        ["q.weight"],
        ["norm", "scalar"],
    ]
    assert [shard.file for shard in shards] == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]


def test_a_parameter_above_the_limit_has_a_shard_of_its_own() -> None:
    assert [len(shard.parameters) for shard in lay_out(PARAMETERS, 1)] == [1, 1, 1, 1]


def test_the_safetensors_library_reads_the_header(tmp_path: Path) -> None:
    (shard,) = lay_out(PARAMETERS, 1 << 30)
    path = tmp_path / shard.file
    path.write_bytes(shard.header.ljust(shard.nbytes, b"\0"))
    with safe_open(str(path), framework="np") as file:
        assert file.metadata() == {"format": "mlx"}
        assert set(file.keys()) == {each.name for each in shard.tensors}
    length = struct.unpack("<Q", shard.header[:8])[0]
    entries = json.loads(shard.header[8:])
    assert 8 + length == len(shard.header)
    for each in shard.tensors:
        start = shard.offsets[each.name]
        assert start == len(shard.header) + entries[each.name]["data_offsets"][0]
        assert start % each.item_bytes == 0


def test_figures_count_everything() -> None:
    plan = Plan(PARAMETERS, lay_out(PARAMETERS, 1 << 30), 0)
    weights = 3 + 4 * 128 + 64 + 1
    data = 2 * 3 + (4 * 128 // 2 + 2 * 2 * 4 * 2) + 2 * 64 + 2
    assert plan.weights == weights
    assert plan.tensor_bytes == data
    assert plan.bits_per_weight == pytest.approx(8 * data / weights)
    assert plan.file_bytes == data + len(plan.shards[0].header)
    index = plan.index()
    assert index["metadata"] == {"total_size": data, "total_parameters": weights}
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert json.loads(json.dumps(plan.as_json()))["tensors"][1]["quantization"] == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
    }
