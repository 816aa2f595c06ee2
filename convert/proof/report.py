"""What a proof found: a table for a person, plain data for a receipt.

Owns the verdict, given the errors and what is allowed. Computes none of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from convert.proof.tensors import TensorCheck

_SHOWN = 8
_NOISE = 1e-5
"""Errors below are the order of float32 sums, which another number of threads changes: a receipt,
the same from run to run, says this much instead."""


@dataclass(frozen=True)
class Stage:
    """One step of the model, held against the same step of transformers.

    Attributes:
        name: `embeddings`, `layer 0` and so on, `norm and head`.
        structure: Error with the source's own weights, in float32.
        structure_allowed: The most that it may be.
        rounded: Error with the source's weights rounded to nearest, in the forms written.
        written: Error with the weights as they were written.
        written_allowed: The most that it may be.
    """

    name: str
    structure: float
    structure_allowed: float
    rounded: float
    written: float
    written_allowed: float

    @property
    def structure_ok(self) -> bool:
        """Whether mlx-lm computes what transformers does; not so for NaN."""
        return self.structure <= self.structure_allowed

    @property
    def written_ok(self) -> bool:
        """Whether the written weights do what their bits allow; not so for NaN."""
        return self.written <= self.written_allowed


@dataclass(frozen=True)
class Proof:
    """The result of a proof; see the module `prove`.

    Attributes:
        reference: What was compared with, such as `LlamaForCausalLM of transformers 5.23.0`.
        form: What was written, such as `4 bits, groups of 64, affine`.
        tokens: How many tokens of text were run.
        rows: Every stage, in the model's order.
        tensors: Every parameter.
        logits: Error of the logits, from the token ids on, with the source's own weights.
        divergence: Kullback-Leibler divergence of the written model from the reference, in
            nats a token, from the token ids on.
        agreement: Share of tokens with the same most probable next one.
        unproven: What such a proof says nothing of.
        seconds: Wall time.
        peak_memory_bytes: Largest resident memory of this process.
        reference_peak_memory_bytes: The same of the process that ran transformers.
    """

    reference: str
    form: str
    tokens: int
    rows: tuple[Stage, ...]
    tensors: tuple[TensorCheck, ...]
    logits: float
    divergence: float
    agreement: float
    unproven: tuple[str, ...]
    seconds: float
    peak_memory_bytes: int
    reference_peak_memory_bytes: int

    @property
    def ok(self) -> bool:
        """Whether every stage and every parameter is within what is allowed."""
        return not any(self.faults())

    def faults(self) -> Iterator[str]:
        """What is wrong, a line each."""
        for row in self.rows:
            if not row.structure_ok:
                yield (
                    f"{row.name}: with the source's own weights it is off by "
                    f"{_exactly(row.structure)}, more than {_exactly(row.structure_allowed)}: "
                    "mlx-lm computes something else"
                )
            elif not row.written_ok:
                yield (
                    f"{row.name}: as written it is off by {_exactly(row.written)}, more than "
                    f"{_exactly(row.written_allowed)}, which {self.form} allows"
                )
        for tensor in self.tensors:
            if tensor.fault:
                yield f"{tensor.name}: {tensor.fault}"

    @property
    def verdict(self) -> str:
        """One line."""
        found = list(self.faults())
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            return f"not proven: {found[0]}{more}"
        return (
            f"proven: on {self.tokens} tokens it computes what {self.reference} does, within "
            f"{_share(max(_NOISE, *(row.structure for row in self.rows)))} before rounding to "
            f"{self.form}"
        )

    def as_json(self) -> dict[str, Any]:
        """For a receipt: figures by name, and a short object for each stage.

        Nothing in it differs from run to run: errors have two digits, and are 1e-5 at least.
        """
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "reference": self.reference,
            "form": self.form,
            "tokens": self.tokens,
            "structure_error": _error(max(row.structure for row in self.rows)),
            "written_error": _error(max(row.written for row in self.rows)),
            "logits_error": _error(self.logits),
            "kl_nats": _error(self.divergence),
            "top1_agreement": _rounded(self.agreement),
            "tensors": len(self.tensors),
            "faults": list(self.faults()),
            "unproven": list(self.unproven),
            "stages": [
                {
                    "name": row.name,
                    "structure": _error(row.structure),
                    "structure_allowed": _rounded(row.structure_allowed),
                    "rounded": _error(row.rounded),
                    "written": _error(row.written),
                    "written_allowed": _rounded(row.written_allowed),
                }
                for row in self.rows
            ],
        }

    def text(self) -> str:
        """The table, what is wrong, what is not proven, and the verdict."""
        head = ("stage", "structure", "allowed", "as written", "rounding", "allowed", "")
        table = [head, *(self._cells(row) for row in self.rows)]
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            ).rstrip()
            for row in table
        ]
        found = list(self.faults())
        lines += [f"fault: {line}" for line in found[:_SHOWN]]
        lines += [f"fault: {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        lines.append(
            f"from the token ids on: logits {_share(self.logits)} off before rounding; as written "
            f"KL {self.divergence:.2g} nats a token, the same most probable token for "
            f"{self.agreement:.0%}"
        )
        lines.append(f"{len(self.tensors):,} weights held against the source's, row by row")
        lines.append(
            f"took {self.seconds:.1f} s, {self.peak_memory_bytes / 1e6:,.0f} MB here and "
            f"{self.reference_peak_memory_bytes / 1e6:,.0f} MB for transformers"
        )
        lines += [f"not covered: {line}" for line in self.unproven]
        return "\n".join([*lines, self.verdict])

    @staticmethod
    def _cells(row: Stage) -> tuple[str, ...]:
        errors = (
            row.structure,
            row.structure_allowed,
            row.written,
            row.rounded,
            row.written_allowed,
        )
        verdict = "ok" if row.structure_ok and row.written_ok else "WRONG"
        return (row.name, *map(_share, errors), verdict)


def _share(error: float) -> str:
    """An error relative to what it is of."""
    return f"{error:.1e}"


def _exactly(error: float) -> str:
    """The same with one digit more, to be told from what is allowed."""
    return f"{error:.2e}"


def _error(value: float) -> float | None:
    """An error for a receipt."""
    return _rounded(value if math.isnan(value) else max(_NOISE, value))


def _rounded(value: float) -> float | None:
    """Two digits; null for what JSON has no number for."""
    return float(f"{value:.2g}") if math.isfinite(value) else None
