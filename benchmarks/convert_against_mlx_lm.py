"""Times `convert` beside `mlx_lm.convert` on one source, in turn, as whole processes.

    python benchmarks/make_checkpoint.py 0.5b /tmp/qwen2-1gb
    python benchmarks/convert_against_mlx_lm.py /tmp/qwen2-1gb --repeats 3

Prints each figure's median and the median of the pairwise ratios.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of a command, its children apart."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    messages = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{messages.decode()}")
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return time.perf_counter() - started, usage.ru_maxrss / unit


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("source", type=Path)
    arguments.add_argument("--bits", default="4")
    arguments.add_argument("--repeats", type=int, default=3)
    chosen = arguments.parse_args()
    source = ["--hf-path", str(chosen.source), "-q"]
    commands = {
        "convert": [
            sys.executable,
            "-m",
            "convert",
            *source,
            "--bits",
            chosen.bits,
            "--method",
            "rtn",
        ],
        "mlx_lm.convert": [
            sys.executable,
            "-m",
            "mlx_lm",
            "convert",
            *source,
            "--q-bits",
            chosen.bits,
        ],
    }
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(chosen.repeats):
        for name, command in commands.items():
            folder = Path(tempfile.mkdtemp(dir=chosen.source.parent))
            figures[name].append(measure([*command, "--mlx-path", str(folder / "out")]))
            shutil.rmtree(folder)
    for column, unit in enumerate(("wall s", "peak MB")):
        ours, theirs = ([run[column] for run in figures[name]] for name in commands)
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        print(
            f"{unit:8} convert {statistics.median(ours):8.1f}"
            f"   mlx_lm.convert {statistics.median(theirs):8.1f}"
            f"   ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
