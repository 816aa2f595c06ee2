"""Which layers of a block take the same input, and which add to the hidden state."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.llama import ModelArgs, TransformerBlock
from mlx_lm.models.switch_layers import SwitchGLU

from convert.calibration.probe import INPUT, NotCalledError, Probe, Stage, linear

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION, MLP = "self_attn", "mlp"


def block() -> TransformerBlock:
    mx.random.seed(1)
    return TransformerBlock(
        ModelArgs(
            model_type="llama",
            hidden_size=32,
            num_hidden_layers=1,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=8,
        )
    )


SHAPES = ((32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48))


def names() -> dict[str, tuple[int, ...]]:
    rooms = (ATTENTION,) * 4 + (MLP,) * 3
    paths = [f"{room}.{name}.weight" for room, name in zip(rooms, NAMES, strict=True)]
    return dict(zip(paths, SHAPES, strict=True))


def test_stages_of_a_llama_block() -> None:
    module, hidden = block(), mx.random.normal((1, 9, 32))
    probe = Probe(module, names())
    q, k, v, o, gate, up, down = names()
    assert probe.stages(lambda: module(hidden, "causal"), hidden) == [
        Stage((q, k, v), None, "input_layernorm"),
        Stage((o,), INPUT, None),
        Stage((gate, up), None, "post_attention_layernorm"),
        Stage((down,), "post_attention_layernorm", None),
    ]


def test_what_layers_take_and_make() -> None:
    module, hidden = block(), mx.random.normal((2, 9, 32))
    expected = module(hidden, "causal")
    normed = module.input_layernorm(hidden)
    weights = {name: np.array(module_of(module, name).weight) for name in names()}
    probe = Probe(module, names())
    made: dict[str, np.ndarray] = {}
    probe.known = made.get
    for name in names():
        taken = probe.input_of(name, lambda: module(hidden, "causal"))
        assert taken.x.shape == (18, weights[name].shape[1])
        if "q_proj" in name:
            assert np.allclose(taken.x, np.array(normed).reshape(18, 32), atol=1e-6)
            assert taken.norms.keys() == {"input_layernorm"}
        made[name] = taken.x @ weights[name].T
    # All that the layers make is known: they themselves are not asked any more.
    for name in names():
        module_of(module, name).weight = mx.full(weights[name].shape, mx.nan)
    assert mx.allclose(module(hidden, "causal"), expected, atol=1e-4)


def module_of(module: nn.Module, name: str) -> nn.Module:
    room, layer, _ = name.split(".")
    found: nn.Module = module[room][layer]
    return found


@pytest.mark.parametrize("tokens", [3, 40])  # mlx-lm sorts from 64 routes on
@pytest.mark.parametrize("bias", [True, False])
def test_experts_take_and_make_tokens_in_their_order(tokens: int, bias: bool) -> None:
    module = SwitchGLU(16, 24, 5, bias=bias)
    if bias:
        module.down_proj.bias = mx.random.normal((5, 16))
    x, indices = mx.random.normal((1, tokens, 16)), mx.random.randint(0, 5, (1, tokens, 2))
    expected = module(x, indices)
    shapes = {
        f"{name}.weight": module[name].weight.shape
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    weights = {name: np.array(module[name.split(".")[0]].weight) for name in shapes}
    probe = Probe(module, shapes)
    made: dict[str, np.ndarray] = {}
    probe.known = made.get
    up, gate, down = "up_proj.weight", "gate_proj.weight", "down_proj.weight"
    flat = np.array(indices).reshape(-1)
    for name in (up, gate, down):
        taken = probe.input_of(name, lambda: module(x, indices))
        assert taken.counts == tuple(np.bincount(flat, minlength=5))
        ends = np.cumsum(taken.counts)
        parts = np.split(taken.x, ends[:-1])
        made[name] = np.concatenate(
            [part @ expert.T for part, expert in zip(parts, weights[name], strict=True)]
        )
    assert mx.allclose(module(x, indices), expected, atol=1e-5)
    stages = Probe(module, shapes).stages(lambda: module(x, indices), x)
    assert stages == [Stage((up, gate), None, None, True), Stage((down,), None, None, True)]


class Scaled(nn.Module):
    """Adds a tenth of what its layer gives, twice: nothing that a layer alone could make good."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)
        self.layer = nn.Linear(16, 16)
        self.twice = nn.Linear(16, 16)

    def __call__(self, hidden: mx.array) -> mx.array:
        hidden = hidden + 0.1 * self.layer(self.norm(hidden))
        return self.twice(self.twice(hidden))


def test_scaled_and_repeated_layers_are_seen() -> None:
    module, hidden = Scaled(), mx.random.normal((1, 5, 16))
    probe = Probe(module, {"layer.weight": (16, 16), "twice.weight": (16, 16)})
    assert probe.stages(lambda: module(hidden), hidden) == [Stage(("layer.weight",), None, "norm")]


def test_a_layer_that_is_not_called() -> None:
    module, hidden = block(), mx.random.normal((1, 5, 32))
    probe = Probe(module, names())
    with pytest.raises(NotCalledError):
        probe.input_of("other.weight", lambda: module(hidden, "causal"))


@pytest.mark.parametrize("bias", [True, False])
def test_numpy_s_product_is_mlx_s(bias: bool) -> None:
    layer, given = nn.Linear(24, 7, bias=bias), mx.random.normal((2, 3, 24))
    assert mx.allclose(linear(layer, given), layer(given), atol=1e-5)
