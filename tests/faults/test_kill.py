"""kill -9 at random moments and before chosen calls: absent, old or whole; then completed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories_models import tiny_model
from tests.faults.conversion import files_of

SEED = 20_240_607


class ForkServer:
    """Children that convert one source, some of them killed."""

    def __init__(self, process: subprocess.Popen[str], source: Path) -> None:
        self._process = process
        self._source = source
        self._send({"config": json.loads((source / "config.json").read_text())})

    def convert(
        self, out: Path, bits: int, *, kill_after: float | None = None, kill_at: int | None = None
    ) -> dict[str, Any]:
        places = ["--hf-path", str(self._source), "--mlx-path", str(out)]
        argv = [
            *places,
            "-q",
            "--method",
            "rtn",
            "--bits",
            f"{bits}",
            "--force",
            "--max-shard-size",
            "4MB",
        ]
        self._send({"argv": argv, "kill_after": kill_after, "kill_at": kill_at})
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def _send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)


def server_of(source: Path) -> Iterator[ForkServer]:
    command = [sys.executable, "-m", "tests.faults.fork_server"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield ForkServer(process, source)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    large = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8}
    yield from server_of(tiny_model(tmp_path / "source", "llama", **large))


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[ForkServer]:
    yield from server_of(tiny_model(tmp_path / "source", "llama", num_hidden_layers=1))


def test_fifty_random_moments(server: ForkServer, tmp_path: Path) -> None:
    whole = {}
    for bits in (2, 8):
        started = time.monotonic()
        assert server.convert(tmp_path / "reference", bits)["code"] == 0
        seconds = time.monotonic() - started
        whole[bits] = files_of(tmp_path / "reference")
    chance = random.Random(SEED)
    place = tmp_path / "place"
    place.mkdir()
    out, kills, before, bits = place / "out", 0, {}, 2
    while kills < 50:
        done = server.convert(out, bits, kill_after=chance.uniform(0, seconds))
        kills += done["killed"]
        found = files_of(out)
        if done["killed"]:
            assert found in ({}, before, whole[bits])
            assert found or not before or (place / ".out.ferry-old").exists()
        else:
            assert done["code"] == 0 and found == whole[bits]
        if not done["killed"] or found == whole[bits]:
            before, bits = found, 10 - bits
    assert server.convert(out, bits)["code"] == 0
    assert files_of(out) == whole[bits]
    assert os.listdir(place) == ["out"]


def test_before_every_call_of_the_last_steps(small_server: ForkServer, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    out = place / "out"
    whole = {}
    for bits in (8, 2):
        assert small_server.convert(out, bits)["code"] == 0
        whole[bits] = files_of(out)
    calls = small_server.convert(out, 2)["calls"]
    last_steps = calls.index("rename") - 20
    for number in (*range(1, last_steps, 23), *range(last_steps, len(calls) + 1)):
        assert small_server.convert(out, 8)["code"] == 0
        assert small_server.convert(out, 2, kill_at=number) == {"killed": True}
        retired = place / ".out.ferry-old"
        assert files_of(retired if retired.exists() else out) in (whole[8], whole[2])
        assert not retired.exists() or files_of(out) in ({}, whole[2])
        assert small_server.convert(out, 2)["code"] == 0
        assert files_of(out) == whole[2]
        assert os.listdir(place) == ["out"]
