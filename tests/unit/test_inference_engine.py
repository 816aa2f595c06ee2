from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from configs.errors import GenerationError, UsageError
from inference import prefill as prefill_module
from inference.cache import KvForm, SequenceCache, check_kv_bits
from inference.engine import Engine
from inference.events import Delta, Event, Failed, Finished, Started
from inference.prefill import prefill_tokens
from inference.request import GenerationOptions, SamplingOptions, TokenRequest
from tests.factories_inference import KINDS, IdReader, tiny_config, tiny_network
from tests.factories_models import VOCABULARY

GREEDY = SamplingOptions(temperature=0.0)
PROMPT = tuple((7 * n * n + 3 * n) % VOCABULARY for n in range(40))


def request(
    name: str = "a",
    prompt: Iterable[int] = PROMPT,
    sampling: SamplingOptions = GREEDY,
    max_tokens: int = 24,
    stop_ids: Iterable[int] = (),
) -> TokenRequest:
    options = GenerationOptions(sampling, max_tokens)
    return TokenRequest(name, tuple(prompt), options, frozenset(stop_ids))


def answers(events: Iterable[Event]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, Delta):
            found.setdefault(event.request, []).extend(map(int, event.text.split()))
    return found


def run(model: nn.Module, *requests: TokenRequest, **options: Any) -> list[Event]:
    return list(Engine(model, lambda _: IdReader(), **options).run(requests))


def stock_greedy(model: nn.Module, prompt: tuple[int, ...], count: int) -> list[int]:
    from mlx_lm.generate import generate_step

    return [token for token, _ in generate_step(mx.array(prompt), model, max_tokens=count)]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_mlx_lm(kind: str) -> None:
    model = tiny_network(tiny_config(kind))
    ours = answers(run(model, request(max_tokens=60)))["a"]
    assert ours == stock_greedy(model, PROMPT, 60)
    assert len(set(ours)) > 2


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_network(tiny_config("gemma3_text"))
    whole = answers(run(model, request()))
    monkeypatch.setattr(prefill_module, "PIECE_TOKENS", 7)
    assert answers(run(model, request())) == whole


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mamba"])
def test_requests_do_not_change_each_other(kind: str) -> None:
    model = tiny_network(tiny_config(kind))
    requests = [
        request("a", PROMPT, GREEDY, 20),
        request("b", PROMPT[:1], SamplingOptions(seed=5), 9),
        request("c", PROMPT[5:30], SamplingOptions(seed=6, repetition_penalty=1.3, top_k=9), 15),
        request("d", PROMPT[3:20], SamplingOptions(seed=5), 30),
    ]
    alone = {r.id: answers(run(model, r))[r.id] for r in requests}
    for rows in (1, 3):
        assert answers(run(model, *requests, max_rows=rows)) == alone


def test_events_of_a_request_come_in_order() -> None:
    model = tiny_network(tiny_config("llama"))
    events = run(model, request("a"), request("b", max_tokens=3), max_rows=2)
    for name in "ab":
        mine = [event for event in events if event.request == name]
        assert isinstance(mine[0], Started) and isinstance(mine[-1], Finished)
        assert all(isinstance(event, Delta) for event in mine[1:-1])
    assert [e.request for e in events if isinstance(e, Finished)] == ["b", "a"]


def test_length_and_counts() -> None:
    model = tiny_network(tiny_config("llama"))
    *_, last = run(model, request(max_tokens=5))
    assert isinstance(last, Finished) and last.reason == "length" and last.error is None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(PROMPT), 5)
    assert last.timings.first_token_seconds is not None
    assert last.timings.decode_tokens_per_second is not None


def test_one_token_has_no_decode_speed() -> None:
    *_, last = run(tiny_network(tiny_config("llama")), request(max_tokens=1))
    assert isinstance(last, Finished) and last.timings.decode_tokens_per_second is None


def test_a_stop_token_ends_the_answer_and_is_not_shown() -> None:
    model = tiny_network(tiny_config("llama"))
    free = answers(run(model, request()))["a"]
    stop = free[10]
    events = run(model, request(stop_ids=[stop]))
    end = free.index(stop)
    assert answers(events).get("a", []) == free[:end]
    last = events[-1]
    assert isinstance(last, Finished) and last.reason == "stop"
    assert last.usage.completion_tokens == end + 1


def test_a_reader_that_stops_ends_the_answer() -> None:
    model = tiny_network(tiny_config("llama"))
    free = answers(run(model, request()))["a"]
    stop = free[10]
    events = list(Engine(model, lambda _: IdReader(stop)).run([request()]))
    last = events[-1]
    assert answers(events).get("a", []) == free[: free.index(stop)]
    assert isinstance(last, Finished) and last.reason == "stop"


class BrokenAfter(nn.Module):
    """A model whose logits become bad at one step."""

    def __init__(self, inner: nn.Module, step: int, bad: float) -> None:
        super().__init__()
        self.inner, self.left, self.bad = inner, step, bad

    @property
    def layers(self) -> Any:
        return self.inner.layers

    def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
        logits = self.inner(ids, cache=cache)
        self.left -= ids.shape[1] == 1
        return mx.full(logits.shape, self.bad) if self.left < 0 else logits


