"""A plan and a receipt as a person reads them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from convert.plan import Parameter, Plan


def plan_table(plan: Plan) -> str:
    """One line a parameter, then the totals."""
    rows = [("parameter", "shape", "becomes", "bytes")]
    rows += [
        (p.name, "x".join(map(str, p.shape)), _becomes(p), f"{p.nbytes:,}") for p in plan.parameters
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    size = max(len(row[3]) for row in rows)
    lines = [
        "  ".join(
            [*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3].rjust(size)]
        )
        for row in rows
    ]
    return "\n".join([*lines, "", *_totals(plan)])


def _totals(plan: Plan) -> list[str]:
    return [
        *([*plan.mixture.lines(), ""] if plan.mixture else ()),
        f"weights:             {plan.weights:,}",
        f"bits per weight:     {plan.bits_per_weight:.3f} (embeddings, scales and biases included)",
        f"output:              {plan.file_bytes:,} bytes in {len(plan.shards)} file(s)",
        f"disk needed:         {gigabytes(plan.disk_bytes)}",
        f"peak memory at most: {gigabytes(plan.expected_peak_bytes)}",
    ]


def _becomes(parameter: Parameter) -> str:
    if parameter.quantization is None:
        kept = f" (not quantized: {parameter.note})" if parameter.note else ""
        return f"{parameter.dtype}{kept}"
    q = parameter.quantization
    return f"{q.bits} bits, groups of {q.group_size}, {q.mode}"


def summary(receipt: dict[str, Any], path: Path) -> str:
    """What was done, on one line."""
    return (
        f"{receipt['parameters']:,} weights at {receipt['bits_per_weight']:.2f} bits each,"
        f" {gigabytes(receipt['tensor_bytes'])}, verified, in {receipt['seconds']:.1f} s"
        f" with {receipt['peak_memory_bytes'] / 1e6:.0f} MB of memory;"
        f" run it: infer --model {shlex.quote(str(path))} --prompt 'Hello'"
    )


def gigabytes(count: int) -> str:
    """Bytes in GB, or in MB when there are few."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
