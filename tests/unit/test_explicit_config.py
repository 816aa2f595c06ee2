"""What make_explicit writes, limits and refuses, a config at a time."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoint.architecture import explicit
from checkpoint.architecture.config_values import tagged, untagged
from checkpoint.architecture.explicit import make_explicit
from checkpoint.dimensions import check_dimensions
from configs.errors import ArchitectureError, ModelConfigError
from tests.architectures_table import LINEAR, LLAMA3, ROPE, SIZES, TABLE, YARN, partial
from tests.meaning_in_process import meaning_in_process

WINDOWS = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 16}
UNEVEN = {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explicit, "transformers_meaning", meaning_in_process)


def config(model_type: str, **values: Any) -> dict[str, Any]:
    return {**SIZES, "model_type": model_type, **values}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "spiral"}}, "spiral"),
    ("mistral", {"sliding_window": 16}, "sliding_window 16"),
    ("mixtral", {"head_dim": 32}, "head_dim 32"),
    ("qwen2", {"head_dim": 32}, "head_dim 32"),
    ("qwen2", WINDOWS, "sliding_window 16"),
    ("qwen2_moe", {**MOE, "norm_topk_prob": True}, "norm_topk_prob True"),
    ("qwen3", {"attention_bias": True}, "attention_bias True"),
    ("qwen3_moe", {**MOE, "rope_parameters": LINEAR}, "'rope_type': 'linear'"),
    ("qwen3_moe", {**MOE, "rope_parameters": YARN}, "'rope_type': 'yarn'"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm True"),
    ("phi3", {"sliding_window": 16}, "sliding_window 16"),
    ("mixtral", {"rope_parameters": YARN}, "'rope_type': 'yarn'"),
    ("gemma", {"rope_parameters": LLAMA3, "head_dim": 16}, "'rope_type': 'llama3'"),
    ("gemma", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
    ("gemma2", {"sliding_window": 16}, "sliding_window 16"),
    ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping None"),
    ("gemma2", {"hidden_activation": "silu"}, "hidden_activation 'silu'"),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
    ("gemma3_text", UNEVEN, "layer_types"),
    ("cohere2", UNEVEN, "layer_types"),
    ("glm", {"rope_parameters": partial(0.5), "head_dim": 16}, "'partial_rotary_factor': 0.5"),
    ("olmoe", {**MOE, "clip_qkv": 8.0}, "clip_qkv 8.0"),
    ("starcoder2", {"use_bias": False}, "use_bias False"),
    ("gpt_neox", {"intermediate_size": 96}, "intermediate_size 96"),
    ("gpt2", {"n_inner": 96}, "n_inner 96"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx True"),
    ("nanochat", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
    ("jamba", {"num_experts": 4}, "num_experts 4"),
    ("minimax", {}, "minimax can't be built"),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "values", "named"), REFUSED)
def test_a_value_that_cannot_be_honoured_is_named(
    model_type: str, values: dict[str, Any], named: str
) -> None:
    with pytest.raises(ArchitectureError) as caught:
        make_explicit(config(model_type, **values), {})
    assert caught.value.where == "config.json"
    assert named in caught.value.what
    assert "\n" not in str(caught.value)


def test_a_tensor_that_mlx_lm_ignores_is_named() -> None:
    name = "model.layers.1.mlp.moe_statics.e_score_correction_bias"
    with pytest.raises(ArchitectureError, match="e_score_correction_bias"):
        make_explicit(config("ernie4_5_moe", moe_num_experts=4), {name: (1, 4)})


@pytest.mark.parametrize("model_type", ["gemma2", "mistral", "phi3", "starcoder2"])
def test_a_folder_promises_no_more_positions_than_a_window_that_mlx_lm_lacks(
    model_type: str,
) -> None:
    values = {"sliding_window": 2048, "max_position_embeddings": 8192, "head_dim": 16}
    made = make_explicit(config(model_type, **values), {})
    assert made.config["max_position_embeddings"] == 2048
    assert any("2048, not 8192" in note for note in made.notes)


# As transformers 4 wrote it, and as transformers 5 does.
OLD_AND_NEW: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "llama",
        {"rope_theta": 23456.0, "rope_scaling": None, "torch_dtype": "bfloat16"},
        {"rope_parameters": ROPE, "dtype": "bfloat16"},
    ),
    (
        "llama",
        {"rope_theta": 23456.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
        {"rope_parameters": LINEAR},
    ),
    (
        "qwen2",
        {
            "rope_theta": 23456.0,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        {"rope_parameters": YARN},
    ),
    (
        "phi",
        {"rope_theta": 23456.0, "partial_rotary_factor": 0.25},
        {"rope_parameters": partial(0.25)},
    ),
    (
        "gpt_neox",
        {"rotary_emb_base": 23456, "rotary_pct": 0.5, "intermediate_size": 256},
        {"rope_parameters": partial(0.5), "intermediate_size": 256},
    ),
    (
        "gemma3_text",
        {
            "rope_theta": 23456.0,
            "rope_local_base_freq": 345.0,
            "sliding_window_pattern": 2,
            "rope_scaling": {"rope_type": "linear", "factor": 3.0},
        },
        {
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 345.0},
            },
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
]


@pytest.mark.parametrize(("model_type", "old", "new"), OLD_AND_NEW)
def test_old_and_new_spellings_become_one(
    model_type: str, old: dict[str, Any], new: dict[str, Any]
) -> None:
    first = make_explicit(config(model_type, **old), {}).config
    second = make_explicit(config(model_type, **new), {}).config
    assert first == second


def test_defaults_are_written_out() -> None:
    made = make_explicit({"model_type": "qwen2", "num_hidden_layers": 2}, {}).config
    assert made["rope_theta"] == 10000.0  # transformers' default; mlx-lm's is 1,000,000
    assert made["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}
    assert made["tie_word_embeddings"] is False
    assert made["rms_norm_eps"] == 1e-6
    assert made["layer_types"] == ["full_attention"] * 2
    assert not made.keys() & {"return_dict", "id2label", "_name_or_path"}


def test_dtype_under_both_names() -> None:
    made = make_explicit(config("llama", torch_dtype="float16"), {}).config
    assert made["dtype"] == made["torch_dtype"] == "float16"


@pytest.mark.parametrize("name", TABLE)
def test_making_explicit_again_changes_nothing(name: str) -> None:
    first = make_explicit(TABLE[name].config().to_diff_dict(), {}).config
    assert make_explicit(first, {}).config == first


def test_the_text_part_of_a_multimodal_config() -> None:
    text = {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 64}
    text["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    made = make_explicit({"model_type": "gemma3", "text_config": text}, {}).config["text_config"]
    assert made["rope_theta"] == 1_000_000.0
    assert made["rope_local_base_freq"] == 10_000.0
    assert made["rope_scaling"]["factor"] == 8.0
    assert made["sliding_window_pattern"] == 6


def test_a_type_that_transformers_lacks_is_kept() -> None:
    source = {**SIZES, "model_type": "internlm2", "rms_norm_eps": 1e-5, "rope_theta": 5.0}
    made = make_explicit(source, {})
    assert made.config == source
    assert "transformers has no class for 'internlm2'" in made.notes[0]


def test_an_unreviewed_architecture_is_said_to_be_one() -> None:
    made = make_explicit(config("nemotron_h", layers_block_type=["mamba", "attention", "mlp"]), {})
    assert any("not reviewed" in note for note in made.notes)


@pytest.mark.parametrize("model_type", ["os", "../x", "llamma"])
def test_an_unknown_type_is_refused(model_type: str) -> None:
    with pytest.raises(ArchitectureError, match="model_type"):
        make_explicit({"model_type": model_type}, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", "64"),
        ("hidden_size", 10**9),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 2.5),
        ("vocab_size", True),
        ("num_attention_heads", 7),
        ("num_key_value_heads", 3),
        ("text_config", [1]),
    ],
)
def test_a_size_that_is_none_is_named(key: str, value: Any) -> None:
    with pytest.raises(ModelConfigError) as caught:
        check_dimensions({**SIZES, key: value})
    assert caught.value.where == "config.json"
    assert key in caught.value.what


def test_sizes_may_be_given_for_each_layer() -> None:
    check_dimensions({**SIZES, "intermediate_size": [96, 64, None]})
    with pytest.raises(ModelConfigError, match="intermediate_size is 0"):
        check_dimensions({"text_config": {**SIZES, "intermediate_size": [96, 0]}})


def test_infinities_survive_json() -> None:
    source = {"a": [0.0, {"__float__": "Infinity"}], "b": {"c": {"__float__": "-Infinity"}}}
    plain = untagged(source)
    assert plain == {"a": [0.0, float("inf")], "b": {"c": float("-inf")}}
    assert tagged(plain) == source
