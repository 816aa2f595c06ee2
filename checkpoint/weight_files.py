"""Which files of a folder or a repository hold a model's weights, by their names alone.

Owns the order of preference: safetensors before PyTorch's files. Opens nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath

from checkpoint.folder import (
    PICKLED_INDEX,
    PICKLED_WEIGHTS,
    WEIGHT_PATTERNS,
    WEIGHTS,
    WEIGHTS_INDEX,
    matches,
)

_OF_TRAINING = ("optim", "scheduler", "scaler", "rng_state", "training_args")


@dataclass(frozen=True)
class WeightFiles:
    """Where the weights are.

    Attributes:
        index: The index that names the shards; None for a single file.
        single: That file; None if there is an index.
    """

    index: str | None = None
    single: str | None = None

    @property
    def pickled(self) -> bool:
        """Whether they are PyTorch's files."""
        return not (self.index or self.single or "").endswith((WEIGHTS_INDEX, ".safetensors"))


def weight_files(names: Collection[str]) -> WeightFiles | None:
    """The files that count among those of a folder or repository; None if there are none."""
    if WEIGHTS_INDEX in names:
        return WeightFiles(index=WEIGHTS_INDEX)
    if WEIGHTS in names:
        return WeightFiles(single=WEIGHTS)
    if any(matches(name, WEIGHT_PATTERNS) for name in names):
        return None  # safetensors that are not whole: better said than passed over
    if PICKLED_INDEX in names:
        return WeightFiles(index=PICKLED_INDEX)
    if PICKLED_WEIGHTS in names:
        return WeightFiles(single=PICKLED_WEIGHTS)
    return None


def loose_pytorch_files(names: Collection[str]) -> list[str]:
    """Files of a folder that PyTorch may have saved a model in, under names of the user's."""
    return sorted(
        name
        for name in names
        if PurePath(name).suffix in (".pt", ".pth") and not name.lower().startswith(_OF_TRAINING)
    )
