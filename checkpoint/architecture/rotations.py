"""Whether a model of mlx-lm rotates queries and keys as transformers does.

Owns the probe of a model's own rope modules, and their tuning in a loaded model.
Because the probe looks at what they compute, there is no list of which architecture
honours which variant of RoPE. What they should compute comes from `rope`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from checkpoint.architecture.rope import Rotation, by_layer_type, head_dimensions, rotation
from configs.errors import ArchitectureError

PROBED_POSITIONS = (1, 29, 509)
# float32 angles at the last position are good to about 1e-4; a wrong theta is off by 0.1.
TOLERANCE = 2e-3


def check_rotations(model: Any, values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Refuse a model of mlx-lm whose layers do not rotate as transformers' do.

    Args:
        model: The model, built from the explicit config.
        values: What transformers' class holds.
        name: The architecture's name in mlx-lm, for the message.

    Returns:
        What there is to say of a rotation that is only nearly right.

    Raises:
        ArchitectureError: naming the rope parameters that can't be honoured.
    """
    notes: set[str] = set()
    if not values.get("rope_parameters"):
        return ()
    size, positions = head_dimensions(values), values.get("max_position_embeddings")
    probed = False
    for module, told in _rope_modules(model, values):
        probed = True
        expected = rotation(told, size, positions)
        if _rotates(module, expected):
            continue
        rounded = rotation({**told, "truncate": True}, size, positions)
        if told.get("truncate") is not False or not _rotates(module, rounded):
            raise ArchitectureError(
                "config.json",
                f"rope_parameters {dict(told)} can't be honoured: "
                f"mlx-lm's {name} rotates otherwise",
                "it can be converted once mlx-lm's architecture reads them",
            )
        pairs = zip(expected.frequencies, rounded.frequencies, strict=True)
        error = max(abs(exact - coarse) for exact, coarse in pairs)
        notes.add(
            f"rope_parameters truncate False: mlx-lm rounds the range that YaRN blends, and some "
            f"angles are off by up to {error:.1e} radians per position"
        )
    if not probed:
        _refuse_unprobed(values["rope_parameters"], name)
    return tuple(sorted(notes))


def _refuse_unprobed(parameters: Mapping[str, Any], name: str) -> None:
    """A model that rotates by itself, in no module of its own, knows plain RoPE alone."""
    for told in (by_layer_type(parameters) or {"": parameters}).values():
        if told is not None and told.get("rope_type", "default") != "default":
            raise ArchitectureError(
                "config.json",
                f"rope_parameters {dict(told)} can't be honoured: mlx-lm's {name} has plain RoPE",
                "it can be converted once mlx-lm's architecture reads them",
            )


def tune_rotations(model: Any, config: Mapping[str, Any], length: int) -> None:
    """Give a loaded model's rope modules the very frequencies that transformers would use.

    mlx-lm's modules take the long factors of `longrope` for short texts too, and round the
    range that YaRN blends. Stock mlx-lm can't be told otherwise; a model at hand can.

    Args:
        model: A loaded model of mlx-lm.
        config: Its explicit config.
        length: How many positions the text will have.
    """
    import mlx.core as mx

    if not config.get("rope_parameters"):
        return
    size, positions = head_dimensions(config), config.get("max_position_embeddings")
    for module, told in _rope_modules(model, config):
        if told.get("rope_type") in ("longrope", "yarn") and hasattr(module, "_freqs"):
            exact = rotation(told, size, positions, length)
            module._freqs = mx.array([1 / f for f in exact.frequencies], mx.float32)


def _rope_modules(model: Any, values: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The model's rope modules, each with the entry of `rope_parameters` for its layer."""
    parameters = values["rope_parameters"]
    kinds, nested = values.get("layer_types") or (), by_layer_type(parameters)
    for path, module in model.named_modules():
        kind = type(module).__name__
        if not re.search("rope|rotary", kind, re.IGNORECASE) or kind == "NoPE":
            continue
        number = re.search(r"\.(\d+)\.", path)
        layer = int(number[1]) if number else len(kinds)
        told = nested.get(kinds[layer] if layer < len(kinds) else "") if nested else parameters
        if told is not None:
            yield module, told


def _rotates(module: Any, expected: Rotation) -> bool:
    """Whether a rope module rotates a probe as expected, with either pairing of dimensions."""
    import mlx.core as mx

    half = len(expected.frequencies)
    first = [math.sin(1 + i) for i in range(half)]
    second = [math.cos(2 + 3 * i) for i in range(half)]
    rest = [0.5] * (expected.head_dim - 2 * half)
    pairings = {
        "halves": [*first, *second, *rest],
        "neighbours": [x for pair in zip(first, second, strict=True) for x in pair] + rest,
    }
    for position in PROBED_POSITIONS:
        turned = [
            (
                expected.scale * (a * math.cos(position * f) - b * math.sin(position * f)),
                expected.scale * (b * math.cos(position * f) + a * math.sin(position * f)),
            )
            for a, b, f in zip(first, second, expected.frequencies, strict=True)
        ]
        wanted = {
            "halves": [*(x for x, _ in turned), *(y for _, y in turned), *rest],
            "neighbours": [x for pair in turned for x in pair] + rest,
        }
        for pairing in tuple(pairings):
            probe = mx.array(pairings[pairing], mx.float32).reshape(1, 1, 1, -1)
            found = module(probe, offset=position).reshape(-1).tolist()
            if any(abs(x - y) > TOLERANCE for x, y in zip(found, wanted[pairing], strict=True)):
                del pairings[pairing]
    return bool(pairings)
