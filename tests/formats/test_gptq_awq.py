"""GPTQ and AWQ checkpoints: the codes kept where MLX has the grid, the values right elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from convert.cli import main as convert
from tests.factories_quantized import Array, Tensors, grid, quantized_pair, values_of, words
from tests.formats.conversion import converted, distance, held, weights


class Gptq:
    """Weights as AutoGPTQ packs them."""

    def __init__(self, bits: int, size: int, *, act_order: bool, symmetric: bool, v2: bool) -> None:
        self.bits, self.size, self.symmetric = bits, size, symmetric
        self.act_order, self.less = act_order, 0 if v2 else 1
        self.settings = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": size,
            "desc_act": act_order,
            "sym": symmetric,
            "checkpoint_format": "gptq_v2" if v2 else "gptq",
        }

    def __call__(self, module: str, weight: Array) -> tuple[Tensors, Array]:
        columns = weight.shape[1]
        size = columns if self.size == -1 else self.size
        order = np.arange(columns)
        if self.act_order:
            order = np.random.default_rng(len(module)).permutation(columns)
        codes, steps, zeros = grid(weight[:, order], self.bits, size, symmetric=self.symmetric)
        groups = np.empty(columns, np.int64)
        groups[order] = np.arange(columns) // size
        back = np.argsort(order)
        made = {
            f"{module}.qweight": words(codes[:, back], self.bits).T.contiguous(),
            f"{module}.qzeros": words((zeros - self.less).T, self.bits),
            f"{module}.scales": torch.tensor(np.ascontiguousarray(steps.T)),
            f"{module}.g_idx": torch.tensor(groups.astype(np.int32)),
        }
        return made, values_of(codes[:, back], steps, zeros, groups)


class Awq:
    """Weights as AutoAWQ packs them for GEMM."""

    def __init__(self) -> None:
        self.settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}

    def __call__(self, module: str, weight: Array) -> tuple[Tensors, Array]:
        codes, steps, zeros = grid(weight, 4, 32)
        made = {
            f"{module}.qweight": self._rows(codes),
            f"{module}.qzeros": self._rows(zeros),
            f"{module}.scales": torch.tensor(np.ascontiguousarray(steps.T)),
        }
        return made, values_of(codes, steps, zeros, np.arange(weight.shape[1]) // 32)

    @staticmethod
    def _rows(codes: Array) -> torch.Tensor:
        """Eight rows in a word, its fields from the lowest: rows 0 2 4 6 1 3 5 7."""
        eights = codes.T.reshape(codes.shape[1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return words(eights.reshape(codes.shape[1], -1), 4)


GPTQ = {
    "4 bits": (Gptq(4, 32, act_order=False, symmetric=False, v2=False), (4, 32)),
    "4 bits, symmetric": (Gptq(4, 64, act_order=False, symmetric=True, v2=False), (4, 64)),
    "4 bits, v2": (Gptq(4, 64, act_order=False, symmetric=False, v2=True), (4, 64)),
    "8 bits": (Gptq(8, 32, act_order=False, symmetric=False, v2=False), (8, 32)),
    "2 bits": (Gptq(2, 32, act_order=False, symmetric=False, v2=False), (2, 32)),
    "a scale a row": (Gptq(4, -1, act_order=False, symmetric=False, v2=False), (4, 128)),
    "4 bits, act-order": (Gptq(4, 32, act_order=True, symmetric=False, v2=False), None),
    "8 bits, act-order": (Gptq(8, 64, act_order=True, symmetric=True, v2=False), None),
}


@pytest.mark.parametrize("name", GPTQ)
def test_gptq_is_the_plain_model_of_its_values(name: str, tmp_path: Path) -> None:
    quantize, form = GPTQ[name]
    source, twin = quantized_pair(tmp_path, "llama", quantize.settings, quantize)
    config, receipt, out = converted(source, "--dtype", "float32")
    if form is None:
        assert "quantization" not in config
        assert any("no mode of MLX" in note for note in receipt["notes"])
    else:
        told = config["quantization"]
        assert (told["bits"], told["group_size"], told["mode"]) == (*form, "affine")
        assert any("the same codes" in n or "the same numbers" in n for n in receipt["notes"])
    _, _, plain = converted(twin, "--dtype", "float32")
    assert distance(out, plain) < 1e-5


def test_awq_is_the_plain_model_of_its_values(tmp_path: Path) -> None:
    source, twin = quantized_pair(tmp_path, "qwen2", Awq().settings, Awq())
    config, _, out = converted(source, "--dtype", "float32")
    told = config["quantization"]
    assert (told["bits"], told["group_size"], told["mode"]) == (4, 32, "affine")
    _, _, plain = converted(twin, "--dtype", "float32")
    assert distance(out, plain) < 1e-5


@pytest.mark.parametrize("quantize", [GPTQ["4 bits"][0], Awq()], ids=["gptq", "awq"])
def test_experts_are_stacked_with_their_codes(quantize: Any, tmp_path: Path) -> None:
    source, twin = quantized_pair(tmp_path, "qwen3_moe", quantize.settings, quantize)
    config, _, out = converted(source, "--dtype", "float32")
    assert config["quantization"]["group_size"] == 32
    assert held(out)["model.layers.0.mlp.switch_mlp.gate_proj.weight"].shape == (4, 64, 16)
    _, _, plain = converted(twin, "--dtype", "float32")
    assert distance(out, plain) < 1e-5


def test_in_half_precision_only_scales_and_biases_are_rounded(tmp_path: Path) -> None:
    quantize, _ = GPTQ["4 bits"]
    source, twin = quantized_pair(tmp_path, "llama", quantize.settings, quantize)
    _, receipt, out = converted(source, "--dtype", "float16")
    assert any("rounded to float16" in note for note in receipt["notes"])
    _, _, plain = converted(twin, "--dtype", "float32")
    assert distance(out, plain) < 2e-3
    exact, _ = GPTQ["4 bits, symmetric"]
    (tmp_path / "exact").mkdir()
    source, twin = quantized_pair(tmp_path / "exact", "llama", exact.settings, exact)
    _, receipt, out = converted(source, "--dtype", "float16")
    assert any("the same numbers" in note for note in receipt["notes"])
    tensors = held(out)
    name = "model.layers.0.mlp.down_proj"
    found = mx.dequantize(
        tensors[f"{name}.weight"],
        tensors[f"{name}.scales"].astype(mx.float32),
        tensors[f"{name}.biases"].astype(mx.float32),
        group_size=64,
        bits=4,
    )
    assert mx.array_equal(found, held(twin)[f"{name}.weight"]).item()


def test_quantized_anew_where_other_bits_are_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize, _ = GPTQ["4 bits"]
    source, twin = quantized_pair(tmp_path, "llama", quantize.settings, quantize)
    config, receipt, out = converted(source, "-q", "--bits", "8")
    assert config["quantization"]["bits"] == 8
    assert any("quantized already" in warning for warning in receipt["warnings"])
    _, _, again = converted(twin, "-q", "--bits", "8")
    assert distance(out, again) == 0
    fates = {each["became"]: each["weights"] for each in receipt["source_quantization"]}
    assert fates == {"quantized anew": 14}
    _, receipt, _ = converted(source, "-q", "--bits", "4", "--group-size", "32")
    (form,) = receipt["source_quantization"]
    assert (form["weights"], form["became"]) == (
        14,
        "kept: the same codes, scales and biases rounded",
    )


def test_infer_reads_it_as_it_is(tmp_path: Path) -> None:
    quantize, _ = GPTQ["4 bits"]
    source, _ = quantized_pair(tmp_path, "llama", quantize.settings, quantize)
    assert distance(source, converted(source).folder) == 0
    assert "model.layers.0.mlp.up_proj.scales" in weights(source)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_dequantized_to_a_plain_folder(kind: str, tmp_path: Path) -> None:
    quantize, _ = GPTQ["4 bits, act-order"]
    source, twin = quantized_pair(tmp_path, kind, quantize.settings, quantize)
    config, _, out = converted(source, "--dequantize", "--dtype", "float32")
    assert "quantization_config" not in config
    found, expected = held(out), held(twin)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert mx.allclose(found[name], tensor, rtol=1e-6, atol=1e-7).item()


def test_biases_of_zeros_that_no_architecture_has_are_left_out(tmp_path: Path) -> None:
    plain, _ = GPTQ["4 bits"]

    def with_bias(fill: float) -> Any:
        def quantize(module: str, weight: Array) -> tuple[Tensors, Array]:
            made, values = plain(module, weight)
            return {**made, f"{module}.bias": torch.full((len(weight),), fill).half()}, values

        return quantize

    source, _ = quantized_pair(tmp_path, "llama", plain.settings, with_bias(0.0))
    _, receipt, _ = converted(source)
    dropped = {each["name"]: each["reason"] for each in receipt["dropped"]}
    assert "zeros" in dropped["model.layers.0.mlp.up_proj.bias"]
    (tmp_path / "real").mkdir()
    source, _ = quantized_pair(tmp_path / "real", "llama", plain.settings, with_bias(0.5))
    assert convert(["--hf-path", str(source), "--mlx-path", str(tmp_path / "no")]) == 1


REFUSED = {
    "3 bits": ({"bits": 3}, "bits is 3"),
    "a kernel's own layout": ({"checkpoint_format": "marlin"}, "marlin"),
    "another method": ({"quant_method": "aqlm"}, "aqlm"),
    "no method": (None, "does not say how"),
    "groups that don't fit": ({"group_size": 64}, "in groups of 64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_read_is_refused_by_name(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, told = REFUSED[name]
    quantize, _ = GPTQ["4 bits"]
    settings = None if changes is None else {**quantize.settings, **changes}
    source, _ = quantized_pair(tmp_path, "llama", settings, quantize)
    assert convert(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out")]) == 1
    assert told in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_order_that_the_config_denies_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize, _ = GPTQ["4 bits, act-order"]
    settings = {**quantize.settings, "desc_act": False}
    source, _ = quantized_pair(tmp_path, "llama", settings, quantize)
    assert convert(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out")]) == 1
    assert "orders the columns" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
