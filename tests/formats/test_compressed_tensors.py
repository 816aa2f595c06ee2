"""compressed-tensors checkpoints, packed by that library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from tests.factories_quantized import Array, Tensors, grid, quantized_pair, values_of
from tests.formats.conversion import converted, distance, held, refusal

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def settings(kind: str, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": arguments}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
        **more,
    }


class Compressed:
    """Weights as the library compresses them."""

    def __init__(self, kind: str, **arguments: Any) -> None:
        self.kind, self.arguments = kind, arguments
        self.settings = settings(kind, arguments)

    def __call__(self, module: str, weight: Array) -> tuple[Tensors, Array]:
        state, values = self.state(weight)
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**self.arguments))
        compressor = BaseCompressor.get_value_from_registry(self.kind)
        made = compressor.compress({"weight": torch.tensor(values), **state}, scheme)
        return {f"{module}.{leaf}": tensor for leaf, tensor in made.items()}, values

    def state(self, weight: Array) -> tuple[Tensors, Array]:
        """What quantizes a weight, and the values it then has."""
        bits = self.arguments["num_bits"]
        size = self.arguments.get("group_size") or weight.shape[1]
        codes, steps, zeros = grid(weight, bits, size, symmetric=self.arguments["symmetric"])
        made = {"weight_scale": torch.tensor(steps).float()}
        if not self.arguments["symmetric"]:
            made["weight_zero_point"] = torch.tensor((zeros - 2 ** (bits - 1)).astype(np.int8))
        return made, values_of(codes, steps, zeros, np.arange(weight.shape[1]) // size)


class Float8(Compressed):
    def state(self, weight: Array) -> tuple[Tensors, Array]:
        per_row = self.arguments["strategy"] == "channel"
        scales = (np.abs(weight).max(1, keepdims=True) if per_row else np.abs(weight).max()) / 448
        scales = np.asarray(scales, np.float32)
        codes = torch.tensor(weight / scales).to(torch.float8_e4m3fn)
        told = torch.tensor(scales if per_row else scales.reshape(1))
        return {"weight_scale": told}, codes.float().numpy() * scales


def nearest(values: Array) -> Array:
    """The nearest FP4 numbers."""
    signs = np.where(values < 0, -1, 1).astype(np.float32)
    return signs * FP4[np.abs(np.abs(values)[..., None] - FP4).argmin(-1)]


class MxFp4(Compressed):
    def state(self, weight: Array) -> tuple[Tensors, Array]:
        groups = weight.reshape(len(weight), -1, 32)
        scales = np.exp2(np.ceil(np.log2(np.abs(groups).max(-1) / 6))).astype(np.float32)
        values = nearest(groups / scales[..., None]) * scales[..., None]
        return {"weight_scale": torch.tensor(scales)}, values.reshape(weight.shape)


class NvFp4(Compressed):
    def state(self, weight: Array) -> tuple[Tensors, Array]:
        groups = weight.reshape(len(weight), -1, 16)
        factor = np.float32(448 * 6 / np.abs(weight).max())
        scales = torch.tensor(np.abs(groups).max(-1) / 6 * factor).to(torch.float8_e4m3fn)
        steps = scales.float().numpy() / factor
        values = nearest(groups / steps[..., None]) * steps[..., None]
        state = {"weight_scale": scales.float(), "weight_global_scale": torch.tensor([factor])}
        return state, values.reshape(weight.shape).astype(np.float32)


def integers(kind: str, bits: int, size: int | None, *, symmetric: bool = True) -> Compressed:
    strategy = "group" if size else "channel"
    more = {"group_size": size} if size else {}
    return Compressed(
        kind, num_bits=bits, type="int", strategy=strategy, symmetric=symmetric, **more
    )


FORMS: dict[str, tuple[Compressed, tuple[int, int, str] | None]] = {
    "int4, groups": (integers("pack-quantized", 4, 32), (4, 32, "affine")),
    "int4, zero points": (
        integers("pack-quantized", 4, 32, symmetric=False),
        (4, 32, "affine"),
    ),
    "int4, rows": (integers("pack-quantized", 4, None), (4, 128, "affine")),
    "int8, groups": (integers("pack-quantized", 8, 64), (8, 64, "affine")),
    "int8, plain": (integers("int-quantized", 8, None), (8, 128, "affine")),
    "fp8, rows": (
        Float8("float-quantized", num_bits=8, type="float", strategy="channel", symmetric=True),
        None,
    ),
    "fp8, tensors": (
        Float8("float-quantized", num_bits=8, type="float", strategy="tensor", symmetric=True),
        None,
    ),
    "mxfp4": (
        MxFp4(
            "mxfp4-pack-quantized",
            num_bits=4,
            type="float",
            strategy="group",
            group_size=32,
            symmetric=True,
            scale_dtype="torch.uint8",
        ),
        (4, 32, "mxfp4"),
    ),
    "nvfp4": (
        NvFp4(
            "nvfp4-pack-quantized",
            num_bits=4,
            type="float",
            strategy="tensor_group",
            group_size=16,
            symmetric=True,
            scale_dtype="torch.float8_e4m3fn",
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_it_is_the_plain_model_of_its_values(name: str, kind: str, tmp_path: Path) -> None:
    quantize, form = FORMS[name]
    inner = {} if kind == "llama" else {"moe_intermediate_size": 128}
    source, twin = quantized_pair(tmp_path, kind, quantize.settings, quantize, **inner)
    config, receipt, out = converted(source, "--dtype", "float32")
    if form is None:
        assert "quantization" not in config
        assert {each["became"] for each in receipt["source_quantization"]} == {"dequantized"}
    else:
        told = config["quantization"]
        assert (told["bits"], told["group_size"], told["mode"]) == form
    plain = converted(twin, "--dtype", "float32").folder
    assert distance(out, plain) < 1e-5


def test_nvfp4_of_modelopt(tmp_path: Path) -> None:
    library, _ = FORMS["nvfp4"]

    def renamed(module: str, weight: Array) -> tuple[Tensors, Array]:
        made, values = library(module, weight)
        factor = made[f"{module}.weight_global_scale"]
        tensors = {
            f"{module}.weight": made[f"{module}.weight_packed"],
            f"{module}.weight_scale": made[f"{module}.weight_scale"],
            f"{module}.weight_scale_2": (1 / factor).reshape(()),
            f"{module}.input_scale": torch.tensor(1.0),
        }
        return tensors, values

    told = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    source, twin = quantized_pair(tmp_path, "llama", told, renamed)
    out = converted(source, "--dtype", "float32").folder
    assert distance(out, converted(twin, "--dtype", "float32").folder) < 1e-5


def test_act_order(tmp_path: Path) -> None:
    library = integers("pack-quantized", 4, 32)

    def ordered(module: str, weight: Array) -> tuple[Tensors, Array]:
        order = np.random.default_rng(1).permutation(weight.shape[1])
        codes, steps, zeros = grid(weight[:, order], 4, 32, symmetric=True)
        back = np.argsort(order)
        groups = back // 32
        made, _ = library(module, weight)
        made[f"{module}.weight_scale"] = torch.tensor(steps).float()
        plain = torch.tensor(np.ascontiguousarray(codes[:, back] - 8).astype(np.int8))
        made[f"{module}.weight_packed"] = pack_to_int32(plain, 4)
        made[f"{module}.weight_g_idx"] = torch.tensor(groups.astype(np.int32))
        return made, values_of(codes[:, back], steps, zeros, groups)

    source, twin = quantized_pair(tmp_path, "llama", library.settings, ordered)
    out = converted(source, "--dtype", "float32").folder
    assert distance(out, converted(twin, "--dtype", "float32").folder) < 1e-5


def test_the_numbers_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    quantize, _ = FORMS["mxfp4"]
    source, twin = quantized_pair(tmp_path, "llama", quantize.settings, quantize)
    _, receipt, out = converted(source)
    assert {each["became"] for each in receipt["source_quantization"]} == {"kept: the same numbers"}
    name, tensors = "model.layers.1.mlp.down_proj", held(out)
    found = mx.dequantize(
        tensors[f"{name}.weight"],
        tensors[f"{name}.scales"],
        group_size=32,
        bits=4,
        mode="mxfp4",
        dtype=mx.float32,
    )
    assert mx.array_equal(found, held(twin)[f"{name}.weight"]).item()


REFUSED = {
    "sparse": ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
    "transforms": ({"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
    "no groups": ({"config_groups": None}, "config_groups"),
    "another size": (
        settings("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 64}),
        "fits 0 of the config's schemes",
    ),
    "asymmetric": (
        settings(
            "pack-quantized",
            {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
        ),
        "no weight_zero_point",
    ),
    "3 bits": (settings("pack-quantized", {"num_bits": 3}), "num_bits is 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_read_is_refused_by_name(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, told = REFUSED[name]
    quantize, _ = FORMS["int4, groups"]
    source, _ = quantized_pair(tmp_path, "llama", {**quantize.settings, **changes}, quantize)
    assert told in refusal(source, capfd)
