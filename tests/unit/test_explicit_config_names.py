"""Names and layouts that mlx-lm's sanitize does not know."""

from __future__ import annotations

import mlx.core as mx
import pytest

from checkpoint.architecture.names import adapt_weights, explain_drop

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_fused_experts_are_parted() -> None:
    fused = mx.arange(2 * 6 * 4).reshape(2, 6, 4)
    prefix = "model.layers.0.mlp."
    weights = {f"{prefix}experts.gate_up_proj": fused, f"{prefix}experts.down_proj": fused}
    adapted, dropped = adapt_weights({"model_type": "qwen3_moe"}, weights)
    assert dropped == ()
    for expert in range(2):
        found = {
            part: adapted[f"{prefix}experts.{expert}.{part}_proj.weight"].tolist()
            for part in ("gate", "up", "down")
        }
        whole = fused[expert].tolist()
        assert found == {"gate": whole[:3], "up": whole[3:], "down": whole}
    assert len(adapted) == 6


def test_quantized_experts_of_gpt_oss_are_left_alone() -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj_blocks"
    blocks = mx.zeros((2, 6, 4, 16), mx.uint8)
    adapted, _ = adapt_weights({"model_type": "gpt_oss"}, {name: blocks})
    assert adapted[name] is blocks


@pytest.mark.parametrize(
    ("model_type", "tied", "saved", "expected"),
    [
        ("llama", True, {EMBEDDINGS}, {EMBEDDINGS}),
        ("llama", True, {HEAD}, {EMBEDDINGS, HEAD}),
        ("llama", False, {HEAD, EMBEDDINGS}, {HEAD, EMBEDDINGS}),
        ("phi", True, {EMBEDDINGS}, {EMBEDDINGS, HEAD}),
        ("phi", False, {EMBEDDINGS}, {EMBEDDINGS}),
    ],
)
def test_tied_pairs(model_type: str, tied: bool, saved: set[str], expected: set[str]) -> None:
    config = {"model_type": model_type, "tie_word_embeddings": tied}
    adapted, _ = adapt_weights(config, {name: mx.zeros((4, 2)) for name in saved})
    assert adapted.keys() == expected


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.layers.3.self_attn.rotary_emb.inv_freq", (4,), "rotary"),
        ("h.3.attn.bias", (1, 1, 8, 8), "mask"),
        ("gpt_neox.layers.3.attention.masked_bias", (), "mask"),
    ],
)
def test_buffers_are_dropped_with_a_reason(name: str, shape: tuple[int, ...], reason: str) -> None:
    adapted, dropped = adapt_weights({"model_type": "llama"}, {name: mx.zeros(shape)})
    assert not adapted
    assert dropped[0].startswith(f"{name}: ")
    assert reason in dropped[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lm_head.weight", "tied"),
        ("language_model.lm_head.weight", "tied"),
        ("mtp.layers.0.norm.weight", "multi-token"),
        ("model.layers.61.eh_proj.weight", "multi-token"),
        ("vision_tower.blocks.0.weight", "images"),
        ("model.visual.merger.weight", "images"),
    ],
)
def test_what_sanitize_drops_is_explained(name: str, reason: str) -> None:
    assert reason in (explain_drop(name) or "")


def test_a_weight_is_not_explained_away() -> None:
    for name in ("model.layers.0.self_attn.q_proj.bias", "h.0.attn.c_attn.bias", EMBEDDINGS):
        assert explain_drop(name) is None
