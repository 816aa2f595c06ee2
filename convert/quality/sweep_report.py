"""What a sweep found: size against loss, and which quantizations no other beats.

Owns the words, the table and the verdicts. Computes no figures; knows nothing of how they came
about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convert.quality.report import aligned, is_strange, strange
from convert.show import gigabytes


@dataclass(frozen=True)
class Result:
    """One quantization, measured.

    Attributes:
        spec: Its name.
        form: What was written, such as `4 bits, groups of 64, affine`.
        nbytes: Of all tensors.
        bits_per_weight: All tensors counted.
        figures: As a quality report's `written`, without layers.
    """

    spec: str
    form: str
    nbytes: int
    bits_per_weight: float
    figures: Mapping[str, Any]

    @property
    def kl(self) -> float:
        """Mean divergence; infinite where it is no number."""
        value = self.figures["kl_nats"]["mean"]["value"]
        return float("inf") if value is None else float(value)

    def beats(self, other: Result) -> bool:
        """Whether it is as small and as near, and one of both more so."""
        ours, theirs = (self.nbytes, self.kl), (other.nbytes, other.kl)
        return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]


@dataclass(frozen=True)
class Sweep:
    """All of them.

    Attributes:
        source: As it was given.
        text: What the text is called.
        text_sha256: Of the text.
        tokens: Positions that were measured.
        source_perplexity: With its standard error.
        results: In the order of the specs.
        failed: Why, by spec.
        file: Where they are kept.
    """

    source: str
    text: str
    text_sha256: str
    tokens: int
    source_perplexity: Mapping[str, Any]
    results: tuple[Result, ...]
    failed: Mapping[str, str]
    file: str

    @property
    def front(self) -> tuple[Result, ...]:
        """Those that no other beats, the smallest first."""
        unbeaten = [
            one for one in self.results if not any(other.beats(one) for other in self.results)
        ]
        return tuple(sorted(unbeaten, key=lambda one: (one.nbytes, one.kl)))

    def findings(self) -> Iterator[str]:
        """What a reader must not overlook, a line each."""
        source = self.source_perplexity["value"]
        if is_strange(source):
            yield strange(self.text, source)
        for spec, why in self.failed.items():
            yield f"{spec} was not measured: {why}"
        rounded = [one for one in self.results if one.spec.startswith("rtn")]
        for one in self.results:
            better = [other for other in rounded if other is not one and other.beats(one)]
            if better and one not in rounded:
                best = min(better, key=lambda other: other.kl)
                yield (
                    f"{one.spec} is WORSE than rounding to nearest: KL {one.kl:.4g} against "
                    f"{best.kl:.4g} of {best.spec}, which is no larger"
                )

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        front = self.front
        return {
            "source": self.source,
            "text": {"name": self.text, "sha256": self.text_sha256},
            "tokens": self.tokens,
            "source_perplexity": self.source_perplexity,
            "results": [
                {
                    "spec": one.spec,
                    "form": one.form,
                    "tensor_bytes": one.nbytes,
                    "bits_per_weight": one.bits_per_weight,
                    **one.figures,
                    "unbeaten": one in front,
                }
                for one in self.results
            ],
            "failed": dict(self.failed),
            "findings": list(self.findings()),
        }

    def text_table(self) -> str:
        """The figures, the smallest first, and what must not be overlooked."""
        front = self.front
        rows = [["", "size", "bits/weight", "KL (nats)", "same top token", "perplexity, by source"]]
        for one in sorted(self.results, key=lambda one: (one.nbytes, one.kl)):
            figures = one.figures
            rows.append(
                [
                    f"{'*' if one in front else ' '} {one.spec}",
                    gigabytes(one.nbytes),
                    f"{one.bits_per_weight:.3f}",
                    told(figures["kl_nats"]["mean"]),
                    told(figures["top1_agreement"]),
                    told(figures["perplexity_ratio"]),
                ]
            )
        lines = [
            *aligned(rows),
            "",
            "* no other is both as small and as near to the source",
            f"{self.tokens:,} tokens of {self.text}, ± one standard error; the source's perplexity "
            f"is {told(self.source_perplexity)}; kept in {self.file}",
        ]
        return "\n".join([*lines, *self.findings()])


def told(estimate: Mapping[str, float | None]) -> str:
    """A figure with its standard error, from a report's plain data."""
    value, error = estimate["value"], estimate["standard_error"]
    if value is None:
        return "no number"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.1g}"
