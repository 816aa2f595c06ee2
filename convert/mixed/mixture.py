"""A choice of forms, one for each layer, and how it is told.

Owns the words and figures of it, for plan, receipt and card. Knows nothing of how it was chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoint.packing import Quantization


@dataclass(frozen=True)
class Mixture:
    """What was chosen.

    Attributes:
        option: Which option asked for it: `target_bpw`, `target_size`, `fit` or `recipe`.
        told: What that came to, in words.
        measured_on: `weights`, or the name of the text; empty for a recipe.
        forms: By the paths of modules.
        errors: What each is estimated to lose; empty for a recipe. From a text: nats of KL
            divergence a token; from weights: shares of no unit.
        warnings: What the user may not expect.
    """

    option: str
    told: str
    measured_on: str
    forms: Mapping[str, Quantization]
    errors: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    @property
    def default(self) -> Quantization:
        """The form of most layers, which the config need not repeat for each."""
        return Counter(self.forms.values()).most_common(1)[0][0]

    @property
    def estimate(self) -> float | None:
        """Nats of KL divergence a token that all layers lose together; None if not measured."""
        return None if self.measured_on in ("", "weights") else sum(self.errors.values())

    def lines(self) -> Iterator[str]:
        """A summary by kinds of layers."""
        by = f", chosen by the {self.measured_on}" if self.measured_on == "weights" else ""
        if self.measured_on and not by:
            by = f", chosen by what {self.measured_on} shows"
        if self.estimate is not None:
            by += f": about {self.estimate:.2g} nats of KL divergence a token"
        yield f"{self.told}{by}"
        kinds: dict[str, Counter[Quantization]] = {}
        for path, form in self.forms.items():
            kinds.setdefault(path.rpartition(".")[2], Counter())[form] += 1
        width = max(map(len, kinds))
        for kind, forms in kinds.items():
            told = ", ".join(
                f"{count} x {_short(form)}"
                for form, count in sorted(forms.items(), key=lambda pair: _size(pair[0]))
            )
            yield f"  {kind.ljust(width)}  {told}"

    def as_json(self) -> dict[str, Any]:
        """For the plan and the receipt."""
        return {
            "option": self.option,
            "told": self.told,
            "measured_on": self.measured_on or None,
            "estimated_kl_nats": self.estimate,
            "layers": {
                path: form.as_config()
                | ({"error": self.errors[path]} if path in self.errors else {})
                for path, form in self.forms.items()
            },
        }


def _short(form: Quantization) -> str:
    """`4/64`, or `mxfp4`: bits and group size, or the mode that says both."""
    return f"{form.bits}/{form.group_size}" if form.mode == "affine" else form.mode


def _size(form: Quantization) -> tuple[float, str]:
    return form.bits - 1 / form.group_size, form.mode
