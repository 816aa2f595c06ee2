"""Carries a calibration out as a part of a conversion, and says what it will need.

Between the blocks of the model and those of the plan: from which block to go on, which
parameters can be written when. Owns that, and the entry in the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from checkpoint.architecture.mapping import ModelMap, map_model
from checkpoint.architecture.reader import TensorReader
from checkpoint.recognise import Choices, open_source
from convert.blocks import Blocks
from convert.calibration.block import NUMBERS
from convert.calibration.layer import WEIGHTS_OF_A_WORKER, WEIGHTS_TOGETHER, Packed
from convert.calibration.own import OwnText
from convert.calibration.shelf import IN_MEMORY
from convert.calibration.state import States
from convert.calibration.text import CalibrationText
from convert.calibration.wide import WIDEST
from convert.calibration.workers import workers
from convert.destination import Destination
from convert.journal import Journal
from convert.plan import Parameter, Plan
from convert.prepare import Prepared
from convert.schedule import Turn
from convert.stream import AllThere, Parts, Supply

Stream = Callable[[Supply, Mapping[str, Parts], bool], None]
"""Makes what a supply names: with the weights that are packed, and whether it is called again."""

FOLDER = "calibration"
"""Beside what is staged: what a calibration needs to go on."""

# Bytes for every product of two columns: while moments are factored, and after that.
_FACTORED, _SOLVED = 24, 16
# Arrays of a worker's weights, of weights that are judged, and of what a block computes.
_OF_A_WORKER, _JUDGED, _COMPUTED = 7, 5, 8
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
    if not isinstance(text, CalibrationText):
        raise ValueError("there is no text to calibrate on")
    opened = open_source(prepared.source.path, choices, None)
    model = map_model(opened.config, opened.catalog).model
    parameters = {each.name: each for each in blocks.plan.parameters}
    calls = 0

    def emit(names: frozenset[str], packed: Mapping[str, Packed]) -> None:
        nonlocal calls
        stream(Only(names), packed, calls > 0)
        calls += 1

    def done(names: frozenset[str]) -> bool:
        own = [parameters[name] for name in names if name in parameters]
        return all(journal.has(block) for each in own for block in blocks.of(each))

    with TensorReader() as reader:
        calibration = Calibration(
            model,
            blocks.plan.parameters,
            Weights(prepared.model_map.recipes, reader),
            States(destination.staging / FOLDER),
        )
        layers = calibration.run(text.ids, done, emit)
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


def expected_bytes(plan: Plan, model_map: ModelMap, text: CalibrationText | OwnText) -> int:
    """About how much memory a calibration takes beside what a conversion does.

    A layer's weights, a stage's moments, a block's results, and some rows of hidden states.
    """
    in_blocks: dict[str, int] = {}
    outside = layer = widest = taken = 0
    for each in plan.parameters:
        number = next((part for part in each.name.split(".") if part.isdigit()), "")
        size = sum(output.nbytes for output in each.outputs)
        if number:
            in_blocks[number] = in_blocks.get(number, 0) + size
        else:
            outside = max(outside, 2 * size)
        if each.quantization and len(each.shape) > 1:
            rows, columns = each.shape[-2:]
            widest, taken = max(widest, min(WIDEST, columns)), max(taken, columns)
            layer = max(layer, rows * columns if number else 0)
    hidden = model_map.config.get("hidden_size")
    state = 4 * text.tokens * (hidden if isinstance(hidden, int) else 0)
    judge = text.tokens * taken  # an eighth of the text, as two ways have it, in float32
    computed = _COMPUTED * min(4 * text.tokens * taken, 4 * NUMBERS)
    made = 4 * (_OF_A_WORKER * workers() * WEIGHTS_OF_A_WORKER + _JUDGED * WEIGHTS_TOGETHER)
    made = min(made, 4 * (_OF_A_WORKER + _JUDGED) * layer) + judge
    return (
        _BASE_BYTES
        + max(_FACTORED * widest**2, _SOLVED * widest**2 + made, computed + 4 * layer)
        + max(outside, 3 * layer + max(in_blocks.values(), default=0))
        + min(IN_MEMORY, 8 * state)
        + state
    )


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
