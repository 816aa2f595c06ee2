"""Draws a sweep: size against loss, a line for each method, what no other beats marked.

Owns the picture.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from checkpoint import disk
from convert.quality.sweep_report import Result, Sweep

_MARKS = {"rtn": "s--", "search": "o-", "calibrated": "^-"}
_MIXED = "D:"


def write_sweep_plot(sweep: Sweep, path: Path) -> None:
    """Draw bits per weight against mean divergence.

    Raises:
        DiskError: it can't be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, results in _by_method(sweep).items():
        results.sort(key=lambda one: one.bits_per_weight)
        axes.errorbar(
            [one.bits_per_weight for one in results],
            [one.kl for one in results],
            yerr=[one.figures["kl_nats"]["mean"]["standard_error"] or 0 for one in results],
            fmt=_MARKS.get(name, _MIXED),
            markersize=4,
            capsize=2,
            label=name,
        )
    front = sweep.front
    axes.plot(
        [one.bits_per_weight for one in front],
        [one.kl for one in front],
        "o",
        markersize=11,
        markerfacecolor="none",
        color="gray",
        label="no other beats it",
    )
    for one in front:
        here = (one.bits_per_weight, one.kl)
        axes.annotate(one.spec, here, xytext=(7, 5), textcoords="offset points", fontsize=8)
    if all(0 < one.kl < float("inf") for one in sweep.results):
        axes.set_yscale("log")
    axes.set_xlabel("bits per weight, all tensors counted")
    axes.set_ylabel("KL from the source, nats a token")
    title = f"{Path(sweep.source).name}, on {sweep.tokens:,} tokens of {sweep.text}"
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3, which="both")
    axes.margins(x=0.1, y=0.1)  # the names need room
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower()[1:], dpi=150)
    disk.replace_whole(path, picture.getvalue())


def _by_method(sweep: Sweep) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for one in sweep.results:
        method, sign, form = re.split("([:@])", one.spec, maxsplit=1)
        name = method if form.partition("/")[0].isdigit() else f"{method}, {form}"
        name = f"{method}, mixed bits" if sign == "@" else name
        found.setdefault(name, []).append(one)
    return found
