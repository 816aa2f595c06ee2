"""Values of an adapter's config and tensors, each held to its kind.

Owns the checks that both formats share. Knows neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint.adapters.adapter import Pair
from checkpoint.json_file import json_value
from checkpoint.tensors import TensorRef
from configs.errors import AdapterError

_FLOATS = ("F16", "BF16", "F32")


def whole_number(config: Mapping[str, Any], key: str, where: Path, least: int) -> int:
    """An integer of a config that is not smaller.

    Raises:
        AdapterError: It is missing, or something else.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise _wrong(config, key, where, f"a whole number from {least}")
    return value


def real_number(config: Mapping[str, Any], key: str, where: Path) -> float:
    """A finite number of a config.

    Raises:
        AdapterError: It is missing, or something else.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**63:
        raise _wrong(config, key, where, "a number")
    return float(value)


def flag(config: Mapping[str, Any], key: str, where: Path) -> bool:
    """A true or false of a config; false where it is missing or null.

    Raises:
        AdapterError: It is something else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise _wrong(config, key, where, "true or false")
    return bool(value)


def factor(ref: TensorRef, dimensions: tuple[int, ...]) -> TensorRef:
    """A tensor that is a matrix, or whatever is expected, of floats.

    Raises:
        AdapterError: It is something else.
    """
    if ref.dtype not in _FLOATS:
        raise refused(ref, f"is {ref.dtype}, and not one of {', '.join(_FLOATS)}")
    if len(ref.shape) not in dimensions or 0 in ref.shape:
        told = " or ".join(map(str, dimensions))
        raise refused(ref, f"has shape {list(ref.shape)}, where {told} axes were expected")
    return ref


def check_magnitude(pair: Pair, dora: bool, where: Path) -> None:
    """Hold a pair to what the config says of DoRA.

    Raises:
        AdapterError: One has a magnitude, and the other knows of none.
    """
    if dora and pair.magnitude is None:
        raise AdapterError(where, f"asks for DoRA, and {pair.module} has no magnitude")
    if not dora and pair.magnitude is not None:
        raise refused(pair.magnitude, f"is DoRA's, of which {where.name} knows nothing")


def refused(ref: TensorRef, what: str) -> AdapterError:
    """What to raise of one tensor of an adapter."""
    return AdapterError(f"{ref.file} ({ref.name})", what, "is the file the adapter's own?")


def finite_scale(value: float, where: Path) -> float:
    """A scale that multiplies something.

    Raises:
        AdapterError: It is not finite.
    """
    if not math.isfinite(value):
        raise AdapterError(where, "gives a scale that is not finite")
    return value


def _wrong(config: Mapping[str, Any], key: str, where: Path, takes: str) -> AdapterError:
    found = json_value(config[key]) if key in config else "not there"
    return AdapterError(where, f"{key} is {found}, where {takes} was expected")
