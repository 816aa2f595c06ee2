"""bitsandbytes checkpoints, by that library's own description of its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.factories_quantized import Array, Tensors, quantized_pair
from tests.formats.conversion import converted, distance, refusal

# Quantiles of the normal distribution, of the paper on QLoRA (arXiv 2305.14314).
NF4 = np.array(
    [
        *(-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1),
    ],
    np.float32,
)
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / 12
DYNAMIC = np.linspace(-1, 1, 256).astype(np.float32)
SETTINGS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


class FourBits:
    def __init__(self, kind: str, *, nested: bool, block: int = 64) -> None:
        self.kind, self.nested, self.block = kind, nested, block
        self.table = NF4 if kind == "nf4" else np.concatenate([FP4, -FP4])
        self.state: dict[str, Any] = {}

    def __call__(self, module: str, weight: Array) -> tuple[Tensors, Array]:
        flat = weight.reshape(-1, self.block)
        absmax = np.abs(flat).max(1)
        made: Tensors = {}
        state = {"quant_type": self.kind, "blocksize": self.block, "dtype": "bfloat16"}
        if self.nested:
            offset = float(np.float32(absmax.mean()))
            inner = np.pad(absmax - np.float32(offset), (0, -len(absmax) % 256)).reshape(-1, 256)
            outer = np.abs(inner).max(1)
            codes = np.abs((inner / outer[:, None])[..., None] - DYNAMIC).argmin(-1)
            values = (DYNAMIC[codes] * outer[:, None]).reshape(-1)[: len(absmax)]
            kept = codes.astype(np.uint8).reshape(-1)[: len(absmax)]
            absmax = values + np.float32(offset)
            state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
            made[f"{module}.weight.nested_absmax"] = torch.tensor(outer)
            made[f"{module}.weight.nested_quant_map"] = torch.tensor(DYNAMIC)
            made[f"{module}.weight.absmax"] = torch.tensor(kept)
        else:
            made[f"{module}.weight.absmax"] = torch.tensor(absmax)
        places = np.abs((flat / absmax[:, None])[..., None] - self.table).argmin(-1)
        pairs = places.reshape(-1, 2).astype(np.uint8)
        text = json.dumps(state | {"shape": list(weight.shape)} | self.state).encode()
        made |= {
            f"{module}.weight": torch.tensor(pairs[:, :1] << 4 | pairs[:, 1:]),
            f"{module}.weight.quant_map": torch.tensor(self.table),
            f"{module}.weight.quant_state.bitsandbytes__{self.kind}": torch.tensor(list(text)).to(
                torch.uint8
            ),
        }
        return made, (self.table[places] * absmax[:, None]).reshape(weight.shape)


def rows(module: str, weight: Array) -> tuple[Tensors, Array]:
    """LLM.int8."""
    largest = np.abs(weight).max(1).astype(np.float32)
    codes = np.rint(weight * 127 / largest[:, None]).astype(np.int8)
    made = {
        f"{module}.weight": torch.tensor(codes),
        f"{module}.SCB": torch.tensor(largest),
        f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return made, codes * (largest[:, None] / np.float32(127))


FORMS = {
    "nf4": FourBits("nf4", nested=False),
    "nf4, scales quantized too": FourBits("nf4", nested=True),
    "nf4, blocks longer than a row": FourBits("nf4", nested=False, block=512),
    "fp4": FourBits("fp4", nested=False),
}


@pytest.mark.parametrize("name", FORMS)
def test_four_bits_are_the_plain_model_of_their_values(name: str, tmp_path: Path) -> None:
    source, twin = quantized_pair(tmp_path, "llama", SETTINGS, FORMS[name])
    config, receipt, out = converted(source, "--dtype", "float32")
    assert "quantization" not in config
    assert {each["became"] for each in receipt["source_quantization"]} == {"dequantized"}
    assert distance(out, converted(twin, "--dtype", "float32").folder) < 1e-5


def test_eight_bits_keep_their_codes(tmp_path: Path) -> None:
    source, twin = quantized_pair(tmp_path, "qwen2", {"quant_method": "bitsandbytes"}, rows)
    config, _, out = converted(source, "--dtype", "float32")
    assert config["quantization"] == {"bits": 8, "group_size": 128, "mode": "affine"}
    assert distance(out, converted(twin, "--dtype", "float32").folder) < 1e-5


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"shape": [3, 5]}, "does not hold"),
        ({"blocksize": 0}, "no state of"),
        ({"blocksize": 32}, "should hold"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    state: dict[str, Any], told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize = FourBits("nf4", nested=False)
    quantize.state = state
    source, _ = quantized_pair(tmp_path, "llama", SETTINGS, quantize)
    assert told in refusal(source, capfd)
