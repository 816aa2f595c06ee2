"""Kills conversions of one source with SIGKILL at random points and times what is left to do.

    python benchmarks/make_checkpoint.py 1.5b /tmp/qwen2-3gb
    python benchmarks/kill_and_resume.py /tmp/qwen2-3gb

First an uninterrupted run. Then one that is killed twenty times in a row, each time gone
on with by the same command; its folder is compared byte for byte with the first one's.
Then single kills: the time that the same command takes to finish, and starting over in turn.
"""

from __future__ import annotations

import argparse
import filecmp
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Runs:
    """Conversions of one source into folders beside each other."""

    def __init__(self, source: Path, bits: str, folder: Path) -> None:
        self._command = [sys.executable, "-m", "convert", "--hf-path", str(source), "-q"]
        self._command += ["--bits", bits, "--quiet"]
        self._folder = folder

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """Set a conversion going."""
        command = [*self._command, "--mlx-path", str(out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def finish(self, out: Path) -> tuple[float, int]:
        """Seconds that a conversion takes to its end, and the most blocks its journal had."""
        started, blocks = time.perf_counter(), 0
        process = self.start(out)
        while process.poll() is None:
            blocks = max(blocks, finished_blocks(out))
            time.sleep(0.01)
        if process.returncode:
            raise SystemExit(f"the conversion failed: {process.returncode}")
        return time.perf_counter() - started, blocks

    def kill_at(self, out: Path, blocks: int) -> None:
        """Kill a conversion once so many blocks are finished."""
        process = self.start(out)
        while finished_blocks(out) < blocks:
            if process.poll() is not None:
                raise SystemExit("the conversion ended before it could be killed")
            time.sleep(0.001)
        process.kill()
        process.wait()


def finished_blocks(out: Path) -> int:
    """How many blocks the journal of an unfinished conversion names."""
    try:
        return (out.parent / f".{out.name}.ferry-staging" / "journal").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


def differing(one: Path, other: Path) -> list[str]:
    """Files that are not in both folders with the same bytes."""
    names = {str(p.relative_to(root)) for root in (one, other) for p in root.rglob("*")}
    files = [name for name in sorted(names) if not ((one / name).is_dir())]
    _, wrong, missing = filecmp.cmpfiles(one, other, files, shallow=False)
    return wrong + missing


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("source", type=Path)
    arguments.add_argument("--bits", default="4")
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--single-kills", type=int, default=5)
    arguments.add_argument("--seed", type=int, default=1)
    chosen = arguments.parse_args()
    chance = random.Random(chosen.seed)
    folder = Path(tempfile.mkdtemp(dir=chosen.source.parent))
    runs = Runs(chosen.source, chosen.bits, folder)
    try:
        whole, blocks = runs.finish(folder / "whole")
        print(f"uninterrupted: {whole:.1f} s, {blocks} blocks")
        for point in sorted(chance.randrange(1, blocks) for _ in range(chosen.kills)):
            runs.kill_at(folder / "killed", point)
        seconds, _ = runs.finish(folder / "killed")
        wrong = differing(folder / "whole", folder / "killed")
        print(
            f"killed {chosen.kills} times: {', '.join(wrong) or 'not a byte'} differs", flush=True
        )
        print(f"  the last run: {seconds:.1f} s")
        for _ in range(chosen.single_kills):
            out = folder / "single"
            point = chance.randrange(1, blocks)
            runs.kill_at(out, point)
            seconds, _ = runs.finish(out)
            wrong = differing(folder / "whole", out)
            shutil.rmtree(out)
            over, _ = runs.finish(out)
            shutil.rmtree(out)
            print(
                f"killed once at {point / blocks:4.0%}: finished in {seconds:.1f} s,"
                f" starting over {over:.1f} s; {', '.join(wrong) or 'not a byte'} differs",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
