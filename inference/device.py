"""Where a model runs and in what type: the policy in one place.

    device   Metal or CUDA where MLX has it, else the CPU; or what was asked for
    dtype    Metal and CUDA keep the model's own; the CPU computes in float32, since
             its float16 and bfloat16 matrix products are 10 to 50 times slower;
             or what was asked for

What is asked for comes from the flags, else from the environment: MLX_FERRY_DEVICE and
MLX_FERRY_DTYPE take the same words.

Owns the device, its memory limits, and the casting of weights. Knows nothing of
architectures or files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast as typing_cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from configs.errors import GenerationError, UsageError

DEVICES = ("auto", "gpu", "cpu")
DTYPES = ("auto", "float16", "bfloat16", "float32")

_DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
# Apple's GPU generations before M3 compute bfloat16 by way of float32.
_FIRST_WITH_BFLOAT16 = 15


@dataclass(frozen=True)
class Placement:
    """A device, and the type that floats are cast to (None: they stay as they are)."""

    device: str
    dtype: str | None

    def advice(self, dtype: str) -> str | None:
        """What to say when the device does badly what it computes in; None if it does not."""
        if self.device == "cpu" and dtype != "float32":
            return f"the CPU computes many times slower in {dtype} than in float32"
        if self.device == "metal" and dtype == "bfloat16" and not _has_bfloat16():
            return "this GPU has no bfloat16 of its own: --dtype float16 may be faster"
        return None

    @property
    def fused_attention(self) -> bool:
        """Whether attention runs without its whole matrix of scores in memory."""
        return self.device != "cpu"


def place(device: str = "auto", dtype: str = "auto", memory_limit: int | None = None) -> Placement:
    """Choose device and dtype, and set MLX up for them.

    Args:
        device: "auto", "cpu" or "gpu".
        dtype: "auto", "float16", "bfloat16" or "float32".
        memory_limit: Bytes that MLX should stay under; its own limit if None.

    Raises:
        UsageError: There is no such device here, or the environment names none that there is.
    """
    where = "--device" if device != "auto" else "MLX_FERRY_DEVICE"
    device = _asked(device, "MLX_FERRY_DEVICE", DEVICES)
    dtype = _asked(dtype, "MLX_FERRY_DTYPE", DTYPES)
    has_gpu = mx.is_available(mx.gpu)
    if device == "gpu" and not has_gpu:
        raise UsageError(where, "MLX has no GPU here", "use cpu, or auto")
    on_cpu = device == "cpu" or not has_gpu
    mx.set_default_device(mx.cpu if on_cpu else mx.gpu)
    if memory_limit is not None:
        mx.set_memory_limit(memory_limit)
    name = "cpu" if on_cpu else "metal" if mx.metal.is_available() else "cuda"
    chosen = "float32" if dtype == "auto" and on_cpu else None if dtype == "auto" else dtype
    return Placement(name, chosen)


def _asked(given: str, variable: str, allowed: tuple[str, ...]) -> str:
    """What the flag says, else the environment."""
    # A variable that is set to nothing is not set.
    value = (os.environ.get(variable) or "auto") if given == "auto" else given
    if value not in allowed:
        raise UsageError(variable, f"{value!r} is none that there is", f"use {', '.join(allowed)}")
    return value


def _has_bfloat16() -> bool:
    """Whether Apple's GPU has bfloat16 arithmetic; its name says the generation."""
    found = re.fullmatch(r"applegpu_g(\d+)\w*", str(mx.device_info().get("architecture", "")))
    return found is None or int(found[1]) >= _FIRST_WITH_BFLOAT16


def cast(model: nn.Module, placement: Placement) -> str:
    """Bring the model's floats to the placement's dtype, piece by piece, and evaluate them.

    Packed weights stay as they are; the scales and biases of affine quantization are
    floats like any other.

    Returns:
        The dtype that the model computes in.
    """
    target = None if placement.dtype is None else _DTYPES[placement.dtype]
    allows: Callable[[str], bool] = getattr(model, "cast_predicate", lambda _: True)
    for path, module in model.named_modules():
        changed = {}
        for name, value in module.items():
            if not isinstance(value, mx.array):
                continue
            # What begins with _ is no parameter: RoPE's frequencies, which need float32.
            wanted = not name.startswith("_") and allows(f"{path}.{name}" if path else name)
            if target is not None and wanted and mx.issubdtype(value.dtype, mx.floating):
                value = value.astype(target)
                changed[name] = value
            mx.eval(value)
        if changed:
            module.update(changed)
    mx.clear_cache()
    return str(_compute_dtype(model)).removeprefix("mlx.core.")


def parameters(model: nn.Module) -> dict[str, mx.array]:
    """Every parameter by its path."""
    return dict(typing_cast(list[tuple[str, mx.array]], tree_flatten(model.parameters())))


def _compute_dtype(model: nn.Module) -> mx.Dtype:
    """The float type that most of the model's parameters have."""
    sizes: dict[mx.Dtype, int] = {}
    for value in parameters(model).values():
        if mx.issubdtype(value.dtype, mx.floating):
            sizes[value.dtype] = sizes.get(value.dtype, 0) + value.size
    return max(sizes, key=lambda dtype: sizes[dtype], default=mx.float32)


@contextmanager
def allocating() -> Iterator[None]:
    """Name the error when MLX finds no memory.

    Raises:
        GenerationError: In place of MLX's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if "allocat" not in str(error) and "memory" not in str(error).lower():
            raise
        raise GenerationError(
            "memory", f"there is not enough ({error})", "use fewer bits, or a smaller model"
        ) from error


def kv_budget(placement: Placement, weight_bytes: int, limit: int | None) -> int | None:
    """Bytes that KV caches may take beside the weights; None where nothing says.

    A tenth of what there is stays free for activations and the system.

    Args:
        placement: Where the model runs.
        weight_bytes: Of the loaded model.
        limit: Most memory for all of it, where the user gave one.
    """
    if limit is not None:
        return max(0, int(0.9 * (limit - weight_bytes)))
    if placement.device == "cpu":
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        return max(0, int(0.9 * free) - weight_bytes)
    info = mx.device_info()
    for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if whole := info.get(name):
            return max(0, int(0.9 * int(whole)) - weight_bytes)
    return None


@contextmanager
def wired(placement: Placement) -> Iterator[None]:
    """On Metal, keep the model's memory resident while it runs, and restore the limit after."""
    if placement.device != "metal":
        yield
        return
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended is None:
        yield
        return
    before = mx.set_wired_limit(int(recommended))
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_wired_limit(before)
