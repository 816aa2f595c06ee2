"""Many requests at once give what each gives alone, on every kind of cache."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from configs.errors import GenerationError
from inference.budget import measure
from inference.cache import SequenceCache
from inference.decoding import Together
from inference.engine import Engine
from inference.events import Delta, Event, Failed, Finished, Started, Token
from inference.prefill import Prefill
from inference.reader import TextReader
from inference.request import GenerationOptions, SamplingOptions, TokenRequest
from inference.selfcheck import batching_of
from tests.factories_inference import IdReader, tiny_config, tiny_network
from tests.factories_models import VOCABULARY

GREEDY = SamplingOptions(temperature=0.0)
FALCON_H1 = {
    "model_type": "falcon_h1",
    "attention_bias": False,
    "attention_in_multiplier": 1.0,
    "attention_out_multiplier": 1.0,
    "attn_layer_indices": None,
    "embedding_multiplier": 1.0,
    "key_multiplier": 1.0,
    "lm_head_multiplier": 1.0,
    "mamba_chunk_size": 16,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 4,
    "mamba_norm_before_gate": False,
    "mamba_proj_bias": False,
    "mamba_rms_norm": False,
    "mamba_use_mlp": True,
    "mlp_bias": False,
    "mlp_expansion_factor": 8,
    "mlp_multipliers": [1.0, 1.0],
    "projectors_bias": False,
    "rope_traditional": False,
    "ssm_in_multiplier": 1.0,
    "ssm_multipliers": [1.0] * 5,
    "ssm_out_multiplier": 1.0,
    "time_step_floor": 0.0001,
    "time_step_limit": [0.0, 1e6],
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "tie_word_embeddings": False,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 16,
    "num_hidden_layers": 4,
    "rope_scaling": None,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
KINDS = [
    "llama",
    "gemma2",
    "gemma3_text",
    "qwen3_moe",
    "gpt2",
    "mamba",
    "mamba2",
    "falcon_h1",
    "gpt_oss",
]


def network(kind: str) -> nn.Module:
    own = {"falcon_h1": FALCON_H1, "gpt_oss": GPT_OSS}
    return tiny_network({**tiny_config("llama"), **own[kind]} if kind in own else tiny_config(kind))


def engine(model: nn.Module, **options: Any) -> Engine:
    return Engine(model, lambda _: IdReader(), **options)


def request(name: str, prompt: Iterable[int], max_tokens: int = 12, **options: Any) -> TokenRequest:
    sampling = options.pop("sampling", GREEDY)
    stop_ids = frozenset(options.pop("stop_ids", ()))
    given = GenerationOptions(sampling, max_tokens, **options)
    return TokenRequest(name, tuple(prompt), given, stop_ids)


def answers(events: Iterable[Event]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, Delta):
            found.setdefault(event.request, []).extend(map(int, event.text.split()))
    return found


def ids(count: int, seed: int = 0) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(3, VOCABULARY) for _ in range(count)]


def uneven() -> list[TokenRequest]:
    """Prompts of 1 to 70 tokens, short and long answers, greedy and drawn."""
    ways = [
        GREEDY,
        SamplingOptions(seed=5),
        SamplingOptions(seed=6, repetition_penalty=1.3, top_k=9, temperature=0.9),
        SamplingOptions(seed=5, frequency_penalty=0.5, top_p=0.8),
    ]
    sizes = [(1, 9), (40, 30), (3, 4), (70, 20), (17, 40), (2, 1), (25, 25), (1, 30), (33, 2)]
    return [
        request(str(index), ids(size, index), length, sampling=ways[index % len(ways)])
        for index, (size, length) in enumerate(sizes)
    ]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str) -> nn.Module:
    return network(kind)


@pytest.fixture(scope="module")
def alone(model: nn.Module) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in uneven():
        found |= answers(engine(model).run([one]))
    return found


@pytest.mark.parametrize("rows", [2, 4, 16])
def test_a_batch_gives_what_single_runs_give(
    model: nn.Module, alone: dict[str, list[int]], rows: int
) -> None:
    batch = engine(model, max_rows=rows)
    assert answers(batch.run(uneven())) == alone
    done = batch.throughput
    assert done.one_by_one is None and done.most_rows == min(rows, len(alone))
    assert done.passes < done.answer_tokens == sum(map(len, alone.values()))


def test_answers_differ(alone: dict[str, list[int]]) -> None:
    """Without this the tests above could pass on models that depend on nothing."""
    assert len({tuple(said[:2]) for said in alone.values()}) > len(alone) // 2


def test_rows_that_join_late_and_stop_early(model: nn.Module, alone: dict[str, list[int]]) -> None:
    batch = engine(model, max_rows=8)
    late = uneven()
    batch.submit(late.pop())
    events: list[Event] = []
    for number in range(300):
        events += batch.step()
        if number % 3 == 0 and late:
            batch.submit(late.pop())
    assert answers(events) == alone


@pytest.mark.parametrize("rows", [1, 3])
def test_a_shared_beginning_is_read_once(model: nn.Module, rows: int) -> None:
    header, header2 = ids(50, 1), ids(45, 2)
    asked = [
        request("a", header + ids(5, 3)),
        request("b", header2 + ids(9, 4)),
        request("c", header + ids(8, 5)),
        request("d", header + ids(1, 6)),
        request("e", header2 + ids(30, 7)),
        request("f", header + ids(8, 5), sampling=SamplingOptions(seed=1)),
        request("g", ids(60, 9)),
        request("h", header),
    ]
    found = {r.id: answers(engine(model).run([r]))[r.id] for r in asked}
    batch = engine(model, max_rows=rows)
    events = list(batch.run(asked))
    assert answers(events) == found
    cached = {e.request: e.usage.cached_tokens for e in events if isinstance(e, Finished)}
    assert cached == {"a": 0, "b": 0, "c": 49, "d": 49, "e": 45, "f": 49, "g": 0, "h": 49}
    assert batch.throughput.cached_tokens == 4 * 49 + 45
    assert not batch._prefill.prefixes.lengths


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("stops", [True, False])
def test_a_kept_cache_goes_on(model: nn.Module, rows: int, stops: bool) -> None:
    """As a chat does: the next prompt is the last one, its answer, and more."""
    first = [request(name, ids(30 + 9 * n, n), 6 + n) for n, name in enumerate("abc")]
    said = answers(engine(model).run(first))
    if stops:
        first = [
            request(r.id, r.prompt, r.options.max_tokens, stop_ids=said[r.id][-2:-1]) for r in first
        ]
    batch = engine(model, max_rows=rows)
    for one in first:
        batch.submit(one, keep=True)
    said = answers(batch.run())
    for one in first:
        held = batch.take_cache(one.id)
        assert held is not None and batch.take_cache(one.id) is None
        assert held.tokens[: len(one.prompt)] == one.prompt
        assert len(held.tokens) == held.cache.length >= len(one.prompt) + len(said[one.id]) - 1
        again = request("again", [*held.tokens, *ids(7, 9)], 8)
        other = engine(model, max_rows=rows)
        other.submit(again, held)
        events = list(other.run([request("beside", ids(12, 3))]))
        assert answers(events)["again"] == answers(engine(model).run([again]))["again"]
        usage = next(e.usage for e in events if isinstance(e, Finished) and e.request == "again")
        assert usage.cached_tokens == len(held.tokens)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_kept_cache_goes_back(model: nn.Module, rows: int) -> None:
    """To what the next prompt begins with, where the architecture allows it."""
    batch = engine(model, max_rows=rows)
    batch.submit(request("a", ids(40), 5), keep=True)
    list(batch.run())
    held = batch.take_cache("a")
    assert held is not None
    can = all(layer.is_trimmable() for layer in held.cache.layers)
    again = request("again", ids(40)[:25], 8)
    batch.submit(again, held)
    events = list(batch.run())
    assert answers(events) == answers(engine(model).run([again]))
    assert [e.usage.cached_tokens for e in events if isinstance(e, Finished)] == [24 if can else 0]


def test_budget_holds_what_the_caches_take(model: nn.Module) -> None:
    """The measure is of at least what a cache that has read so much takes."""
    cost = measure(model)
    for length in (1, 40, 300):
        cache = SequenceCache(model)
        model(mx.array([ids(length)]), cache=cache.layers)
        cache.advance(length)
        cache.evaluate()
        taken = sum(layer.nbytes for layer in cache.layers)
        assert taken <= cost.reading(length) and cost.decoding(length) <= cost.reading(length)
        assert cost.decoding(length) < 3 * taken + 2**16


def test_every_option_means_the_same_in_a_batch(model: nn.Module) -> None:
    """Stop strings and tokens, fewest tokens, biases, penalties, several answers."""
    free = answers(engine(model).run([request("a", ids(20), 30)]))["a"]
    warm = SamplingOptions(seed=3, temperature=1.2, xtc_probability=0.5, xtc_threshold=0.05)
    biased = SamplingOptions(seed=4, min_p=0.05, logit_bias=((9, 4.0), (11, -100.0)))
    present = SamplingOptions(temperature=0.0, presence_penalty=1.5, repetition_penalty=1.2)
    asked = [
        request("a", ids(20), 30, stop=(f" {free[7]} {free[8]} ", f"{free[20]}")),
        request("b", ids(20), 30, stop_ids=free[2:4], min_tokens=9),
        request("c", ids(33, 1), 25, sampling=warm, logprobs=2),
        request("d", ids(5, 2), 18, sampling=biased, stop_ids=free[5:6]),
        request("e", ids(61, 3), 22, sampling=present),
        *request("f", ids(44, 4), 14, sampling=warm, n=3).answers(),
    ]

    def texts(events: Iterable[Event]) -> dict[str, tuple[str, str, int]]:
        said: dict[str, str] = {}
        ends: dict[str, tuple[str, int]] = {}
        for event in events:
            if isinstance(event, Delta):
                said[event.request] = said.get(event.request, "") + event.text
            elif isinstance(event, Finished):
                ends[event.request] = (event.reason, event.usage.completion_tokens)
        return {name: (said.get(name, ""), *end) for name, end in ends.items()}

    def made(rows: int) -> Engine:
        def reader(request: TokenRequest) -> TextReader:
            options = request.options
            return TextReader(spelled, options.stop, options.min_tokens)

        return Engine(model, reader, max_rows=rows)

    single: dict[str, tuple[str, str, int]] = {}
    for one in asked:
        single |= texts(made(1).run([one]))
    assert single["a"][1] == "stop" and single["a"][2] < 30
    assert single["b"][2] >= 9 and len({single[f"f{n}"][0] for n in ("", ".1", ".2")}) == 3
    for rows in (3, 8):
        assert texts(made(rows).run(asked)) == single


def spelled(tokens: Sequence[int]) -> str:
    return "".join(f"{token} " for token in tokens)


# What follows does not depend on the kind of cache.


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return network("llama")


def test_memory_limits_the_rows(llama: nn.Module) -> None:
    asked = [request(str(n), ids(20, n), 10) for n in range(6)]
    free = answers(engine(llama).run(asked))
    cost = measure(llama)
    for rows in (1, 2, 4):
        # Each slot has room for 256 tokens, and one prompt is read outside of the batch.
        batch = engine(llama, max_rows=6, budget_bytes=(rows + 1) * cost.decoding(30))
        assert answers(batch.run(asked)) == free
        assert batch.throughput.most_rows == rows


def test_a_long_row_makes_all_slots_long(llama: nn.Module) -> None:
    cost = measure(llama)
    asked = [request(str(n), ids(20, n), 10) for n in range(3)] + [request("long", ids(20), 500)]
    batch = engine(llama, max_rows=4, budget_bytes=5 * cost.decoding(30))
    list(batch.run(asked))
    assert batch.throughput.most_rows == 3


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_the_batch_never_takes_more_than_the_budget(kind: str) -> None:
    """Short rows, then a long one, then short ones again: no slot or width is left over."""
    model = network(kind)
    cost = measure(model)
    limit = 4 * cost.decoding(900)
    sizes = [(20, 10)] * 9 + [(600, 300)] + [(20, 200)] * 2 + [(20, 12)] * 9
    asked = [request(str(n), ids(size, n), length) for n, (size, length) in enumerate(sizes)]
    batch = engine(model, max_rows=9, budget_bytes=limit)
    for one in asked:
        batch.submit(one)
    taken, most, over = [], 0, 0
    while over < len(asked):
        over += sum(isinstance(event, Finished) for event in batch.step())
        decoder = batch._decoder
        assert isinstance(decoder, Together)
        held = [array for layer in decoder._batch._layers for array in layer.arrays()]
        taken.append(sum(array.nbytes for array in held))
        most = max(most, batch.throughput.rows)
    assert max(taken) <= limit and most == 9
    assert max(taken) > 2 * cost.decoding(900)


def test_a_request_that_can_never_fit_fails_in_its_place(llama: nn.Module) -> None:
    cost = measure(llama)
    limit = 5 * cost.decoding(30)
    batch = engine(llama, max_rows=4, budget_bytes=limit)
    asked = [
        request("a", ids(20), 10),
        request("b", ids(20), 2000),
        request("c", ids(20), 10),
    ]
    events = list(batch.run(asked))
    failed = [event for event in events if isinstance(event, Failed)]
    assert [event.request for event in failed] == ["b"]
    assert isinstance(failed[0].error, GenerationError)
    assert f"{limit:,}" in str(failed[0].error) and "max_tokens" in str(failed[0].error)
    assert sorted(answers(events)) == ["a", "c"]


def test_beginnings_count_and_give_way(llama: nn.Module) -> None:
    """Where memory is short no beginning is kept, and nothing is refused for one."""
    header = ids(60, 1)
    asked = [request(str(n), header + ids(9, n), 10) for n in range(4)]
    free = answers(engine(llama).run(asked))
    cost = measure(llama)
    tight = engine(llama, max_rows=2, budget_bytes=2 * cost.decoding(80))
    assert answers(tight.run(asked)) == free and tight.throughput.cached_tokens == 0
    roomy = engine(llama, max_rows=2, budget_bytes=4 * cost.decoding(80))
    assert answers(roomy.run(asked)) == free and roomy.throughput.cached_tokens == 3 * 60


def test_cancel(llama: nn.Module) -> None:
    asked = [request(str(n), ids(20 + n, n), 30) for n in range(4)]
    free = answers(engine(llama).run(asked))
    batch = engine(llama, max_rows=3)
    events: list[Event] = []
    for event in batch.run(asked):
        events.append(event)
        if isinstance(event, Delta) and event.request == "1" and len(answers(events)["1"]) == 5:
            batch.cancel("1")
            batch.cancel("3")
            batch.cancel("nobody")
    said = answers(events)
    assert said["0"] == free["0"] and said["2"] == free["2"]
    assert said["1"] == free["1"][: len(said["1"])] and 5 <= len(said["1"]) <= 7
    ends = {
        e.request: (e.reason, e.usage.completion_tokens) for e in events if isinstance(e, Finished)
    }
    assert ends["1"] == ("cancelled", len(said["1"])) and ends["3"][0] == "cancelled"
    assert next(type(e) for e in events if e.request == "3") is Started


def test_closing_the_stream_lets_go_of_all(llama: nn.Module) -> None:
    batch = engine(llama, max_rows=3)
    stream = batch.run(request(str(n), ids(20, n), 30) for n in range(9))
    for _ in range(6):
        next(stream)
    assert isinstance(stream, Iterator)
    stream.close()  # type: ignore[attr-defined]
    free = answers(engine(llama).run([request("z", ids(8), 5)]))
    assert answers(batch.run([request("z", ids(8), 5)])) == free


def test_requests_are_taken_as_there_is_room(llama: nn.Module) -> None:
    taken = 0

    def asked() -> Iterator[TokenRequest]:
        nonlocal taken
        for number in range(400):
            taken += 1
            yield request(str(number), ids(3, number), 2)

    stream = engine(llama, max_rows=4).run(asked())
    next(stream)
    assert taken < 300
    assert len([event for event in stream if isinstance(event, Finished)]) == 400


def test_logprobs_in_a_batch(llama: nn.Module) -> None:
    asked = [request(str(n), ids(9 + n, n), 6, logprobs=n or None) for n in range(4)]

    def tokens(events: Iterable[Event]) -> dict[str, list[Token]]:
        found: dict[str, list[Token]] = {}
        for event in events:
            if isinstance(event, Token):
                found.setdefault(event.request, []).append(event)
        return found

    single = tokens(engine(llama).run(asked))
    batch = tokens(engine(llama, max_rows=4).run(asked))
    assert sorted(batch) == ["1", "2", "3"]
    for name, found in single.items():
        assert [t.id for t in found] == [t.id for t in batch[name]]
        assert [t.logprob for t in batch[name]] == pytest.approx([t.logprob for t in found])
        assert all(len(t.top) == int(name) for t in batch[name])


class BadRow(nn.Module):
    """A model whose logits are bad after one token."""

    def __init__(self, inner: nn.Module, token: int, bad: float) -> None:
        super().__init__()
        self.inner, self.token, self.bad = inner, token, bad

    @property
    def layers(self) -> Any:
        return self.inner.layers

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        logits = self.inner(tokens, cache=cache)
        return mx.where((tokens == self.token)[..., None], self.bad, logits)


@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), float("inf")])
def test_bad_logits_end_one_row(llama: nn.Module, bad: float) -> None:
    asked = [request(str(n), ids(9 + n, n), 20) for n in range(4)]
    free = answers(engine(llama).run(asked))
    others = {t for r in asked for t in (*r.prompt, *(free[r.id] if r.id != "2" else ()))}
    token = next(t for t in free["2"][3:] if t not in others and t > 30)
    place = free["2"].index(token) + 1
    events = list(engine(BadRow(llama, token, bad), max_rows=4).run(asked))
    said = answers(events)
    ends = {event.request: event for event in events if isinstance(event, Finished)}
    assert said == {**free, "2": free["2"][:place]}
    assert [ends[name].reason for name in "0123"] == ["length", "length", "error", "length"]
    assert f"at token {place + 1}" in str(ends["2"].error)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "falcon_h1", "gpt_oss"])
def test_nan_in_a_cache_stays_in_its_row(kind: str) -> None:
    """The rows that come after it in its slot see nothing of it."""
    model = network(kind)
    asked = uneven()
    free = answers(engine(model).run(asked))
    seen = {token for one in asked for token in (*one.prompt, *free[one.id], *ids(60))}
    poison = next(token for token in range(3, VOCABULARY) if token not in seen)
    embedding = model.model.embed_tokens
    embedding.weight = mx.where(
        (mx.arange(VOCABULARY) == poison)[:, None], mx.nan, embedding.weight
    )
    assert "lm_head" in model  # it is not tied, so only the cache of a row can be bad
    bad = [request(f"bad{n}", [*ids(60 - n, n), poison, 5], 4) for n in range(3)]
    events = list(engine(model, max_rows=3).run([*bad, *asked]))
    ends = {event.request: event.reason for event in events if isinstance(event, Finished)}
    assert {ends.pop(one.id) for one in bad} == {"error"}
    assert set(ends.values()) == {"length"} and answers(events) == free


def test_an_error_ends_one_row(llama: nn.Module) -> None:
    asked = [request(str(n), ids(9 + n, n), 20) for n in range(4)]
    free = answers(engine(llama).run(asked))

    class Refusing(IdReader):
        def push(self, token: int) -> str:
            raise GenerationError("reader", "can't go on")

    batch = Engine(llama, lambda r: Refusing() if r.id == "1" else IdReader(), max_rows=4)
    events = list(batch.run(asked))
    assert [type(e) for e in events if e.request == "1"] == [Started, Failed]
    assert answers(events) == {name: said for name, said in free.items() if name != "1"}


def test_long_prompts_are_read_between_tokens(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.engine._BETWEEN_TOKENS", 16)
    read: list[int] = []
    plain = Prefill.read

    def noted(self: Prefill, row: Any, most: int) -> int:
        read.append(plain(self, row, most))
        return read[-1]

    monkeypatch.setattr(Prefill, "read", noted)
    batch = engine(llama, max_rows=2)
    batch.submit(request("a", ids(5), 40))
    events = batch.step() + batch.step()
    batch.submit(request("b", ids(200, 1), 5))
    steps = 0
    while batch.throughput.rows == 1 or not any(e.request == "b" for e in events):
        events += batch.step()
        steps += 1
    before = len(answers(events)["a"])
    while len(read) < 14:
        events += batch.step()
    assert max(read[1:]) == 16
    # every piece was followed by a token of the answer under way
    assert len(answers(events)["a"]) - before >= 12


class ReadsOneOffset(nn.Module):
    """An architecture that takes the first row's offset for all."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def layers(self) -> Any:
        return self.inner.layers

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        for layer in cache or ():
            if isinstance(layer.offset, mx.array):
                layer.offset = mx.broadcast_to(layer.offset[:1], layer.offset.shape)
        return self.inner(tokens, cache=cache)


