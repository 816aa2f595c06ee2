"""The journal: what is read is what was written, whatever became of its end."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from configs.errors import DiskError
from convert import blocks, journal
from convert.blocks import Block, Blocks
from convert.journal import Journal, read_made_of
from convert.plan import Plan, lay_out
from tests.unit.test_blocks import PARAMETERS

MADE_OF = {"source": "abc", "options": "def"}


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Blocks:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 512)
    return Blocks(Plan(PARAMETERS, lay_out(PARAMETERS, 1 << 20), 0))


def every(cut: Blocks) -> list[Block]:
    return [block for parameter in PARAMETERS for block in cut.of(parameter)]


def checksums(block: Block) -> list[int]:
    chance = random.Random(block.number)
    return [chance.getrandbits(32) for _ in block.pieces]


def written(path: Path, cut: Blocks, count: int) -> list[Block]:
    """A journal of some blocks, in no order."""
    chosen = random.Random(1).sample(every(cut), count)
    new = Journal(path, cut)
    new.begin(MADE_OF)
    for block in chosen:
        new.add(block, checksums(block))
    assert new.finished_bytes == sum(block.nbytes for block in chosen)
    new.close()
    new.close()
    return chosen


def resumed(path: Path, cut: Blocks) -> Journal:
    found = Journal(path, cut)
    found.resume()
    return found


def test_what_was_written_is_read(tmp_path: Path, cut: Blocks) -> None:
    path = tmp_path / "journal"
    chosen = written(path, cut, 12)
    assert read_made_of(path) == MADE_OF
    found = resumed(path, cut)
    assert {block.number for block in every(cut) if found.has(block)} == {b.number for b in chosen}
    for block in chosen:
        assert [found.checksum(piece) for piece in block.pieces] == checksums(block)
    more = next(block for block in every(cut) if not found.has(block))
    found.add(more, checksums(more))
    found.forget(chosen[0])
    assert found.has(more) and not found.has(chosen[0])
    found.close()
    again = resumed(path, cut)
    assert again.has(more) and again.has(chosen[0])  # forgotten in one run, not on the disk
    again.close()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_cut_anywhere_it_holds_the_blocks_before(
    tmp_path: Path, cut: Blocks, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_CHUNK", chunk)
    path = tmp_path / "journal"
    chosen = written(path, cut, 5)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for length in range(first, len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n") - 1
        assert (read_made_of(path) == MADE_OF) == (whole > 0)
        found = resumed(path, cut)
        assert [found.has(block) for block in chosen] == [n < whole for n in range(5)]
        found.add(chosen[-1], checksums(chosen[-1]))
        found.close()
        again = resumed(path, cut)
        assert again.has(chosen[-1]) and again.has(chosen[0]) == (whole > 0)
        again.close()


def test_lines_that_are_none_are_passed_over(tmp_path: Path, cut: Blocks) -> None:
    path = tmp_path / "journal"
    written(path, cut, 1)
    with path.open("ab") as file:
        file.write(b"\0\0\0\n0\n0 zz\n0 00000000\n0 1 2 3\n-1 00000000\n\xff\n")
        file.write(b"99999999999 00000000 00000000 00000000\n")
        file.write(b"0 00000001 00000002 00000003 00000004\n0 000000010 00000002 00000003\n")
    before = path.read_bytes()
    found = resumed(path, cut)
    assert sum(found.has(block) for block in every(cut)) == 1
    found.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}\n0 00000000\n",
        b"{\n0 00000000\n",
        b"[]\n0 00000000\n",
        b'{"journal": "2", "source": "abc"}\n0 00000000\n',
        b'{"journal": "1", "source": "abc"}\n',
        b'{"journal": "1", "source": "abc"}\n0 00000000',
        b"\xff\xfe\n0 00000000\n",
        bytes(3000),
    ],
)
def test_journals_of_no_use(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert read_made_of(path) is None
    path.write_bytes(content)
    assert read_made_of(path) is None


def test_a_journal_is_begun_once(tmp_path: Path, cut: Blocks) -> None:
    path = tmp_path / "journal"
    written(path, cut, 1)
    with pytest.raises(DiskError, match="File exists"):
        Journal(path, cut).begin(MADE_OF)
    with pytest.raises(ValueError, match="neither begun nor resumed"):
        Journal(path, cut).add(every(cut)[0], [0, 0, 0])
