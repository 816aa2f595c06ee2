"""Which layers of a block take the same input, and which add to the hidden state."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.llama import ModelArgs, TransformerBlock

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


def names() -> dict[str, None]:
    rooms = (ATTENTION,) * 4 + (MLP,) * 3
    return {f"{room}.{name}.weight": None for room, name in zip(rooms, NAMES, strict=True)}


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


def test_what_layers_take() -> None:
    module, hidden = block(), mx.random.normal((2, 9, 32))
    expected = module(hidden, "causal")
    normed = module.input_layernorm(hidden)
    probe = Probe(module, names())
    q, _, _, o, *_, down = names()
    found, norms = probe.input_of(q, lambda: module(hidden, "causal"))
    assert mx.allclose(found, normed, atol=1e-6)
    assert norms.keys() == {"input_layernorm"}
    taken = probe.inputs_of(frozenset({q, o, down}), lambda: module(hidden, "causal"))
    assert taken.inputs.keys() == {q, o, down}
    assert taken.inputs[down].shape == (2, 9, 48)
    assert mx.allclose(taken.output, expected, atol=1e-4)
    assert taken.norms.keys() == {"input_layernorm", "post_attention_layernorm"}
    assert taken.nbytes == 4 * 2 * 9 * (32 + 32 + 48 + 32 + 32 + 32)


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
    probe = Probe(module, {"layer.weight": None, "twice.weight": None})
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
