"""A nanochat checkpoint's config.json, with every constant that its files leave out.

Owns the translation of nanochat's `model_config`, the check of it against the tensors, and
the words for what had to be assumed. The oldest state becomes mlx-lm's `nanochat`, the
others our own. Knows nothing of files or of tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.json_file import json_value
from checkpoint.nanochat.eras import SMEAR_WIDTH, Era, Shapes
from configs.errors import ModelConfigError

OURS = "nanochat_2026"
"""The model type of nanochat's later states."""

_EPS = 1.1920928955078125e-07  # float32's, which torch's rms_norm takes when it is given none
_PADDED_TO = 64
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Overrides:
    """What the user says of what the files can't tell.

    Attributes:
        softcap: Of the logits.
        window_pattern: Of the layers, "S" and "L", repeated.
    """

    softcap: float | None = None
    window_pattern: str | None = None


@dataclass(frozen=True)
class Sizes:
    """nanochat's `model_config`, checked.

    Attributes:
        context: sequence_len.
        vocabulary: vocab_size, without what it is padded by.
        layers: n_layer.
        heads: n_head.
        kv_heads: n_kv_head.
        width: n_embd.
        window_pattern: None where the file has none.
    """

    context: int
    vocabulary: int
    layers: int
    heads: int
    kv_heads: int
    width: int
    window_pattern: str | None = None


@dataclass(frozen=True)
class Described:
    """A config.json, and what there is to say about it."""

    config: dict[str, Any]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def read_sizes(meta: Mapping[str, Any], path: Path) -> Sizes:
    """The sizes in a meta file.

    Raises:
        ModelConfigError: One is missing or can't be.
    """
    table = meta.get("model_config")
    if not isinstance(table, dict):
        raise ModelConfigError(path, "has no object named model_config", "download it again")

    def size(key: str) -> int:
        value = table.get(key)
        if type(value) is not int or not 0 < value <= _LARGEST:
            found = f"is {json_value(value)}" if key in table else "is missing"
            raise ModelConfigError(path, f"model_config.{key} {found}", "download it again")
        return value

    pattern = table.get("window_pattern")
    if pattern is not None and (not isinstance(pattern, str) or not is_pattern(pattern)):
        what = f"model_config.window_pattern is {json_value(pattern)}"
        raise ModelConfigError(path, what, "it is made of S and L")
    sizes = Sizes(
        size("sequence_len"),
        size("vocab_size"),
        size("n_layer"),
        size("n_head"),
        size("n_kv_head"),
        size("n_embd"),
        pattern,
    )
    if sizes.width % sizes.heads or sizes.heads % sizes.kv_heads:
        what = f"n_embd {sizes.width}, n_head {sizes.heads} and n_kv_head {sizes.kv_heads}"
        raise ModelConfigError(path, f"{what} do not divide each other", "download it again")
    return sizes


def is_pattern(text: str) -> bool:
    """Whether a text says which layers see far."""
    return 0 < len(text) <= 4096 and set(text.upper()) <= {"S", "L"}


def describe(sizes: Sizes, era: Era, shapes: Shapes, overrides: Overrides, path: Path) -> Described:
    """The config.json of a checkpoint.

    Args:
        sizes: Its meta file's.
        era: By its tensors.
        shapes: Those tensors.
        overrides: The user's.
        path: The meta file, for messages.

    Raises:
        ModelConfigError: The sizes are not those of the tensors.
    """
    _check_sizes(sizes, shapes, path)
    warnings: list[str] = []
    if era.doubt and overrides.softcap is None:
        warnings.append(era.doubt)
    pattern = _pattern(sizes, era, overrides, warnings)
    softcap = era.softcap if overrides.softcap is None else overrides.softcap
    short = era.short_window(sizes.context)
    windows = [
        short if pattern[layer % len(pattern)] == "S" else sizes.context
        for layer in range(sizes.layers)
    ]
    windows[-1] = sizes.context
    plain = not era.lambdas and softcap == era.softcap and set(windows) == {sizes.context}
    config = _common(sizes, era, softcap)
    config |= _for_mlx_lm() if plain else _for_ours(sizes, era, windows)
    notes = [f"a nanochat checkpoint, by its tensors of {era.name}"]
    rows = shapes["transformer.wte.weight"][0]
    if rows > sizes.vocabulary:
        notes.append(
            f"{rows - sizes.vocabulary} rows of the embeddings and of the head, which pad the "
            f"vocabulary of {sizes.vocabulary}, are left out"
        )
    return Described(config, tuple(notes), tuple(warnings))


def padded(vocabulary: int) -> int:
    """Rows that nanochat gives a vocabulary."""
    return -(-vocabulary // _PADDED_TO) * _PADDED_TO


def _check_sizes(sizes: Sizes, shapes: Shapes, path: Path) -> None:
    rows = {sizes.vocabulary, padded(sizes.vocabulary)}
    for name in ("transformer.wte.weight", "lm_head.weight"):
        shape = shapes.get(name)
        if shape is None:
            raise ModelConfigError(path, f"the checkpoint has no {name}", "download it again")
        if len(shape) != 2 or shape[0] not in rows or shape[1] != sizes.width:
            what = f"vocab_size {sizes.vocabulary}, n_embd {sizes.width}: {name} is {list(shape)}"
            raise ModelConfigError(path, what, "take the meta file of the same step")
    found = sum(name.endswith(".attn.c_q.weight") for name in shapes)
    if found != sizes.layers:
        what = f"n_layer {sizes.layers}: the checkpoint has {found} layers"
        raise ModelConfigError(path, what, "take the meta file of the same step")


def _pattern(sizes: Sizes, era: Era, overrides: Overrides, warnings: list[str]) -> str:
    if overrides.window_pattern is not None:
        return overrides.window_pattern.upper()
    if sizes.window_pattern is not None:
        return sizes.window_pattern.upper()
    if era.lambdas:
        warnings.append(
            "the meta file has no window_pattern: that every layer sees the whole context is "
            "assumed, as nanochat does; else add --set convert.window_pattern=SSSL"
        )
    return "L"


def _common(sizes: Sizes, era: Era, softcap: float) -> dict[str, Any]:
    return {
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.width // sizes.heads,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.context,
        "hidden_act": "relu2",
        "rope_theta": era.theta,
        "final_logit_softcapping": softcap,
        "tie_word_embeddings": False,
    }


def _for_mlx_lm() -> dict[str, Any]:
    """What mlx-lm's and transformers' `nanochat` take; their epsilons are their own."""
    return {"model_type": "nanochat", "architectures": ["NanoChatForCausalLM"]}


def _for_ours(sizes: Sizes, era: Era, windows: list[int]) -> dict[str, Any]:
    tables = range((sizes.layers - 1) % 2, sizes.layers, 2) if era.gate_width else ()
    return {
        "model_type": OURS,
        "rms_norm_eps": _EPS,
        "qk_scale": era.qk_scale,
        "attention_windows": windows,
        "residual_lambdas": era.lambdas,
        "value_embedding_layers": list(tables),
        "value_gate_width": era.gate_width,
        "value_gate_scale": era.gate_scale,
        "smear_gate_width": SMEAR_WIDTH if era.smear else 0,
        "backout_layer": sizes.layers // 2 if era.smear else None,
    }
