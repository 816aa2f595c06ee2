from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.reader import TextReader
from inference.stops import StopMatcher


def expected(text: str, stops: tuple[str, ...]) -> str:
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@pytest.mark.parametrize(
    ("chunks", "stops", "shown"),
    [
        (["ab", "cd"], (), "abcd"),
        (["one END two"], ("END",), "one "),
        (["one E", "N", "D two"], ("END",), "one "),
        (["one E", "N", "x"], ("END",), "one ENx"),
        (["EN", "EN", "D"], ("END",), "EN"),
        (["END"], ("END",), ""),
        (["aab", "aac"], ("aabaac",), ""),
        (["xabab", "abc"], ("ababc",), "xab"),
        (["a\n", "\nb"], ("\n\n", "b"), "a"),
        (["ab", "c"], ("abc", "b"), "a"),
        (["abc"], ("abc", "b"), "a"),
        (["abc"], ("bc", "c"), "a"),
        (["half EN"], ("END",), "half EN"),
        (["你", "好世", "界"], ("好世界",), "你"),
    ],
)
def test_stops(chunks: list[str], stops: tuple[str, ...], shown: str) -> None:
    matcher = StopMatcher(stops)
    assert "".join(map(matcher.push, chunks)) + matcher.flush() == shown
    assert matcher.stopped == (expected("".join(chunks), stops) != "".join(chunks))


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_whatever_the_cuts_the_text_ends_before_the_first_stop(
    chunks: list[str], stops: tuple[str, ...]
) -> None:
    matcher = StopMatcher(stops)
    whole = expected("".join(chunks), stops)
    shown = ""
    for chunk in chunks:
        shown += matcher.push(chunk)
        assert whole.startswith(shown)
    assert shown + matcher.flush() == whole


def test_nothing_comes_after_a_stop() -> None:
    matcher = StopMatcher(("X",))
    assert [matcher.push(text) for text in ("aX", "b", "c")] == ["a", "", ""]
    assert matcher.flush() == ""


def test_a_reader_matches_stops_across_tokens_of_several_bytes() -> None:
    text = "ein Häuschen".encode()
    reader = TextReader(lambda ids: bytes(ids).decode("utf-8", "replace"), ("äus",))
    shown = "".join(reader.push(byte) for byte in text)
    assert reader.stopped and shown + reader.flush() == "ein H"
