"""The text that quality is measured on: windows, and what it may not overlap."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import SourceError, UsageError
from convert.quality.texts import (
    SAMPLE,
    Text,
    check_disjoint,
    cut,
    fingerprint,
    read_text,
    shared,
)


class Letters:
    """A tokenizer of code points."""

    def __init__(self, begin: int | None = None) -> None:
        self._begin = begin

    def encode_plain(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_text(self, text: str) -> list[int]:
        return ([] if self._begin is None else [self._begin]) + self.encode_plain(text)


def rows(text: str, begin: int | None = None, **how: int) -> list[tuple[str, str]]:
    windows = cut(Letters(begin), text, **how)
    assert windows.tokens == sum(windows.lengths)
    return [
        ("".join(map(chr, row[:length])), "".join(map(chr, targets[:length])))
        for row, targets, length in zip(
            windows.ids.tolist(), windows.targets.tolist(), windows.lengths, strict=True
        )
    ]


def test_every_token_is_asked_for_once() -> None:
    assert rows("abcdefgh", window=3, most=9) == [("abc", "bcd"), ("def", "efg"), ("g", "h")]
    assert rows("abcdefg", window=3, most=9) == [("abc", "bcd"), ("def", "efg")]
    assert rows("abcdefgh", window=3, most=1) == [("abc", "bcd")]
    assert cut(Letters(), "abcd", window=99).ids.shape == (1, 3)
    assert cut(Letters(), "").tokens == 0


def test_every_window_begins_as_the_tokenizer_begins_a_text() -> None:
    assert rows("abcdef", ord("^"), window=3, most=9) == [
        ("^ab", "abc"),
        ("^cd", "cde"),
        ("^e", "ef"),
    ]


SENTENCES = "".join(
    f"Sentence number {n} says that {n * n} is the square of {n}.\n" for n in range(900)
)
OTHER = "".join(
    f"In line {n} one finds {n * 7 + 3}, and nothing else at all.\n" for n in range(900)
)


def test_a_fingerprint_tells_how_much_of_a_text_is_there() -> None:
    recorded = fingerprint(SENTENCES)
    assert set(recorded) == {"sha256", "characters", "sketch"} and len(recorded["sketch"]) == 256
    assert shared(recorded, SENTENCES) == pytest.approx(1, abs=0.01)
    assert shared(recorded, "".join(SENTENCES.split("\n")[100:500])) > 0.5
    assert shared(recorded, OTHER[:20_000] + SENTENCES[10_000:30_000]) > 0.2
    assert shared(recorded, OTHER) == 0
    assert shared(recorded, "") == 0


@pytest.mark.parametrize("calibration", [SENTENCES, fingerprint(SENTENCES)], ids=["text", "hashes"])
def test_a_text_that_was_calibrated_on_is_refused(calibration: object) -> None:
    def text(content: str) -> Text:
        return Text("t.txt", content, "")

    check_disjoint([calibration], text(OTHER), "--text")  # type: ignore[list-item]
    mixed = text(OTHER[:20_000] + SENTENCES[:20_000].replace("\n", "\n\n  "))
    with pytest.raises(UsageError, match=r"\d\d% of t\.txt is in the text") as refusal:
        check_disjoint([calibration], mixed, "--text")  # type: ignore[list-item]
    assert refusal.value.where == "--text"


def test_the_sample_ships_and_holds_what_it_should(tmp_path: Path) -> None:
    text = read_text(None, "--text")
    assert text.name == "sample" and 6_000 < SAMPLE.stat().st_size < 9_000
    assert all(part in text.content for part in ("def ", "User:", "Assistant:", "量化", "SELECT"))
    broken = tmp_path / "latin1.txt"
    broken.write_bytes("Überraschung".encode("latin-1"))
    with pytest.raises(SourceError, match="not UTF-8"):
        read_text(broken, "--text")
