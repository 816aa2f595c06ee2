"""The quality of each method beside mlx-lm's, at equal bytes: a Markdown table.

    python benchmarks/quality_table.py --model DIR --text val.txt --calibrate calibration.txt \
        --work FOLDER [--rows rtn search ...] [--bits 2 3 4 8] [--bpw 3.5 4.5]

Every folder, mlx-lm's too, is measured by `convert --quality FOLDER --reference DIR --text
val.txt --json`: mean Kullback-Leibler divergence from the source's logits with its standard
error, agreement on the likeliest token, perplexity and its ratio to the source's. Bytes are
those of the tensors. What calibrates reads the same tokens of one text, 32,768 at most; see
`mlx_lm_quantizers.py`. A row once made stays in the work folder with its folder and figures,
so that the same command goes on where it was stopped; a row that can't be made says why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS = Path(__file__).with_name("mlx_lm_quantizers.py")
OURS = ("rtn", "search", "calibrated")
MIXED = ("search", "calibrated")
CHOICES = (
    *OURS,
    *(f"mixed {method}" for method in MIXED),
    "mlx_lm.convert",
    "mlx_lm.gptq",
    "mlx_lm.awq",
    "mlx_lm.dwq",
    "mlx_lm.dwq, tuned",
    "mlx_lm.dynamic_quant",
)
_TUNED = ["--learning-rate", "2e-5", "--passes", "4"]
_PAIRS = {3.5: ("2", "4"), 4.5: ("3", "5")}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        method: One of `CHOICES`.
        size: `4 bits`, or `4.5 bpw`.
        command: What makes the folder; its last word is the folder.
    """

    method: str
    size: str
    command: list[str]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}-{self.size}".replace(" ", "_").replace(",", "")


def rows_of(chosen: argparse.Namespace) -> list[Row]:
    """All rows asked for, those of one size together."""
    model, text = str(chosen.model), str(chosen.calibrate)
    convert = [sys.executable, "-m", "convert", "--quiet", "-q", "--hf-path", model]
    peer = [sys.executable, str(PEERS)]
    rows = []

    def add(method: str, size: str, command: list[str]) -> None:
        if method in chosen.rows:
            rows.append(Row(method, size, command))

    def ours(method: str) -> list[str]:
        how = ["--method", method]
        return [*how, "--calibrate", text] if method == "calibrated" else how

    for bits in map(str, chosen.bits):
        size = f"{bits} bits"
        for method in OURS:
            add(method, size, [*convert, "--bits", bits, *ours(method), "--mlx-path"])
        theirs = [sys.executable, "-m", "mlx_lm", "convert", "-q", "--q-bits", bits]
        add("mlx_lm.convert", size, [*theirs, "--hf-path", model, "--mlx-path"])
        for method in ("gptq", "awq", "dwq"):
            flags = ["--calibrate", text, "--bits", bits]
            add(f"mlx_lm.{method}", size, [*peer, method, model, *flags])
        add("mlx_lm.dwq, tuned", size, [*peer, "dwq", model, *flags, *_TUNED])
    for bpw in chosen.bpw:
        size = f"{bpw} bpw"
        for method in MIXED:
            flags = ["--target-bpw", str(bpw), *ours(method)]
            add(f"mixed {method}", size, [*convert, *flags, "--mlx-path"])
        if bpw in _PAIRS:
            low, high = _PAIRS[bpw]
            flags = ["--bpw", str(bpw), "--low-bits", low, "--high-bits", high]
            command = [*peer, "dynamic_quant", model, "--calibrate", text, *flags]
            add("mlx_lm.dynamic_quant", size, command)
    return rows


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors in a folder's shards, without their headers."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            (header,) = struct.unpack("<Q", opened.read(8))
        total += file.stat().st_size - 8 - header
    return total


