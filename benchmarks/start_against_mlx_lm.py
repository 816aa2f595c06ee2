"""Times the way from process start to the first token, beside `mlx_lm.generate`.

    python benchmarks/start_against_mlx_lm.py --repeats 7

The model is the demo model at 4 bits, made by `convert`; or give --model. Both commands
answer the same prompt greedily, in turn; the clock stops at the first byte of the answer
on a pipe. Prints medians, and the median of the pairwise ratios, by the clock and in CPU
seconds of the whole process, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "What do 4 bits cost?"


def demo(folder: Path) -> Path:
    """The demo model at 4 bits."""
    flags = ["--config", "demo", "--quantize", "--bits", "4", "--quiet"]
    subprocess.run([sys.executable, "-m", "convert", *flags, "--mlx-path", str(folder)], check=True)
    return folder


def first_byte(command: list[str]) -> tuple[float, float]:
    """Seconds until a command says something, and CPU seconds until it ends."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if process.stdout is None or not process.stdout.read(1):
            raise SystemExit(f"{command} said nothing")
        seconds = time.perf_counter() - began
        process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return seconds, used.ru_utime + used.ru_stime


def measure(model: Path, repeats: int) -> None:
    """Run both in turn and print."""
    asked = ["--model", str(model), "--prompt", PROMPT, "--max-tokens", "1"]
    ours = [sys.executable, "-m", "inference", *asked, "--temperature", "0", "--stream"]
    theirs = [sys.executable, "-m", "mlx_lm", "generate", *asked, "--temp", "0"]
    found: dict[str, list[tuple[float, float]]] = {"infer": [], "mlx_lm.generate": []}
    for repeat in range(repeats + 1):  # the first fills the disk cache
        for name, command in (("infer", ours), ("mlx_lm.generate", theirs)):
            taken = first_byte(command)
            if repeat:
                found[name].append(taken)
    for name, runs in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name:>16}: first token after {wall:.2f} s, {cpu:.2f} CPU seconds in all")
    pairs = list(zip(found["infer"], found["mlx_lm.generate"], strict=True))
    for what, column in (("the time to the first token", 0), ("the CPU seconds", 1)):
        ratio = statistics.median(mine[column] / other[column] for mine, other in pairs)
        print(f"infer takes {ratio:.2f} of {what}")


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, help="an MLX folder")
    arguments.add_argument("--repeats", type=int, default=7)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(chosen.model or demo(Path(folder) / "demo"), chosen.repeats)


if __name__ == "__main__":
    main()
