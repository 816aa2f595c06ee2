"""A score as one web page that needs nothing else: no script, no font, no network.

Owns the page. Every text of the model or the user is escaped, and the page forbids
itself to load anything.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import pairwise

from inference.heatmap import LEVELS, Shown, colour, level
from inference.score import Score
from inference.statistics import Run

_COLUMNS = 240  # of the curve; each is the mean of its share of the tokens
_CURVE_HEIGHT = 60

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --soft: #6e6e73; --line: #d2d2d7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f5f5f7; --paper: #161617; --soft: #98989d; --line: #38383c }
}
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 -apple-system, system-ui, sans-serif }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; overflow-wrap: anywhere }
p { margin: 0 0 1rem; color: var(--soft) }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 1.5rem }
dt { font-size: .8rem; color: var(--soft) }
dd { margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums }
svg { display: block; width: 100%; height: 60px; margin: 0 0 1.5rem }
svg path { fill: none; stroke: currentColor; stroke-width: 1; vector-effect: non-scaling-stroke }
.scale { display: flex; margin: 0 0 1.5rem; font-size: .75rem }
.scale i { flex: 1; text-align: center; padding: .15rem 0 }
pre { margin: 0; padding-top: 1.5rem; border-top: 1px solid var(--line); white-space: pre-wrap;
  overflow-wrap: anywhere; font: 15px/1.9 ui-monospace, Menlo, Consolas, monospace }
i { font-style: normal }
pre i { padding: .15em 0; border-radius: 2px }
pre i:hover { outline: 2px solid var(--ink) }
"""


def page(score: Score, groups: Sequence[Shown], run: Run, bits_per_byte: float | None) -> str:
    """The whole page, as text to be saved in UTF-8.

    Args:
        score: The totals.
        groups: The text, as `inference.heatmap.grouped` gives it.
        run: What was asked.
        bits_per_byte: Of the text, where it is known.
    """
    name = html.escape(run.model)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{name}: bits per token</title>
<style>{_STYLE}{_shades()}</style>
</head>
<body>
<h1>{name}</h1>
<p>How much each token says: its surprisal in bits, given all before it{_windows(score)}.
Point at a token for its figures.</p>
<dl>{_totals(score, bits_per_byte)}</dl>
{_curve(groups)}
<div class="scale">{_scale()}</div>
<pre>{"".join(map(_span, groups))}</pre>
</body>
</html>
"""


def _shades() -> str:
    rules = []
    for shade in range(LEVELS):
        red, green, blue = colour(shade)
        ink = "#fff" if shade > LEVELS // 2 else "#1d1d1f"
        rules.append(f".b{shade} {{ background: rgb({red} {green} {blue}); color: {ink} }}")
    return "\n".join(rules)


def _windows(score: Score) -> str:
    if score.window is None:
        return ""
    return f" in windows of {score.window:,} tokens, {score.stride:,} apart"


def _totals(score: Score, bits_per_byte: float | None) -> str:
    figures = [("tokens", f"{len(score.tokens):,}"), ("bits", f"{score.total_bits:,.1f}")]
    if score.perplexity is not None:
        figures.append(("perplexity", f"{score.perplexity:,.3f}"))
    if bits_per_byte is not None:
        figures.append(("bits per byte", f"{bits_per_byte:.4f}"))
    return "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in figures)


def _curve(groups: Sequence[Shown]) -> str:
    """Mean bits along the text."""
    known = [group.bits for group in groups if group.bits is not None]
    count = min(_COLUMNS, len(known))
    if count < 2:
        return ""
    edges = [round(column * len(known) / count) for column in range(count + 1)]
    means = [math.fsum(known[low:high]) / (high - low) for low, high in pairwise(edges)]
    top = max(*means, 1.0)
    low, room = _CURVE_HEIGHT - 2, _CURVE_HEIGHT - 4
    points = [
        f"{column / (count - 1) * 1000:.1f} {low - mean / top * room:.1f}"
        for column, mean in enumerate(means)
    ]
    return (
        f'<svg viewBox="0 0 1000 {_CURVE_HEIGHT}" preserveAspectRatio="none" role="img">'
        f"<title>bits per token along the text, at most {top:.1f}</title>"
        f'<path d="M{" L".join(points)}"/></svg>'
    )


def _scale() -> str:
    labels = [f"{shade}+" if shade == LEVELS - 1 else str(shade) for shade in range(LEVELS)]
    return "".join(f'<i class="b{shade}">{label}</i>' for shade, label in enumerate(labels))


def _span(group: Shown) -> str:
    text = html.escape(group.text) or "&#xFFFD;"
    if group.bits is None:
        return f'<i title="nothing precedes it">{text}</i>'
    about = "; ".join(
        f"{token.bits:.2f} bits, rank {token.rank:,}, token {token.id}"
        for token in group.tokens
        if token.bits is not None
    )
    return f'<i class="b{level(group.bits)}" title="{about}">{text}</i>'
