"""A batch killed with SIGKILL five times ends as the one that nobody touched.

All but `cached_tokens` is the same: how much rows share depends on which run side by side.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from inference.cli import main
from tests.factories_inference import write_mlx

ROWS = 200
KILLED_AFTER = (3, 40, 77, 110, 141)  # rows that are written
HEADER = "You are a careful judge of short texts, and you answer in one word. "


def write_rows(path: Path) -> Path:
    """Uneven prompts, greedy and drawn, some of several answers; most begin alike."""
    chance = random.Random(7)
    words = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
    rows = []
    for index in range(ROWS):
        text = " ".join(chance.choices(words, k=chance.randrange(1, 12)))
        row: dict[str, object] = {"id": f"row {index}", "prompt": text}
        if index % 3:
            row["system"] = HEADER
        if index % 4 == 0:
            row |= {"temperature": 0.9, "seed": index}
        if index % 10 == 9:
            row |= {"n": 2, "temperature": 0.7, "seed": 5, "top_p": 0.9}
        if index % 50 == 21:
            row["prompt"] = ""  # an error in its place
        row["max_tokens"] = chance.randrange(2, 24)
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def answers(path: Path) -> list[dict[str, Any]]:
    """The whole lines, without what was shared."""
    records = [json.loads(line) for line in path.read_bytes().splitlines(True) if b"\n" in line]
    for record in records:
        record.get("usage", {}).pop("cached_tokens", None)
    return records


def killed_after(command: list[str], out: Path, rows: int) -> None:
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while written(out) < rows:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL


def test_five_kills(tmp_path: Path) -> None:
    model = write_mlx(tmp_path / "model", "gemma3_text")  # full and sliding caches
    source = write_rows(tmp_path / "in.jsonl")

    def asked(out: Path) -> list[str]:
        flags = ["--model", str(model), "--batch", str(source), "--output", str(out)]
        return [*flags, "--temperature", "0", "--batch-size", "6", "--quiet"]

    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert main(asked(whole)) == 1  # for the rows that are errors
    records = answers(whole)
    kept = 0
    for rows in KILLED_AFTER:
        killed_after([sys.executable, "-m", "inference", *asked(out)], out, rows)
        assert kept < written(out) < ROWS
        kept = written(out)
        assert answers(out) == records[:kept]
    assert main(asked(out)) == 1
    assert answers(out) == records
    assert [record["index"] for record in records] == list(range(ROWS))
    assert sum("error" in record for record in records) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "model",
        "out.jsonl",
        "whole.jsonl",
    ]
