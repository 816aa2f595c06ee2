"""What rows of a model's own text begin with, and how they go on until they are full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import KVCache

from configs.errors import GenerationError
from convert.calibration import beginnings as module
from convert.calibration.beginnings import Beginnings, beginnings
from convert.calibration.writer import write
from inference.template import ChatTemplate, find_template
from inference.tokenizer import load_tokenizer
from tests.factories_models import VOCABULARY, write_tokenizer

END, MARK = 2, 1


class Counter(nn.Module):
    """Says what comes after a token: the next number, or what it is told to."""

    def __init__(self, after: dict[int, int], fault: float = 0.0) -> None:
        super().__init__()
        self._after = mx.array([after.get(n, (n + 1) % 20) for n in range(20)])
        self._fault = fault
        self.layers = [None]

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        kept = ids[:, None, :, None].astype(mx.float32)
        cache[0].update_and_fetch(kept, kept)
        chosen = self._after[ids.astype(mx.int32)]
        return mx.where(mx.arange(20) == chosen[..., None], 1e4, 0.0) + self._fault

    def make_cache(self) -> list[KVCache]:
        return [KVCache()]


def rows_of(model: Counter, begun: Beginnings, shape: tuple[int, int]) -> list[list[int]]:
    return write(
        model, begun, shape, budget_bytes=None, attention_heads=None, note=lambda line: None
    )


def begun(**changes: Any) -> Beginnings:
    given: dict[str, Any] = {"first": (), "between": None, "ordinary": (3, 7, 11), "chats": ()}
    return Beginnings(**(given | {"ends": frozenset({END})} | changes))


def test_a_row_goes_on_after_the_end_of_a_text() -> None:
    rows = rows_of(Counter({5: END}), begun(first=(3,)), (2, 8))
    assert rows == [[3, 4, 5, END, 3, 4, 5, END]] * 2


def test_the_token_between_texts_is_not_a_row_s_own() -> None:
    rows = rows_of(Counter({END: 4, 5: END}), begun(between=END), (1, 7))
    assert rows == [[4, 5, END, 4, 5, END, 4]]


def test_questions_stand_in_every_other_row() -> None:
    asked = begun(first=(3,), chats=((MARK, 9), (MARK, 12, 13)))
    rows = rows_of(Counter({5: END, 10: END, 15: END}), asked, (4, 6))
    assert rows[0] == rows[2] == [3, 4, 5, END, 3, 4]
    assert rows[1] == [MARK, 9, 10, END, MARK, 12]
    assert rows[3] == [MARK, 12, 13, 14, 15, END]


def test_without_any_such_token_a_row_begins_with_any_other() -> None:
    rows = rows_of(Counter({}), begun(), (30, 4))
    assert {row[0] for row in rows} == {3, 7, 11}
    assert rows == rows_of(Counter({}), begun(), (30, 4))


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(GenerationError, match="NaN"):
        rows_of(Counter({}, mx.nan), begun(first=(3,)), (2, 8))


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(GenerationError, match="memory"):
        write(
            Counter({}),
            begun(first=(3,)),
            (2, 8),
            budget_bytes=1,
            attention_heads=None,
            note=lambda line: None,
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def test_a_folder_s_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROMPTS", ("fox", "fox " * 200, "jumps"))
    tokenizer = load_tokenizer(folder, {"eos_token_id": END})
    found = beginnings(tokenizer, find_template(folder), VOCABULARY, 128)
    assert (found.first, found.between, found.ordinary) == ((), END, ())
    assert len(found.chats) == 2  # the long one would leave no room for an answer
    assert all(chat[0] == MARK for chat in found.chats)
    assert (found.hidden(0), found.hidden(1)) == (1, 0)
    plain = beginnings(tokenizer, None, VOCABULARY, 128)
    assert (plain.chats, plain.refused, plain.hidden(1)) == ((), "", 1)


def test_a_template_that_refuses_is_told_of(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, {"eos_token_id": END})
    template = ChatTemplate("{{ raise_exception('no questions') }}", "template")
    found = beginnings(tokenizer, template, VOCABULARY, 128)
    assert found.chats == ()
    assert "no questions" in found.refused


def test_a_template_that_tells_the_day_says_the_same_on_every_day(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, {"eos_token_id": END})
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", "template")
    found = beginnings(tokenizer, template, VOCABULARY, 128)
    assert {tokenizer.decode(chat) for chat in found.chats} == {"15 Jan 2025"}


def test_a_mark_that_the_model_has_no_row_for_is_told_of(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, {"eos_token_id": 0})
    backend = tokenizer._backend
    backend.add_special_tokens(["<|late|>"])
    tokenizer.check_rows(VOCABULARY)
    found = beginnings(tokenizer, ChatTemplate("<|late|>", "template"), VOCABULARY, 128)
    assert found.chats == ()
    assert "<|late|>" in found.refused
