"""Scores by windows, and the coloured text in a terminal and on a page."""

from __future__ import annotations

import io
import math
from html.parser import HTMLParser
from pathlib import Path

import mlx.core as mx
import pytest
from rich.console import Console

from inference.heatmap import LEVELS, grouped, level, terminal_map
from inference.report import texts
from inference.score import Score, TokenScore, score
from inference.score_page import page
from inference.statistics import Run
from inference.tokenizer import Tokenizer
from tests.factories_inference import tiny_config, tiny_network
from tests.factories_models import VOCABULARY
from tests.unit.test_inference_detokenize import byte_level

IDS = [(7 * n * n + 3 * n) % VOCABULARY for n in range(50)]
RUN = Run("<b>folder</b>", "cpu", "float32", 0.1, 1000)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mamba"])
@pytest.mark.parametrize("length", [2, 3, 17, 49, 50])
def test_a_prefix_scores_as_the_whole_text_does(kind: str, length: int) -> None:
    model = tiny_network(tiny_config(kind))
    whole = score(model, IDS, vocabulary=VOCABULARY).tokens
    prefix = score(model, IDS[:length], vocabulary=VOCABULARY).tokens
    for one, other in zip(prefix[1:], whole[1:], strict=False):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert one.rank == other.rank


@pytest.mark.parametrize(("window", "stride"), [(10, 3), (10, 9), (16, None), (2, 1), (49, 7)])
def test_each_window_sees_its_own_past_alone(window: int, stride: int | None) -> None:
    model = tiny_network(tiny_config("llama"))
    found = score(model, IDS, vocabulary=VOCABULARY, window=window, stride=stride)
    step = window // 2 if stride is None else stride
    assert (found.window, found.stride) == (window, step)
    assert [token.id for token in found.tokens] == IDS
    done = 1
    while done < len(IDS):
        end = min(window if done == 1 else done + step, len(IDS))
        begin = max(0, end - window)
        logits = model(mx.array([IDS[begin:end]]))[0].astype(mx.float32)
        expected = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for position in range(done, end):
            value = expected[position - begin - 1, IDS[position]].item()
            assert found.tokens[position].logprob == pytest.approx(value, abs=1e-4)
        done = end


def test_a_text_within_the_window_is_read_whole() -> None:
    model = tiny_network(tiny_config("llama"))
    found = score(model, IDS, vocabulary=VOCABULARY, window=50, stride=10)
    assert found == score(model, IDS, vocabulary=VOCABULARY) and found.window is None


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.shown = ""
        self.titles: list[str] = []
        self._in_text = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_text = self._in_text or tag == "pre"
        if self._in_text and tag == "i":
            self.titles.append(dict(attrs)["title"] or "")

    def handle_endtag(self, tag: str) -> None:
        self._in_text = self._in_text and tag != "pre"

    def handle_data(self, data: str) -> None:
        self.shown += data if self._in_text else ""


def scored(text: str) -> tuple[Score, list[str]]:
    backend = byte_level()
    tokenizer = Tokenizer(backend, {}, frozenset(), Path("tokenizer.json"))
    ids = backend.encode(text).ids
    tokens = (TokenScore(ids[0], None, None), *(TokenScore(i, -math.log(8), 5) for i in ids[1:]))
    found = Score(tokens)
    pieces = texts(found, tokenizer)
    assert pieces is not None
    return found, pieces


def test_the_page_shows_the_text_and_runs_nothing() -> None:
    text = "the <script>alert('x')</script> & \"𝄞\" the\n the"
    found, pieces = scored(text)
    shown = Page(page(found, grouped(found, pieces), RUN, 1.25))
    assert shown.shown == text
    assert "script" not in shown.tags and "b" not in shown.tags
    assert shown.titles[0] == "nothing precedes it"
    assert shown.titles[1].startswith("3.00 bits, rank 5, token ")
    # The four bytes of the clef are one coloured character with the figures of four tokens.
    assert sum(title.count("rank 5") == 4 for title in shown.titles) == 1


def test_the_terminal_shows_the_text_and_no_control_character() -> None:
    found, pieces = scored("the \x1b[2J the 𝄞")
    stream = io.StringIO()
    Console(file=stream, color_system=None, width=200).print(terminal_map(grouped(found, pieces)))
    assert stream.getvalue().startswith("the \\x1b[2J the 𝄞")
    assert "15+" in stream.getvalue()


def test_shades() -> None:
    assert [level(bits) for bits in (0.0, 0.4, 1.2, 14.6, 99.0)] == [0, 0, 1, 15, LEVELS - 1]
