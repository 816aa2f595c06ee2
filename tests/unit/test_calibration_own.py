"""What a model wrote is read again where it is whole, and written anew where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoint.recognise import Choices
from checkpoint.source import SourceFolder
from convert.calibration import own
from convert.calibration.beginnings import Beginnings
from convert.calibration.own import OwnText, written
from convert.calibration.text import CalibrationText
from inference.device import Placement
from inference.tokenizer import load_tokenizer
from tests.factories_models import write_tokenizer

IDS = [[5, 6, 7], [8, 9, 2]]


@pytest.fixture
def wrote(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes of each time that the model writes."""
    found: list[str] = []

    def write(*given: object) -> list[list[int]]:
        found.append("written")
        return IDS

    monkeypatch.setattr(own, "_write", write)
    return found


def text_of(folder: Path, kept: Path | None) -> CalibrationText:
    write_tokenizer(folder)
    begun = Beginnings((), 2, (), (), frozenset({2}), "it takes no questions")
    tokenizer, place = load_tokenizer(folder, {}), Placement("cpu", None)
    planned = OwnText((2, 3), None, 0, 0, begun, tokenizer, place)
    source = SourceFolder(folder, "local", None, None)
    return written(planned, source, Choices(), {}, kept, lambda line: None)


def test_it_is_kept(tmp_path: Path, wrote: list[str]) -> None:
    first = text_of(tmp_path, tmp_path / "state")
    assert first.ids.tolist() == IDS
    assert text_of(tmp_path, tmp_path / "state").recorded == first.recorded
    assert len(wrote) == 1
    text_of(tmp_path, None)
    assert len(wrote) == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"[1, 2]",
        b"[[5, 6, 7]]",
        b"[[5, 6, 7], [8, 9]]",
        b"[[5, 6, 7], [8, 9, -1]]",
        b"[[5, 6, 7], [8, 9, true]]",
        b'[[5, 6, 7], "abc"]',
        b"[[5, 6, 7], [8, 9, 1e3]]",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_what_is_damaged_is_not(tmp_path: Path, wrote: list[str], damage: bytes) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "self.json").write_bytes(damage)
    assert text_of(tmp_path, folder).ids.tolist() == IDS
    assert len(wrote) == 1
    assert json.loads((folder / "self.json").read_bytes()) == IDS
