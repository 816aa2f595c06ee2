"""A quality report: a table for a person, plain data for the receipt.

Owns the words, and the verdict on whether a method was worth its while. Computes no figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from convert.quality.figures import Estimate, Figures, rounded

_WORST = 5
_SAME = 1e-3
"""Layers whose errors differ by less, relative to the error, are equally good."""
_STRANGE = 1000
"""A source with a higher perplexity knows nothing of such a text."""


@dataclass(frozen=True)
class Measured:
    """One set of weights beside the source's.

    Attributes:
        figures: On the whole text, from the token ids on.
        layers: Of each layer the error of what it adds to its input, given the source's input,
            relative to what the source's adds; root mean square over tokens.
    """

    figures: Figures
    layers: tuple[Estimate, ...]

    def as_json(self) -> dict[str, Any]:
        """As the receipt has it."""
        return {**self.figures.as_json(), "layers": [each.as_json() for each in self.layers]}


@dataclass(frozen=True)
class Report:
    """What was found; see the module `measure`.

    Attributes:
        form: What was written, such as `4 bits, groups of 64, affine`.
        text: What the text is called.
        text_sha256: Of the text.
        calibration_sha256: Of the texts that the model was calibrated on.
        tokens: Positions that were measured.
        window: Tokens that were run together.
        written: What was written.
        rtn: Rounding to nearest in the same forms; None where nothing is quantized.
        gain: Mean divergence of what was written less that of rounding to nearest.
        seconds: Wall time.
        peak_memory_bytes: Largest resident memory of the process.
    """

    form: str
    text: str
    text_sha256: str
    calibration_sha256: tuple[str, ...]
    tokens: int
    window: int
    written: Measured
    rtn: Measured | None
    gain: Estimate | None
    seconds: float
    peak_memory_bytes: int

    @property
    def worst(self) -> list[int]:
        """The five layers with the largest errors, the worst first."""
        errors = self.written.layers
        return sorted(range(len(errors)), key=lambda number: -errors[number].value)[:_WORST]

    @property
    def worse_layers(self) -> list[int]:
        """Layers that came out worse than by rounding to nearest."""
        if self.rtn is None:
            return []
        pairs = enumerate(zip(self.written.layers, self.rtn.layers, strict=True))
        return [
            number for number, (ours, theirs) in pairs if ours.value > theirs.value * (1 + _SAME)
        ]

    def findings(self) -> Iterator[str]:
        """What a reader must not overlook, a line each; nothing is left unsaid that is bad."""
        if self.rtn is None or self.gain is None:
            return
        ours, theirs = self.written.figures, self.rtn.figures
        if self.gain.value > _SAME * theirs.kl_mean.value:
            sure = self.gain.value > 2 * self.gain.standard_error
            yield (
                f"WORSE than rounding to nearest: mean KL {ours.kl_mean.value:.4g} against "
                f"{theirs.kl_mean.value:.4g} ({'beyond' if sure else 'within'} two standard "
                f"errors of the difference, {self.gain})"
            )
        for number in self.worse_layers:
            yield (
                f"layer {number} is WORSE than rounding to nearest: error "
                f"{self.written.layers[number].value:.4g} against "
                f"{self.rtn.layers[number].value:.4g}"
            )

    def caveats(self) -> Iterator[str]:
        """What makes the figures say less than it seems, a line each."""
        source = self.written.figures.reference_perplexity.value
        if is_strange(source):
            yield strange(self.text, source)
        ratio = self.written.figures.perplexity_ratio
        if ratio.value < 1 - 2 * ratio.standard_error:
            yield (
                f"the perplexity is lower than the source's, {ratio.value:.4g} of it, which is no "
                "gain: the KL says how far the model has moved"
            )

    @property
    def is_rtn(self) -> bool:
        """Whether what was written came out as rounding to nearest does, figure by figure."""
        return self.rtn == self.written

    @property
    def summary(self) -> str:
        """One line."""
        ours = self.written.figures
        line = (
            f"quality on {self.tokens:,} tokens of {self.text}: KL {ours.kl_mean} nats a token, "
            f"top-1 {ours.agreement.value:.1%}, perplexity "
            f"{ours.reference_perplexity.value:.4g} -> {ours.perplexity.value:.4g}"
        )
        if self.rtn is None:
            return line
        if self.is_rtn:
            return f"{line} (as rounding to nearest has it)"
        return f"{line} (rounding to nearest: KL {self.rtn.figures.kl_mean})"

    def as_json(self) -> dict[str, Any]:
        """For a receipt: nothing in it differs from run to run."""
        return {
            "form": self.form,
            "text": {"name": self.text, "sha256": self.text_sha256},
            "calibration_sha256": list(self.calibration_sha256),
            "tokens": self.tokens,
            "window": self.window,
            "source_perplexity": self.written.figures.reference_perplexity.as_json(),
            "written": self.written.as_json(),
            "rtn": None if self.rtn is None else self.rtn.as_json(),
            "kl_less_rtn": None if self.gain is None else self.gain.as_json(),
            "worst_layers": [
                {"layer": number, "error": rounded(self.written.layers[number].value, 4)}
                for number in self.worst
            ],
            "worse_than_rtn": list(self.findings()),
            "caveats": list(self.caveats()),
        }

    def text_table(self) -> str:
        """The figures, the worst layers, and what must not be overlooked."""
        rounded = None if self.is_rtn else self.rtn  # the same column twice tells nothing
        sets = [self.written.figures] + ([] if rounded is None else [rounded.figures])
        head = ["", self.form, "rounding to nearest"][: len(sets) + 1]
        rows = [head]
        for name in ("mean", "median", "p99", "max"):
            rows.append([f"KL, {name} (nats)", *(str(getattr(s, f"kl_{name}")) for s in sets)])
        rows.append(["same top token", *(str(each.agreement) for each in sets)])
        rows.append(["perplexity", *(str(each.perplexity) for each in sets)])
        rows.append(["  by the source's", *(str(each.perplexity_ratio) for each in sets)])
        lines = aligned(rows)
        source = self.written.figures.reference_perplexity
        lines.append(f"source: perplexity {source}")
        lines += ["these are the figures of rounding to nearest, too"] if self.is_rtn else []
        layers = [["layer, worst first", "error, relative"]]
        layers[0] += ["rounding to nearest"] if rounded else []
        for number in self.worst:
            row = [str(number), str(self.written.layers[number])]
            layers.append(row + ([str(rounded.layers[number])] if rounded else []))
        lines += ["", *aligned(layers), ""]
        lines.append(
            f"{self.tokens:,} tokens of {self.text} in windows of {self.window}, float32, "
            f"± one standard error; {self.seconds:.1f} s, {self.peak_memory_bytes / 1e6:,.0f} MB"
        )
        return "\n".join([*lines, *self.findings(), *self.caveats()])


def is_strange(perplexity: float | None) -> bool:
    """Whether a source's perplexity tells that the text means nothing to it."""
    return perplexity is None or not perplexity <= _STRANGE


def strange(text: str, perplexity: float | None) -> str:
    """That the source itself does badly on a text."""
    value = "no number" if perplexity is None else f"{perplexity:.4g}"
    return (
        f"the source itself does badly on {text} (perplexity {value}), so that the figures"
        " say little of its use: give --text one of the kind that it was made for"
    )


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of cells, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
