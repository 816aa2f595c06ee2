"""Draws a quality report: the error of every layer, beside rounding to nearest.

Owns the picture, and the one use of matplotlib (extra `plot`).
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

from checkpoint import disk
from configs.errors import DestinationError, FerryError, UsageError
from convert.quality.figures import Estimate
from convert.quality.report import Report

FLAG = "--plot"
_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(named: str | None) -> Path | None:
    """See that a picture can be drawn, before hours go into what it is to show.

    Raises:
        DestinationError: its folder is not there.
        FerryError: there is nothing to draw with.
        UsageError: it is no kind of picture that can be drawn.
    """
    if named is None:
        return None
    path = Path(named)
    if path.suffix.lower() not in _SUFFIXES:
        kinds = f"{', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}"
        raise UsageError(FLAG, f"can't draw {path.name}", f"name a file that ends in {kinds}")
    if not path.parent.is_dir():
        raise DestinationError(path.parent, "is not a folder", "make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise FerryError(FLAG, "needs matplotlib", "pip install 'mlx-ferry[plot]'")
    return path


def write_plot(report: Report, path: Path) -> None:
    """Draw each layer's error with its standard error.

    Raises:
        DiskError: it can't be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    sets: list[tuple[str, str, tuple[Estimate, ...]]] = [(report.form, "o-", report.written.layers)]
    if report.rtn is not None:
        sets.append(("rounding to nearest", "s--", report.rtn.layers))
    for name, style, layers in sets:
        axes.errorbar(
            range(len(layers)),
            [each.value for each in layers],
            yerr=[each.standard_error for each in layers],
            fmt=style,
            markersize=4,
            capsize=2,
            label=name,
        )
    axes.set_xlabel("layer")
    axes.set_ylabel("error of the layer's output, relative")
    axes.set_ylim(bottom=0)
    axes.set_title(f"KL {report.written.figures.kl_mean} nats a token on {report.tokens:,} tokens")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower()[1:], dpi=150)
    disk.replace_whole(path, picture.getvalue())
