"""What a target comes to in bytes; the cache that a machine must hold beside the model."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import gemma2, llama
from mlx_lm.models.gpt_oss import Model as GptOss
from mlx_lm.models.gpt_oss import ModelArgs as GptOssArgs

from checkpoint.architecture.kv_cost import cost_of_placeholders
from configs.quantization import ConvertTable
from convert.mixed.budget import budget_of
from inference.budget import measure

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": 64,
}


def models() -> list[Any]:
    windowed = {**SIZES, "num_experts_per_tok": 1, "num_local_experts": 2, "sliding_window": 16}
    return [
        llama.Model(llama.ModelArgs(model_type="llama", **SIZES)),
        gemma2.Model(gemma2.ModelArgs(model_type="gemma2", **SIZES)),
        GptOss(GptOssArgs(model_type="gpt_oss", **windowed)),
    ]


@pytest.mark.parametrize("at", range(3))
def test_the_cache_is_what_a_run_takes(at: int) -> None:
    model = models()[at]
    assert cost_of_placeholders(model) == measure(model)


def test_bits_per_weight_are_of_all_weights() -> None:
    budget = budget_of(ConvertTable(quantize=True, target_bpw=4.5), 1001, None, None)
    assert (budget.nbytes, budget.with_headers) == (563, False)


def test_a_size_is_of_files() -> None:
    budget = budget_of(ConvertTable(quantize=True, target_size=10**9), 1, None, None)
    assert (budget.nbytes, budget.with_headers) == (10**9, True)


@pytest.mark.parametrize(("memory", "over", "under"), [(16 << 30, 2, 3), (64 << 30, 3, 4)])
def test_a_machine_keeps_a_tenth_free_beside_the_cache(memory: int, over: int, under: int) -> None:
    model = models()[0]
    model.set_dtype(mx.bfloat16)
    budget = budget_of(ConvertTable(quantize=True, fit=memory), 1, model, 1000)
    wired = memory * over // under
    # Four layers of one head of 32, keys and values, two bytes each; in steps of 256 tokens.
    assert budget.nbytes == wired - wired // 10 - 4 * 2 * 32 * 2 * 1024
    assert "1,000 tokens" in budget.told


def test_without_a_context_it_is_one_that_the_model_can_read() -> None:
    model = models()[0]
    model.args.max_position_embeddings = 512
    assert "512 tokens" in budget_of(ConvertTable(fit=16 << 30), 1, model, None).told
    model.args.max_position_embeddings = 1 << 20
    assert "8,192 tokens" in budget_of(ConvertTable(fit=16 << 30), 1, model, None).told
