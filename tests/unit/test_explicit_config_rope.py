"""Our arithmetic of RoPE against transformers', and the probe of mlx-lm's modules."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from checkpoint.architecture.explicit import make_explicit
from checkpoint.architecture.rope import rotation
from checkpoint.architecture.rotations import check_rotations
from configs.errors import ArchitectureError, ModelConfigError
from tests.architectures_table import LINEAR, LLAMA3, ROPE, SIZES, YARN, longrope

HEAD = 32
VARIANTS: dict[str, dict[str, Any]] = {
    "linear": LINEAR,
    "linear, partial": {**LINEAR, "partial_rotary_factor": 0.5},
    "dynamic": {**ROPE, "rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn, partial": {**YARN, "partial_rotary_factor": 0.5},
    "yarn, not truncated": {**YARN, "truncate": False},
    "yarn, betas": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, scale": {**YARN, "attention_factor": 1.3},
    "yarn, mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3},
    "yarn, mscale alone": {**YARN, "mscale": 0.7},
    "yarn, factor below 1": {**YARN, "factor": 0.5},
    "longrope": longrope(HEAD // 2),
    "longrope, scale": {**longrope(HEAD // 2), "attention_factor": 1.3},
    "longrope, factor": {**longrope(HEAD // 2), "factor": 7.0},
    "proportional": {**ROPE, "rope_type": "proportional", "partial_rotary_factor": 0.25},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("length", [4, 4000])
def test_rotation_is_transformers(name: str, length: int) -> None:
    rope = VARIANTS[name]
    config = transformers.LlamaConfig(
        **{**SIZES, "head_dim": HEAD, "max_position_embeddings": 4096}, rope_parameters=dict(rope)
    )
    frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, seq_len=length)
    ours = rotation(config.rope_parameters, HEAD, 4096, length)
    torch.testing.assert_close(torch.tensor(ours.frequencies), frequencies, rtol=2e-6, atol=1e-9)
    assert ours.scale == pytest.approx(scale)
    assert ours.head_dim == HEAD


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "default"}, "rope_theta"),
        ({**ROPE, "rope_type": "linear"}, "factor"),
        ({**LINEAR, "factor": 0}, "can't be computed"),
        ({**LINEAR, "factor": "3"}, "can't be computed"),
        ({**longrope(16), "long_factor": [1.0]}, "long_factor has 1 entries, expected 16"),
    ],
)
def test_parameters_that_lack_something(rope: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelConfigError, match=named):
        rotation(rope, HEAD, 512)


class OneLayer(nn.Module):
    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.layers = [nn.Sequential(rope)]


VALUES = {"rope_parameters": ROPE, "head_dim": HEAD}


@pytest.mark.parametrize("traditional", [False, True])
def test_either_pairing_of_dimensions_passes(traditional: bool) -> None:
    model = OneLayer(nn.RoPE(HEAD, traditional=traditional, base=23456.0))
    assert check_rotations(model, VALUES, "tiny") == ()


@pytest.mark.parametrize(
    "rope",
    [
        nn.RoPE(HEAD, base=23450.0),
        nn.RoPE(HEAD // 2, base=23456.0),
        nn.RoPE(HEAD, base=23456.0, scale=0.99),
    ],
    ids=["theta", "fraction", "scale"],
)
def test_a_rotation_that_differs_is_refused(rope: nn.Module) -> None:
    with mx.stream(mx.cpu), pytest.raises(ArchitectureError, match=r"'rope_theta': 23456\.0"):
        check_rotations(OneLayer(rope), VALUES, "tiny")


@pytest.mark.parametrize("model_type", ["nanochat", "deepseek_v2"])
def test_rope_in_modules_of_other_names_or_none_is_judged_too(model_type: str) -> None:
    parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    config = {"model_type": model_type, "rope_parameters": parameters, "num_hidden_layers": 2}
    with pytest.raises(ArchitectureError, match="can't be honoured"):
        make_explicit(config, {})