class ReadsNoMask(ReadsOneOffset):
    """An architecture that looks at padding."""

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        for layer in cache or ():
            if isinstance(layer.offset, mx.array):
                layer.make_mask = lambda *_, **__: None
        return self.inner(tokens, cache=cache)


class ReadsAnInteger(ReadsOneOffset):
    """An architecture that wants one integer."""

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        if cache is not None:
            int(cache[0].offset)
        return self.inner(tokens, cache=cache)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (ReadsOneOffset, "computes otherwise"),
        (ReadsNoMask, "computes otherwise"),
        (ReadsAnInteger, "can't read a batch"),
    ],
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_what_can_not_be_batched_is_decoded_one_by_one(
    broken: type[ReadsOneOffset], why: str, dtype: mx.Dtype
) -> None:
    inner = network("llama")
    inner.set_dtype(dtype)
    assert batching_of(inner).refused is None
    model = broken(inner)
    batch = engine(model, max_rows=4)
    assert answers(batch.run(uneven())) == answers(engine(inner).run(uneven()))
    assert why in str(batch.throughput.one_by_one)
    assert batch.throughput.passes == batch.throughput.answer_tokens


def test_quantized_caches_are_decoded_one_by_one(llama: nn.Module) -> None:
    batch = engine(llama, max_rows=4, kv_bits=8)
    found = answers(batch.run(uneven()))
    assert found == answers(engine(llama, kv_bits=8).run(uneven()))
    assert "quantized" in str(batch.throughput.one_by_one)


def test_a_batch_of_a_grouped_mask() -> None:
    """Gemma 2 keeps the heads that share keys on an axis of their own."""
    assert batching_of(network("gemma2")).mask_axes == 3
    assert batching_of(network("llama")).mask_axes == 2
