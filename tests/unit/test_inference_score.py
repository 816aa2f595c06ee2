from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import pytest

from configs.errors import GenerationError
from inference import score as score_module
from inference.report import fields, table
from inference.score import Score, TokenScore, score
from inference.statistics import Run
from inference.tokenizer import Tokenizer
from tests.factories_inference import tiny_config, tiny_network
from tests.factories_models import VOCABULARY
from tests.unit.test_inference_detokenize import byte_level

IDS = [(7 * n * n + 3 * n) % VOCABULARY for n in range(50)]
RUN = Run("folder", "cpu", "float32", 0.1, 1000)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mamba"])
def test_scores_are_the_models_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_network(tiny_config(kind))
    logits = model(mx.array([IDS]))[0].astype(mx.float32)
    expected = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    monkeypatch.setattr(score_module, "_LOGIT_BYTES", 4 * VOCABULARY * 7)  # pieces of 7 tokens
    found = score(model, IDS, vocabulary=VOCABULARY)
    assert [token.id for token in found.tokens] == IDS
    assert found.tokens[0] == TokenScore(IDS[0], None, None)
    for position, token in enumerate(found.tokens[1:], start=1):
        row = expected[position - 1]
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
        assert token.rank == 1 + mx.sum(logits[position - 1] > logits[position - 1, token.id])


def test_totals() -> None:
    tokens = (TokenScore(5, None, None), TokenScore(6, -math.log(4), 2), TokenScore(7, 0.0, 1))
    found = Score(tokens)
    assert found.total_bits == pytest.approx(2.0)
    assert found.perplexity == pytest.approx(2.0)
    assert tokens[1].bits == pytest.approx(2.0)


def test_one_token_has_nothing_before_it() -> None:
    found = score(tiny_network(tiny_config("llama")), [3], vocabulary=VOCABULARY)
    assert found.perplexity is None and found.total_bits == 0.0


def test_nan_is_an_error_with_its_place() -> None:
    model = tiny_network(tiny_config("llama"))
    model.lm_head.weight = mx.full(model.lm_head.weight.shape, float("nan"))
    with pytest.raises(GenerationError, match="NaN at token 2"):
        score(model, IDS, vocabulary=VOCABULARY)


def test_fields_are_those_of_the_design() -> None:
    backend = byte_level()
    tokenizer = Tokenizer(backend, {}, frozenset(), Path("tokenizer.json"))
    text = "a𝄞 the"
    ids = backend.encode(text).ids
    tokens = (TokenScore(ids[0], None, None), *(TokenScore(i, -math.log(2), 1) for i in ids[1:]))
    made = fields(Score(tokens), tokenizer, RUN)
    assert "".join(token["text"] for token in made["tokens"]) == text
    assert set(made["tokens"][0]) == {"id", "text", "logprob", "bits", "rank"}
    assert made["tokens"][0]["logprob"] is None
    assert made["total_bits"] == pytest.approx(len(ids) - 1)
    assert made["bits_per_byte"] == pytest.approx((len(ids) - 1) / len(text.encode()[1:]))
    assert {"perplexity", "device", "dtype", "model"} <= set(made)
    shown = table(Score(tokens), tokenizer).splitlines()
    assert len(shown) == len(ids) + 2 and "bits per byte" in shown[-1]


def test_without_a_tokenizer_the_texts_are_null() -> None:
    made = fields(Score((TokenScore(1, None, None), TokenScore(2, -1.0, 1))), None, RUN)
    assert [token["text"] for token in made["tokens"]] == [None, None]
    assert made["bits_per_byte"] is None
