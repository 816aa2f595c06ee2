"""The values of a config.json as plain data: infinities that are numbers.

Owns the form in which transformers writes floats that JSON lacks. Knows nothing of
what any value means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from configs.errors import ModelConfigError


def untagged(value: Any) -> Any:
    """A config with the infinities that transformers writes as objects put back."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:
            if value["__float__"] not in ("Infinity", "-Infinity"):
                what = f"{dict(value)} is not an infinity"
                raise ModelConfigError("config.json", what, "download it again")
            return float(value["__float__"])
        return {key: untagged(item) for key, item in value.items()}
    return [untagged(item) for item in value] if isinstance(value, list) else value


def tagged(value: Any) -> Any:
    """A config that is valid JSON: the reverse of `untagged`."""
    if isinstance(value, float) and not math.isfinite(value):
        name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return {"__float__": name}
    if isinstance(value, Mapping):
        return {key: tagged(item) for key, item in value.items()}
    return [tagged(item) for item in value] if isinstance(value, list) else value
