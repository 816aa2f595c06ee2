"""Carries a calibration out as a part of a conversion, and says what it will need.

Between the blocks of the model and those of the plan: from which block to go on, which
parameters can be written when. Owns that, and the entry in the receipt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from checkpoint.architecture.mapping import ModelMap, map_model
from checkpoint.architecture.reader import TensorReader
from checkpoint.recognise import Choices, open_source
from convert.blocks import Blocks
from convert.calibration.block import KEPT_BYTES
from convert.calibration.layer import WIDEST, Packed
from convert.calibration.state import States
from convert.calibration.text import CalibrationText
from convert.destination import Destination
from convert.journal import Journal
from convert.plan import Parameter, Plan
from convert.prepare import Prepared
from convert.schedule import Turn
from convert.stream import AllThere, Parts, Supply

Stream = Callable[[Supply, Mapping[str, Parts], bool], None]
"""Makes what a supply names: with the weights that are packed, and whether it is called again."""

_FOLDER = "calibration"
# Moments, what is made of them, and copies on the way.
_MATRICES = 10
# Hidden states of the whole text: the source's and ours before and after a block, and a copy of
# both; and those that the layers of a block take.
_STATES = 6
_STATES_KEPT = 12
_BASE_BYTES = 96 << 20


class Only(AllThere):
    """The supply of some parameters of a source that lies on the disk as a whole.

    Args:
        names: Of the parameters.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def turns(self, left: Sequence[Parameter]) -> Sequence[Turn]:
        return [turn for turn in super().turns(left) if turn.name in self._names]


def calibrated(
    prepared: Prepared,
    choices: Choices,
    destination: Destination,
    blocks: Blocks,
    journal: Journal,
    stream: Stream,
) -> dict[str, Any]:
    """Calibrate, and have every block of the model written as soon as it is done.

    Args:
        prepared: The conversion, with its text.
        choices: What the user says of the source.
        destination: Beside it lies what is needed to go on after an interruption.
        blocks: The blocks of the plan.
        journal: Which of them are finished.
        stream: Writes.

    Returns:
        The receipt's `calibration`.

    Raises:
        ArchitectureError: the model can't be run block by block.
        DiskError: reading or writing failed.
    """
    from convert.calibration.calibrate import Calibration, Weights

    text = prepared.calibration
    if text is None:
        raise ValueError("there is no text to calibrate on")
    opened = open_source(prepared.source.path, choices, None)
    model = map_model(opened.config, opened.catalog).model
    parameters = {each.name: each for each in blocks.plan.parameters}
    calls = 0

    def emit(names: frozenset[str], packed: Mapping[str, Packed]) -> None:
        nonlocal calls
        stream(Only(names), packed, calls > 0)
        calls += 1

    with TensorReader() as reader:
        calibration = Calibration(
            model,
            blocks.plan.parameters,
            Weights(prepared.model_map.recipes, reader),
            States(destination.staging / _FOLDER),
        )
        start = 0
        for names in calibration.names:
            own = [parameters[name] for name in names if name in parameters]
            if not all(journal.has(block) for each in own for block in blocks.of(each)):
                break
            start += 1
        layers = calibration.run(text.ids, start, emit)
    stream(AllThere(), {}, True)
    return receipt_entry(text, layers)


def receipt_entry(text: CalibrationText, layers: Mapping[str, Any]) -> dict[str, Any]:
    """What the receipt says of a calibration."""
    return {
        "name": text.name,
        "tokens": text.tokens,
        "text": dict(text.recorded),
        "layers": dict(layers),
    }


def expected_bytes(plan: Plan, model_map: ModelMap, text: CalibrationText) -> int:
    """About how much memory a calibration takes beside what a conversion does.

    Two sets of a block's weights in float32, a layer's moments, and the text's hidden states.
    """
    blocks: dict[str, int] = {}
    widest = 0
    for each in plan.parameters:
        number = next((part for part in each.name.split(".") if part.isdigit()), "")
        blocks[number] = blocks.get(number, 0) + 4 * each.size
        if number and each.quantization and len(each.shape) == 2:
            widest = max(widest, min(WIDEST, each.shape[1]))
    hidden = model_map.config.get("hidden_size")
    state = 4 * math.prod(text.ids.shape) * (hidden if isinstance(hidden, int) else 0)
    kept = min(KEPT_BYTES, _STATES_KEPT * state)
    in_blocks = max((size for number, size in blocks.items() if number), default=0)
    in_a_block = 3 * in_blocks + _MATRICES * 4 * widest * widest + kept
    return max(in_a_block, 2 * blocks.get("", 0)) + _STATES * state + _BASE_BYTES


def told(entry: Mapping[str, Any]) -> str:
    """How many layers came out how, in words."""
    layers: Mapping[str, Any] = entry["layers"]
    searched = sorted(name for name, each in layers.items() if each["method"] == "search")
    if not searched:
        return f"calibrated: all {len(layers)} layers"
    return (
        f"calibrated: {len(layers) - len(searched)} of {len(layers)} layers; search did better "
        f"for the others, {searched[0]} among them"
    )