@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), float("inf")])
def test_bad_logits_end_the_request_and_keep_its_text(bad: float) -> None:
    inner = tiny_network(tiny_config("llama"))
    free = answers(run(inner, request()))["a"]
    events = run(BrokenAfter(inner, 4, bad), request())
    last = events[-1]
    assert answers(events)["a"] == free[:4]
    assert isinstance(last, Finished) and last.reason == "error"
    assert "at token 5" in str(last.error)
    assert last.usage.completion_tokens == 4


def test_other_requests_go_on_after_bad_logits() -> None:
    inner = tiny_network(tiny_config("llama"))
    model = BrokenAfter(inner, 2, float("nan"))
    events: list[Event] = []
    engine = Engine(model, lambda _: IdReader())
    for event in engine.run([request("a"), request("b")]):
        events.append(event)
        if isinstance(event, Finished) and event.request == "a":
            model.left = 1000
    ends = {event.request: event.reason for event in events if isinstance(event, Finished)}
    assert ends == {"a": "error", "b": "length"}


def test_an_error_ends_its_request_alone() -> None:
    model = tiny_network(tiny_config("llama"))
    free = answers(run(model, request("b")))

    class Refusing(IdReader):
        def push(self, token: int) -> str:
            raise GenerationError("reader", "can't go on")

    engine = Engine(model, lambda r: Refusing() if r.id == "a" else IdReader(), max_rows=2)
    events = list(engine.run([request("a"), request("b")]))
    assert [type(event) for event in events if event.request == "a"] == [Started, Failed]
    assert answers(events) == free


@pytest.mark.parametrize("bits", [4, 8])
def test_kv_bits_quantizes_the_layers_that_allow_it(bits: int) -> None:
    model = tiny_network(tiny_config("gemma3_text"))
    cache = SequenceCache(model, KvForm(bits))
    kinds = [type(layer).__name__ for layer in cache.layers]
    for _ in range(2):
        mx.eval(model(mx.array([PROMPT]), cache=cache.layers))
        cache.compress()
    after = [type(layer).__name__ for layer in cache.layers]
    changed = ["QuantizedKVCache" if kind == "KVCache" else kind for kind in kinds]
    assert after == changed != kinds
    assert {c.bits for c in cache.layers if hasattr(c, "bits")} == {bits}


def logits_of(model: nn.Module, form: KvForm, pieces: Iterable[int]) -> mx.array:
    cache, read = SequenceCache(model, form), 0
    logits = mx.zeros(1)
    for count in pieces:
        logits = model(mx.array([PROMPT[read : read + count]]), cache=cache.layers)[0, -1]
        cache.advance(count)
        read += count
    return logits


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_cache_is_the_same_however_a_prompt_is_cut(bits: int) -> None:
    model = tiny_network(tiny_config("llama"))
    assert check_kv_bits(model, bits) == {}
    form = KvForm(bits)
    plain, found = (logits_of(model, f, [1, 39]) for f in (KvForm(), form))
    off = mx.max(mx.abs(plain - found)).item() / (mx.max(plain) - mx.min(plain)).item()
    assert 0 < off < (0.03 if bits == 8 else 0.6)
    for pieces in ([1] * 40, [1, 20, 19]):
        assert mx.allclose(logits_of(model, form, pieces), found, atol=1e-4)


def test_a_cache_is_quantized_once_it_holds_so_many_tokens() -> None:
    model = tiny_network(tiny_config("llama"))
    plain = answers(run(model, request(max_tokens=30)))["a"]
    for start in (50, 69, 70, 1000):  # the prompt has 40
        later = answers(run(model, request(max_tokens=30), kv_bits=4, kv_start=start))["a"]
        assert later[: start - 40] == plain[: start - 40]
        assert (later == plain) == (start >= 69)
    cache = SequenceCache(model, KvForm(8, 3))
    for length in range(1, 6):
        model(mx.array([[length]]), cache=cache.layers)
        assert cache.changes_at == (3 if length <= 3 else None)
        cache.advance(1)
        assert {type(layer).__name__ for layer in cache.layers} == {
            "QuantizedKVCache" if length >= 3 else "KVCache"
        }


def test_a_model_without_a_cache_to_quantize_is_refused() -> None:
    with pytest.raises(UsageError, match="kv_bits"):
        check_kv_bits(tiny_network(tiny_config("mamba")), 8)


@pytest.mark.parametrize(
    ("read", "heads", "expected"),
    [(0, None, 2048), (0, 8, 2048), (100_000, None, 2048), (100_000, 32, 32), (10**7, 64, 16)],
)
def test_pieces_shrink_where_attention_keeps_its_scores(
    read: int, heads: int | None, expected: int
) -> None:
    assert prefill_tokens(read, heads) == expected
