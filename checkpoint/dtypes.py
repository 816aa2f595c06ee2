"""The element types of safetensors files, and what MLX makes of each.

Owns the table. Knows nothing of files or of what a tensor is used for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dtype:
    """One safetensors element type that MLX can carry.

    Attributes:
        name: As safetensors writes it, such as "BF16".
        itemsize: Bytes of one element.
        mlx: The name in `mlx.core` of the type whose bytes are these.
        is_float: Whether the elements are real floating-point numbers.
        needs_scales: The bytes are an 8-bit float that MLX holds as "uint8": their
            values are known only to an architecture that finds the scales too.
    """

    name: str
    itemsize: int
    mlx: str
    is_float: bool = False
    needs_scales: bool = False


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("BOOL", 1, "bool_"),
        Dtype("U8", 1, "uint8"),
        Dtype("I8", 1, "int8"),
        Dtype("U16", 2, "uint16"),
        Dtype("I16", 2, "int16"),
        Dtype("U32", 4, "uint32"),
        Dtype("I32", 4, "int32"),
        Dtype("U64", 8, "uint64"),
        Dtype("I64", 8, "int64"),
        Dtype("F16", 2, "float16", is_float=True),
        Dtype("BF16", 2, "bfloat16", is_float=True),
        Dtype("F32", 4, "float32", is_float=True),
        Dtype("C64", 8, "complex64"),
        Dtype("F8_E4M3", 1, "uint8", needs_scales=True),
        Dtype("F8_E8M0", 1, "uint8", needs_scales=True),
    )
}

# safetensors 0.8 knows these, MLX has no place for them.
NOT_CARRIED = frozenset(
    {"F4", "F6_E2M3", "F6_E3M2", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F64"}
)


def carried_names() -> str:
    """The types that can be carried, for a message."""
    return ", ".join(
        f"{dtype.name} (with its scales)" if dtype.needs_scales else dtype.name
        for dtype in DTYPES.values()
    )
