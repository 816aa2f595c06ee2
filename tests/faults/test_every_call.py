"""Each file-system call of a conversion fails, once and for ever: absent, old or whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.errors import FerryError
from convert import blocks
from tests.factories_models import tiny_model
from tests.faults.conversion import Conversion, files_of
from tests.faults.faulty import Counting, Failing, below_disk


@pytest.fixture
def conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Conversion]:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 24_000)
    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    source = tiny_model(tmp_path / "source", "llama", tie_word_embeddings=True, **small)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    before = files_of(source)
    yield Conversion(source, "--max-shard-size", "20KB")
    assert files_of(source) == before


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_absent_old_or_whole(for_ever: bool, conversion: Conversion, tmp_path: Path) -> None:
    conversion.run(tmp_path / "reference")
    whole = files_of(tmp_path / "reference")
    assert len([name for name in whole if name.startswith("model-")]) == 2
    place = tmp_path / "place"
    out = place / "out"

    def start(old: bool) -> dict[str, bytes]:
        shutil.rmtree(place, ignore_errors=True)
        (out if old else place).mkdir(parents=True)
        if old:
            (out / "config.json").write_bytes(b"old")
        return files_of(out)

    start(old=True)
    with below_disk(counting := Counting()):
        conversion.run(out)
    total, publishing = len(counting.calls), counting.calls.index("rename")
    assert total > 200
    open_files, kept = len(os.listdir("/dev/fd")), 0
    everywhere = [(first, True) for first in range(1, total + 1)]
    for first, old in everywhere + [(first, False) for first in range(publishing, total)]:
        before = start(old)
        try:
            with below_disk(Failing(first, for_ever=for_ever)):
                conversion.run(out)
        except FerryError as error:
            assert "\n" not in str(error)
            kept += "kept" in str(error)
            retired = place / ".out.ferry-old"
            assert files_of(retired if retired.exists() else out) in (before, whole), first
            assert not retired.exists() or files_of(out) in ({}, whole), first
        else:
            assert files_of(out) == whole, first
        assert len(os.listdir("/dev/fd")) == open_files, first
        conversion.run(out)
        assert files_of(out) == whole, first
        assert os.listdir(place) == ["out"], first
    assert kept > total / 3
