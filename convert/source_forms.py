"""What becomes of the weights that the source held quantized, for the receipt.

Owns the words for it. Knows nothing of formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from checkpoint.architecture.kept import Decoded
from checkpoint.architecture.packed import Dequantize
from checkpoint.architecture.recipes import Recipe, walk
from convert.plan import Parameter

_FATES = {
    "copy": "kept: the same numbers",
    "cast": "kept: the same codes, scales and biases rounded",
    "quantize": "quantized anew",
}
DEQUANTIZED = "dequantized"


def source_forms(
    parameters: Iterable[Parameter], recipes: Mapping[str, Recipe]
) -> list[dict[str, Any]]:
    """How many weights were in which form, and what became of them; empty if none was quantized.

    Args:
        parameters: What the plan makes.
        recipes: How each is made.
    """
    found: Counter[tuple[str, str]] = Counter()
    for parameter in parameters:
        if (form := _form(recipes[parameter.name])) is None:
            continue
        fate = _FATES[parameter.operation] if parameter.quantization else DEQUANTIZED
        found[form, fate] += 1
    return [
        {"format": form, "became": fate, "weights": count}
        for (form, fate), count in found.most_common()
    ]


def _form(recipe: Recipe) -> str | None:
    for node in walk(recipe):
        if isinstance(node, Decoded):
            return node.told
        if isinstance(node, Dequantize):
            return f"MLX, {node.form}"
    return None
