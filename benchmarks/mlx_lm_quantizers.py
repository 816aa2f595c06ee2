"""Runs mlx-lm's own quantizers on a text of ours: one folder a run.

    python benchmarks/mlx_lm_quantizers.py gptq MODEL OUT --bits 4 --calibrate TEXT

Their commands fetch the data that they learn from. Their functions take it as arrays, so that is
how they are called here: with the windows that `convert --method calibrated --calibrate TEXT`
reads, token for token. They compute in float32, and what they have made is stored in the
model's dtype; embeddings and head get the bits of all other layers, so that sizes are equal.
`quality_table.py` calls this for its rows.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize, update_config
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
from mlx_lm.quant.gptq import gptq_quantize
from mlx_lm.utils import load, quantize_model, save

from convert.calibration.text import read_calibration

GROUP = 64
SEED = 123  # of their commands


def gptq(model: Any, config: dict[str, Any], ids: mx.array, chosen: argparse.Namespace) -> Any:
    """`mlx_lm.gptq`: 2, 4 and 8 bits."""
    model, config["quantization"] = gptq_quantize(
        model, ids, chosen.bits, GROUP, chosen.bits, GROUP
    )
    return model, config


class Linear(nn.QuantizedLinear):
    """The same layer, computed with the floats that its weights stand for: faster on a CPU."""

    def __call__(self, x: mx.array) -> mx.array:
        """[..., inputs] to [..., outputs]."""
        packed = self["weight"], self["scales"], self["biases"]
        made = x @ mx.dequantize(*packed, group_size=self.group_size, bits=self.bits).T
        return made + self["bias"] if "bias" in self else made


def dwq(model: Any, config: dict[str, Any], ids: mx.array, chosen: argparse.Namespace) -> Any:
    """`mlx_lm.dwq`: scales and biases learned by distillation."""
    student = copy.deepcopy(model)
    student, config = quantize_model(student, config, GROUP, chosen.bits)
    for module in student.modules():
        if type(module) is nn.QuantizedLinear:
            module.__class__ = Linear
    rows = [(row, 0) for row in ids.tolist()] * chosen.passes
    dwq_quantize(
        student,
        lambda batch, number, split: model(batch),
        optimizers.Adam(learning_rate=chosen.learning_rate, bias_correction=True),
        rows,
        rows[:4],  # what it reports on; it changes nothing
        batch_size=4,
        max_seq_length=1025,
        seed=SEED,
        dtype=mx.float32,
    )
    return student, config


def awq(model: Any, config: dict[str, Any], ids: mx.array, chosen: argparse.Namespace) -> Any:
    """`mlx_lm.awq`: input channels scaled and weights clipped before rounding."""
    rules = AWQ_MODEL_CONFIGS[config["model_type"]]
    awq_quantize(
        model,
        ids,
        rules,
        group_size=GROUP,
        bits=chosen.bits,
        embed_group_size=GROUP,
        embed_bits=chosen.bits,
    )
    return model, update_config(model, config)


def dynamic(model: Any, config: dict[str, Any], ids: mx.array, chosen: argparse.Namespace) -> Any:
    """`mlx_lm.dynamic_quant`: two numbers of bits, by each layer's sensitivity."""
    pair = chosen.low_bits, GROUP, chosen.high_bits, GROUP
    found = dict(estimate_sensitivities(model, ids, *pair))
    threshold = estimate_threshold(stored(copy.deepcopy(model)), found, chosen.bpw, *pair)

    def choice(path: str, module: nn.Module) -> bool | dict[str, int]:
        if not hasattr(module, "to_quantized"):
            return False
        if found[path] > threshold:
            return {"bits": chosen.high_bits, "group_size": GROUP}
        return True

    return quantize_model(model, config, GROUP, chosen.low_bits, quant_predicate=choice)


def stored(model: Any) -> Any:
    """The same with its floats in bfloat16."""
    model.set_dtype(mx.bfloat16)
    return model


def main() -> None:
    """Quantize and write."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    methods = {"gptq": gptq, "dwq": dwq, "awq": awq, "dynamic_quant": dynamic}
    arguments.add_argument("method", choices=list(methods))
    arguments.add_argument("model", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--calibrate", type=Path, required=True)
    arguments.add_argument("--bits", type=int, default=4)
    arguments.add_argument("--bpw", type=float, default=4.5, help="for dynamic_quant")
    arguments.add_argument("--low-bits", type=int, default=3)
    arguments.add_argument("--high-bits", type=int, default=5)
    arguments.add_argument("--learning-rate", type=float, default=1e-6, help="for dwq")
    arguments.add_argument("--passes", type=int, default=1, help="over the text, for dwq")
    chosen = arguments.parse_args()
    mx.random.seed(SEED)
    source = json.loads((chosen.model / "config.json").read_text("utf-8"))
    ids = read_calibration(chosen.calibrate, chosen.model, source).ids
    model, tokenizer, config = load(str(chosen.model), return_config=True)
    model.set_dtype(mx.float32)
    made, config = methods[chosen.method](model, config, ids, chosen)
    save(str(chosen.out), str(chosen.model), stored(made), tokenizer, config)
    print(f"{ids.size} tokens")


if __name__ == "__main__":
    main()