def done(row: Row, chosen: argparse.Namespace, made_of: dict[str, str]) -> dict[str, Any]:
    """A row's figures, from before or found now; `{"error": why}` where it can't be made."""
    kept = chosen.work / f"{row.name}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        if found["made_of"] == made_of and ("error" not in found or not chosen.retry):
            return found
    folder = chosen.work / row.name
    if not (folder / "config.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        staged = folder.with_name(f"{row.name}.part")
        shutil.rmtree(staged, ignore_errors=True)
        command = [*row.command, str(staged)]
        if str(PEERS) in command:  # their folder is a position, before the flags
            command.insert(4, command.pop())
        print(" ".join(command), file=sys.stderr, flush=True)
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            found = {"made_of": made_of, "error": _last(ran.stderr)}
            kept.write_text(json.dumps(found), "utf-8")
            return found
        staged.rename(folder)
    measure = [sys.executable, "-m", "convert", "--quiet", "--json", "--quality", str(folder)]
    measure += ["--reference", str(chosen.model), "--text", str(chosen.text)]
    ran = subprocess.run(measure, capture_output=True, text=True, check=False)
    found = {"made_of": made_of, "error": _last(ran.stderr)}
    if not ran.returncode:
        report = json.loads(ran.stdout)
        found = {"made_of": made_of, "report": report, "bytes": tensor_bytes(folder)}
    kept.write_text(json.dumps(found), "utf-8")
    return found


def _last(messages: str) -> str:
    lines = [line for line in messages.splitlines() if line.strip()]
    return lines[-1] if lines else "failed without a word"


def print_table(found: list[tuple[Row, dict[str, Any]]]) -> None:
    """Print the lines.

    KL is also shown by that of rounding to nearest: at as many bits, and for mixed bits at the
    number that takes as much with its scales and biases, 3 bits for 3.5 to a weight.
    """
    source = next((f["report"]["source_perplexity"] for _, f in found if "report" in f), None)
    if source is not None:
        tokens = next(f["report"]["tokens"] for _, f in found if "report" in f)
        print(f"Source: perplexity {_figure(source)}, on {tokens:,} tokens.\n")
    plain = {
        row.size: each["report"]["written"]["kl_nats"]["mean"]["value"]
        for row, each in found
        if row.method == "rtn" and "report" in each
    }
    print("| size | method | bytes | KL, nats a token | by rtn's | same top | perplexity | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for row, each in found:
        if "error" in each:
            print(f"| {row.size} | {row.method} | not run: {each['error']} | | | | | |")
            continue
        report, ours = each["report"], each["report"]["written"]
        kl = ours["kl_nats"]["mean"]["value"]
        rounded: float | None = report["rtn"]["kl_nats"]["mean"]["value"]
        if row.size.endswith("bpw"):
            bits = float(row.size.removesuffix(" bpw")) - 0.5
            rounded = plain.get(f"{bits:g} bits")
        print(
            f"| {row.size} | {row.method} | {each['bytes']:,} "
            f"| {_figure(ours['kl_nats']['mean'])} "
            f"| {'' if rounded is None else f'{kl / rounded:.3f}'} "
            f"| {100 * ours['top1_agreement']['value']:.2f}% | {ours['perplexity']['value']:.2f} "
            f"| {_figure(ours['perplexity_ratio'])} |"
        )


def _figure(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4g} ± {estimate['standard_error']:.1g}"


def main() -> None:
    """Make, measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--model", "--text", "--calibrate", "--work"):
        arguments.add_argument(name, type=Path, required=True)
    arguments.add_argument("--rows", nargs="+", choices=CHOICES, default=list(CHOICES))
    arguments.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4, 8])
    arguments.add_argument("--bpw", nargs="+", type=float, default=[3.5, 4.5])
    arguments.add_argument("--kept", action="store_true", help="print what was found before")
    arguments.add_argument("--retry", action="store_true", help="try rows again that failed")
    chosen = arguments.parse_args()
    chosen.work.mkdir(exist_ok=True, parents=True)
    made_of = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in (("text", chosen.text), ("calibrate", chosen.calibrate))
    }
    made_of["model"] = str(chosen.model.resolve())
    found = []
    for row in rows_of(chosen):
        if chosen.kept and not (chosen.work / f"{row.name}.json").is_file():
            continue
        found.append((row, done(row, chosen, made_of)))
        print(f"{row.size}, {row.method}: done", file=sys.stderr, flush=True)
    print_table(found)


if __name__ == "__main__":
    main()
