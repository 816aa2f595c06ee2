"""What a target comes to in bytes, and how: the arithmetic that the plan shows.

Owns the share of a machine's memory that a model may take. Knows nothing of layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from checkpoint.architecture.kv_cost import cost_of_placeholders
from configs.quantization import ConvertTable
from convert.show import gigabytes

# What Metal lets a process keep resident: two thirds of smaller machines, three quarters of others.
_SMALL_MACHINE = 36 << 30
_WIRED = {True: (2, 3), False: (3, 4)}
# As `infer` keeps free for activations and the system.
_FREE_IN_TEN = 1
_CONTEXT = 8192


@dataclass(frozen=True)
class Budget:
    """Most bytes that the result may have.

    Attributes:
        option: Which option asks for it.
        nbytes: So many.
        with_headers: Whether they are those of the weight files, headers included; else of the
            tensors alone.
        told: How it came about, in words.
    """

    option: str
    nbytes: int
    with_headers: bool
    told: str


def budget_of(table: ConvertTable, weights: int, model: Any, context: int | None) -> Budget:
    """The budget of the target that is given.

    Args:
        table: Has one.
        weights: Of the whole model.
        model: mlx-lm's model, not quantized, for the KV cache of `fit`; its parameters may be
            placeholders.
        context: Tokens of that cache; 8192, or as many as the model can, when None.
    """
    if table.target_bpw is not None:
        told = f"at most {table.target_bpw:g} bits per weight, all tensors counted"
        return Budget("target_bpw", int(table.target_bpw * weights / 8), False, told)
    if table.target_size is not None:
        told = f"at most {table.target_size:,} bytes of weight files"
        return Budget("target_size", table.target_size, True, told)
    if table.fit is None:
        raise ValueError("the table has no target")
    tokens = context or min(_CONTEXT, getattr(model.args, "max_position_embeddings", _CONTEXT))
    return _fit(table.fit, tokens, cost_of_placeholders(model).reading(tokens))


def _fit(memory: int, tokens: int, kv: int) -> Budget:
    over, under = _WIRED[memory <= _SMALL_MACHINE]
    wired = memory * over // under
    free = wired * _FREE_IN_TEN // 10
    told = (
        f"{gigabytes(memory)} of memory, of which Metal lets a process use {over}/{under},"
        f" {gigabytes(wired)}; less a tenth of that for activations, {gigabytes(free)},"
        f" and {gigabytes(kv)} of KV cache for {tokens:,} tokens"
    )
    return Budget("fit", wired - free - kv, False, told)
