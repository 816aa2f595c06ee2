"""FP8 checkpoints: scales of blocks, rows and tensors, in any architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.factories_quantized import Array, Tensors, quantized_pair
from tests.formats.conversion import converted, distance, held, refusal

E4M3 = torch.float8_e4m3fn
LEAVES = {"weight": E4M3, "weight_scale_inv": torch.float32}
STORED = {"weight": torch.uint8, "weight_scale_inv": torch.float32}


class Fp8:
    """Weights with a scale for each block of rows and columns; 0 stands for a whole axis."""

    def __init__(
        self, block: tuple[int, int], suffix: str, *, powers: bool = False, flat: bool = False
    ) -> None:
        self.block, self.suffix, self.powers, self.flat = block, suffix, powers, flat
        self.scale_dtype = torch.float32

    def __call__(self, module: str, weight: Array) -> tuple[Tensors, Array]:
        rows, columns = weight.shape
        tall, wide = (told or size for told, size in zip(self.block, weight.shape, strict=True))
        grown = np.zeros((-(-rows // tall) * tall, -(-columns // wide) * wide), np.float32)
        grown[:rows, :columns] = weight
        blocks = np.abs(grown).reshape(len(grown) // tall, tall, -1, wide)
        scales = (blocks.max((1, 3)) / 448).astype(np.float32)
        if self.powers:
            scales = np.exp2(np.ceil(np.log2(scales)))
        each = scales.repeat(tall, 0).repeat(wide, 1)[:rows, :columns]
        codes = torch.tensor(weight / each).to(E4M3)
        told = torch.tensor(scales.reshape(-1) if self.flat else scales)
        if self.flat and told.numel() == 1:
            told = told.reshape(())
        made = {
            f"{module}.weight": codes,
            f"{module}.weight{self.suffix}": told.to(self.scale_dtype),
            f"{module}.input_scale": torch.tensor(0.5),
        }
        return made, codes.float().numpy() * each


FORMS: dict[str, tuple[Fp8, dict[str, Any]]] = {
    "blocks": (Fp8((48, 32), "_scale_inv"), {"weight_block_size": [48, 32]}),
    "rows": (Fp8((1, 0), "_scale"), {}),
    "rows, flat": (Fp8((1, 0), "_scale", flat=True), {}),
    "tensors": (Fp8((0, 0), "_scale", flat=True), {}),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_it_is_the_plain_model_of_its_values(name: str, kind: str, tmp_path: Path) -> None:
    quantize, settings = FORMS[name]
    source, twin = quantized_pair(tmp_path, kind, {"quant_method": "fp8", **settings}, quantize)
    config, receipt, out = converted(source, "--dtype", "float32")
    assert "quantization" not in config and "quantization_config" not in config
    assert {each["became"] for each in receipt["source_quantization"]} == {"dequantized"}
    assert any("activations" in each["reason"] for each in receipt["dropped"])
    plain = converted(twin, "--dtype", "float32").folder
    assert distance(out, plain) == 0
    again, expected = converted(source, "-q").folder, converted(twin, "-q").folder
    assert distance(again, expected) == 0


def test_fused_experts(tmp_path: Path) -> None:
    quantize = Fp8((32, 32), "_scale_inv")
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    source, twin = quantized_pair(tmp_path, "qwen3_moe", settings, quantize)
    found = load_file(source / "model.safetensors")
    for layer in (0, 1):
        prefix = f"model.layers.{layer}.mlp.experts"
        for leaf in ("weight", "weight_scale_inv"):
            stacks = {
                part: torch.stack(
                    [
                        found.pop(f"{prefix}.{e}.{part}_proj.{leaf}").view(STORED[leaf])
                        for e in range(4)
                    ]
                )
                for part in ("gate", "up", "down")
            }
            end = leaf.removeprefix("weight")
            both = torch.cat([stacks["gate"], stacks["up"]], 1).view(LEAVES[leaf])
            found[f"{prefix}.gate_up_proj{end}"] = both
            found[f"{prefix}.down_proj{end}"] = stacks["down"].view(LEAVES[leaf])
    save_file(found, source / "model.safetensors", {"format": "pt"})
    out = converted(source, "--dtype", "float32").folder
    assert distance(out, converted(twin, "--dtype", "float32").folder) == 0


def test_a_config_that_says_nothing_is_read_by_the_tensors(tmp_path: Path) -> None:
    source, twin = quantized_pair(tmp_path, "llama", None, Fp8((0, 0), "_scale", flat=True))
    out = converted(source, "--dtype", "float32").folder
    assert distance(out, converted(twin, "--dtype", "float32").folder) == 0


@pytest.mark.parametrize("block", [(64, 64), (1, 32)])
def test_scales_that_are_powers_of_two_are_kept(block: tuple[int, int], tmp_path: Path) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": list(block), "scale_fmt": "ue8m0"}
    quantize = Fp8(block, "_scale_inv", powers=True)
    source, twin = quantized_pair(tmp_path, "qwen3_moe", settings, quantize)
    config, receipt, out = converted(source, "--dtype", "float32")
    assert config["quantization"] == {"bits": 8, "group_size": 32, "mode": "mxfp8"}
    assert {each["became"] for each in receipt["source_quantization"]} == {"kept: the same numbers"}
    name = "model.layers.0.self_attn.q_proj"
    tensors = held(out)
    found = mx.dequantize(
        tensors[f"{name}.weight"],
        tensors[f"{name}.scales"],
        group_size=32,
        bits=8,
        mode="mxfp8",
        dtype=mx.float32,
    )
    assert mx.array_equal(found, held(twin)[f"{name}.weight"]).item()
    assert distance(out, converted(twin, "--dtype", "float32").folder) < 1e-5


def test_scales_that_are_none_where_the_config_says_so_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [64, 64], "scale_fmt": "ue8m0"}
    source, _ = quantized_pair(tmp_path, "llama", settings, Fp8((64, 64), "_scale_inv"))
    assert "no powers of two" in refusal(source, capfd)


def test_fp8_without_scales_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def bare(module: str, weight: Array) -> tuple[Tensors, Array]:
        return {f"{module}.weight": torch.tensor(weight).to(E4M3)}, weight

    source, _ = quantized_pair(tmp_path, "llama", {"quant_method": "fp8"}, bare)
    assert "has 0 tensors of scales" in refusal(source, capfd)


def test_scales_that_do_not_fit_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    source, _ = quantized_pair(tmp_path, "llama", settings, Fp8((48, 32), "_scale_inv"))
    assert "does not cut an axis" in refusal(source, capfd)


def test_a_code_that_is_no_number_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(module: str, weight: Array) -> tuple[Tensors, Array]:
        made, values = Fp8((0, 0), "_scale", flat=True)(module, weight)
        made[f"{module}.weight"].view(torch.uint8)[0, 0] = 0x7F
        return made, values

    source, _ = quantized_pair(tmp_path, "llama", {"quant_method": "fp8"}, broken)
    assert "NaN" in refusal(source, capfd)
