"""The layers that bits can be chosen for, and the forms that each can take.

Asks the model's own modules and rules what may be quantized, before anything is. Knows the exact
bytes of every form; knows nothing of what a form loses.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from configs.quantization import MODES, ConvertTable
from convert.plan import Quantization

_WORD_BITS = 32
_WORD_BYTES = 4


@dataclass(frozen=True)
class Layer:
    """A module whose bits can be chosen.

    Attributes:
        path: Of the module; the parameter is its `weight`.
        shape: Of the weight, [..., rows, columns].
        dtype: Of the weight, and so of scales and biases of affine codes.
        forms: How it can be packed: the likelier first, which wins where two are equal.
        is_embedding: Whether rows are looked up in it.
        number: Which decoder layer it is in, from zero; None outside of them.
    """

    path: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    forms: tuple[Quantization, ...]
    is_embedding: bool
    number: int | None

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def role(self) -> str:
        """The last part of its path, which says what it does: `q_proj`, `lm_head`."""
        return self.path.rpartition(".")[2]

    def nbytes(self, form: Quantization) -> int:
        """Bytes of codes, scales and biases."""
        groups = self.size // form.group_size
        scales = groups * (2 * self.dtype.size if form.mode == "affine" else 1)
        return self.size * form.bits // _WORD_BITS * _WORD_BYTES + scales


def layers_of(model: Any, table: ConvertTable) -> list[Layer]:
    """The layers of a model that no rule, and nothing of the architecture, decides on.

    Args:
        model: mlx-lm's model, not quantized yet.
        table: The rules, and the method, which may be for affine codes alone.
    """
    own: Callable[[str, nn.Module], bool | dict[str, Any]] | None = getattr(
        model, "quant_predicate", None
    )
    numbers = {
        id(module): number
        for number, block in enumerate(model.layers)
        for module in block.modules()
    }
    found = []
    for path, module in model.named_modules():
        if not hasattr(module, "to_quantized") or not hasattr(module, "weight"):
            continue
        if any(fnmatchcase(path, rule.pattern) for rule in table.layers):
            continue
        weight = module.weight
        if not mx.issubdtype(weight.dtype, mx.floating):
            continue
        if own is not None and own(path, module) is not True:
            continue
        forms = tuple(_forms(module, weight.shape[-1], only_affine=table.method == "calibrated"))
        if forms:
            is_embedding = isinstance(module, nn.Embedding)
            number = numbers.get(id(module))
            found.append(Layer(path, weight.shape, weight.dtype, forms, is_embedding, number))
    return found


def _forms(module: nn.Module, columns: int, *, only_affine: bool) -> Iterator[Quantization]:
    """The forms of a module, those of the usual mode and group sizes first."""
    takes_mode = "mode" in inspect.signature(module.to_quantized).parameters
    for mode, allowed in MODES.items():
        if mode != "affine" and (only_affine or not takes_mode):
            continue
        for size in allowed.group_sizes:
            if columns % size:
                continue
            for bits in sorted(allowed.bits):
                yield Quantization(bits, size, mode)
