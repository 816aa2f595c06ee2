"""Refuses a checkpoint whose weights are packed in a format that can't be read.

Knows the signs of one; nothing of the formats themselves.
"""

from __future__ import annotations

from typing import Any

from checkpoint.dtypes import DTYPES
from checkpoint.tensors import Catalog
from configs.errors import ArchitectureError


def refuse_quantized(config: dict[str, Any], catalog: Catalog) -> None:
    """Refuse a source that is quantized, unless it is so for MLX.

    Raises:
        ArchitectureError: naming the format.
    """
    text_config = config.get("text_config") or {}
    found = config.get("quantization_config") or text_config.get("quantization_config")
    scaled = next((ref for ref in catalog.values() if DTYPES[ref.dtype].needs_scales), None)
    if "quantization" in config or not (found or scaled):
        return
    method = found.get("quant_method") if isinstance(found, dict) else scaled and scaled.dtype
    raise ArchitectureError(
        "config.json",
        f"the weights are quantized already ({method}), in a format that can't be read",
        "take the model's 16-bit checkpoint",
    )
