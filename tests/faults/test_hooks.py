"""What others may hang into a conversion: a supply of source files, and a proof."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from checkpoint.source import SourceFolder
from configs.errors import HubError, VerifyError
from convert import blocks
from convert.plan import Parameter
from convert.schedule import Turn, schedule
from tests.faults.conversion import Conversion, files_of
from tests.faults.faulty import Recording, below_disk


@pytest.fixture
def conversion(llama: Path, monkeypatch: pytest.MonkeyPatch) -> Conversion:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20_000)
    made = Conversion(llama, "--max-shard-size", "50KB")
    source = SourceFolder(llama, "hub", "some/model", "0" * 40)
    made.prepared = dataclasses.replace(made.prepared, source=source)
    return made


class OneByOne:
    """Source shards that are in the folder only while they are needed."""

    def __init__(self, conversion: Conversion, away: Path, calls: Recording) -> None:
        recipes = conversion.prepared.model_map.recipes
        self._needs = {
            name: [ref.file for ref in recipe.sources()] for name, recipe in recipes.items()
        }
        self._away = away
        self._calls = calls
        self.files = sorted({file for files in self._needs.values() for file in files})
        self.order: list[str] = []
        self.fetched: list[str] = []

    def turns(self, left: Sequence[Parameter]) -> Sequence[Turn]:
        self.order = [parameter.name for parameter in reversed(left)]
        needs = {name: self._needs[name] for name in self.order}
        return schedule(needs, dict.fromkeys(self.files, 1)).turns

    def fetch(self, files: Sequence[Path]) -> None:
        for file in files:
            (self._away / file.name).rename(file)
            self.fetched.append(file.name)

    def release(self, files: Sequence[Path]) -> None:
        for file in files:
            assert 0 <= self._calls.last("open", file) < self._calls.last("close", file)
            file.rename(self._away / file.name)


def test_source_shards_may_come_and_go(conversion: Conversion, tmp_path: Path) -> None:
    conversion.run(tmp_path / "reference")
    calls = Recording()
    supply = OneByOne(conversion, tmp_path / "away", calls)
    (tmp_path / "away").mkdir()
    for file in supply.files:
        file.rename(tmp_path / "away" / file.name)
    with below_disk(calls):
        conversion.run(tmp_path / "out", supply=supply)
    assert sorted(supply.fetched) == [file.name for file in supply.files]
    assert not any(file.exists() for file in supply.files)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


def test_another_order_is_gone_on_with(conversion: Conversion, tmp_path: Path) -> None:
    """What is finished is neither asked for again nor are files fetched for it."""
    conversion.run(tmp_path / "reference")

    class Offline(OneByOne):
        def fetch(self, files: Sequence[Path]) -> None:
            if self.fetched:
                raise HubError("the hub", "can't be reached")
            self.fetched += [file.name for file in files]

        def release(self, files: Sequence[Path]) -> None:
            pass

    with pytest.raises(HubError, match="MB is kept: the same command goes on from there"):
        offline = Offline(conversion, tmp_path / "away", Recording())
        conversion.run(tmp_path / "out", supply=offline)
    first = Offline(conversion, tmp_path / "away", Recording())
    first.fetched.append("once")
    with pytest.raises(HubError):
        conversion.run(tmp_path / "out", supply=first)
    assert len(first.order) < len(offline.order) == len(conversion.prepared.plan.parameters)
    told: list[str] = []
    conversion.run(tmp_path / "out", note=told.append)
    assert len(told) == 1 and told[0].startswith("resuming: ")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


def test_a_proof_goes_into_the_receipt(conversion: Conversion, tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def prove(folder: Path) -> dict[str, Any]:
        seen.append(set(files_of(folder)))
        return {"kl": 0.25}

    receipt = conversion.run(tmp_path / "out", prove=prove)
    written = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert receipt["proof"] == written["proof"] == {"kl": 0.25}
    assert seen[0] == set(files_of(tmp_path / "out")) - {"README.md", "conversion.json"}
    assert "proof" not in conversion.run(tmp_path / "other", prove=lambda folder: None)


def test_what_fails_its_proof_is_not_published(conversion: Conversion, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise VerifyError(folder, "answers otherwise than its source", "choose more bits")

    with pytest.raises(VerifyError, match=r"; choose more bits; 0\.2 MB of 0\.2 MB is kept"):
        conversion.run(tmp_path / "out", prove=fail)
    assert not (tmp_path / "out").exists()
    told: list[str] = []
    conversion.run(tmp_path / "out", note=told.append)
    assert told == ["resuming: 0.2 MB of 0.2 MB kept"]


def test_ctrl_c_in_the_proof_keeps_everything(conversion: Conversion, tmp_path: Path) -> None:
    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        conversion.run(tmp_path / "out", prove=stop)
    assert caught.value.__notes__[0].startswith("0.2 MB of 0.2 MB is kept: ")
