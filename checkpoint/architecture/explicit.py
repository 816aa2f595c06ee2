"""Makes a config.json explicit, so that mlx-lm computes what transformers computes.

Owns the judgement on each value: made explicit, kept, or refused by name. Asks
`meaning` what transformers holds, `reviewed` what mlx-lm has built in, and `rope`
whether the rotations agree. Knows nothing of weights beyond their names and shapes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoint.architecture import mlx_lm_models, nanochat_names, rope, rotations
from checkpoint.architecture.carry import BUILD_ERRORS
from checkpoint.architecture.config_values import tagged, untagged
from checkpoint.architecture.meaning import Meaning, transformers_meaning
from checkpoint.architecture.reviewed import (
    ARCHITECTURES,
    BOOKKEEPING,
    BUILT_IN,
    ROPE_KEYS,
    TEXT_TYPES,
    TOKEN_IDS,
    UNJUDGED,
    Architecture,
)
from checkpoint.dimensions import check_dimensions
from configs.errors import ArchitectureError

WHERE = "config.json"
LEAST_CONTEXT = 1024  # a folder limited to fewer positions than this is refused instead
HOPE = "it can be converted once mlx-lm's architecture reads it"


@dataclass(frozen=True)
class ExplicitConfig:
    """A config.json to write, and what there is to say about it, a line each."""

    config: dict[str, Any]
    notes: tuple[str, ...]


def make_explicit(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> ExplicitConfig:
    """The config that says in full what `config` means to transformers.

    Args:
        config: A checkpoint's config.json.
        shapes: The checkpoint's tensors: {name: shape}.

    Raises:
        ArchitectureError: mlx-lm has no such architecture, or can't honour a value.
        ModelConfigError: a value is no value, to us or to transformers.
    """
    source = nanochat_names.present_keys(untagged(config))
    check_dimensions(source)
    classes = mlx_lm_models.load_classes(
        source["model_type"], tuple(source.get("architectures") or ())
    )
    if source["model_type"] in mlx_lm_models.OWN_MODULES:
        return ExplicitConfig(tagged(source), ())  # ours; it says all that there is to say
    meaning = transformers_meaning(source)
    if meaning is None:
        note = f"transformers has no class for {source['model_type']!r}: its values are kept"
        return ExplicitConfig(tagged(source), (note,))
    notes: list[str] = []
    if meaning.text is not None and "text_config" in _fields(classes):
        # whether the head is tied, the whole model's config says
        tied = {"tie_word_embeddings": meaning.get("tie_word_embeddings")}
        meaning = dataclasses.replace(meaning.text, values={**meaning.text.values, **tied})
        module = _text_module(classes, meaning)
        text = _explicit_part(source.get("text_config") or {}, meaning, module, shapes, notes)
        written = {**source, "text_config": text}
    else:
        written = _explicit_part(source, meaning, classes.name, shapes, notes)
    model = _build(classes, written)
    _refuse_untied(model, meaning, classes.name)
    notes += rotations.check_rotations(model, meaning.values, classes.name)
    return ExplicitConfig(tagged(written), tuple(notes))


def _explicit_part(
    source: Mapping[str, Any],
    meaning: Meaning,
    module: str | None,
    shapes: Mapping[str, tuple[int, ...]],
    notes: list[str],
) -> dict[str, Any]:
    """The config of one model, or of a multimodal model's text part.

    Args:
        module: mlx-lm's module for it; None if it is part of another.
    """
    model_type = meaning.values["model_type"]
    if module is None:
        notes.append(f"{model_type!r} was not judged value by value: only its RoPE is checked")
        return _written(source, meaning, {}, Architecture(), notes)
    row = ARCHITECTURES.get(model_type, ARCHITECTURES.get(module))
    if row is None:
        row = Architecture()
        notes.append(f"{model_type!r} was not reviewed: only general rules were applied")
    fields = _fields(mlx_lm_models.load_classes(module))
    _refuse_unhonoured(meaning, fields, row, module, shapes, notes)
    written = _written(source, meaning, fields, row, notes)
    _limit_to_window(written, meaning, fields, row, module, notes)
    return written


def _text_module(classes: mlx_lm_models.ArchitectureClasses, text: Meaning) -> str | None:
    """mlx-lm's module for a multimodal model's text part, if it is one of its own."""
    model_type = text.values["model_type"]
    name = TEXT_TYPES.get(model_type, mlx_lm_models.REMAPPED_TYPES.get(model_type, model_type))
    return name if hasattr(sys.modules[classes.model.__module__], name) else None


def _fields(classes: mlx_lm_models.ArchitectureClasses) -> dict[str, Any]:
    """The keys that mlx-lm's architecture reads, with its defaults."""
    return {field.name: field.default for field in dataclasses.fields(classes.args)}


def _refuse_unhonoured(
    meaning: Meaning,
    fields: Mapping[str, Any],
    row: Architecture,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    notes: list[str],
) -> None:
    """Refuse a value that transformers computes with and mlx-lm's architecture does not."""
    for key, value in meaning.values.items():
        if key in fields and key not in row.unread and key not in row.built_in:
            continue
        if key in UNJUDGED or key in ROPE_KEYS or key in row.carried or key.startswith("_"):
            continue
        if key in ("layer_types", "sliding_window", "tie_word_embeddings"):
            continue  # judged on their own
        if key == "head_dim" and value == _plain_head_dim(meaning):
            continue
        if key not in meaning.defaults and key != "head_dim":
            continue  # transformers' class does not know it either
        allowed = row.built_in.get(key, BUILT_IN.get(key, (meaning.defaults.get(key),)))
        if allowed(meaning.values) if callable(allowed) else value in allowed:
            continue
        if value not in row.near.get(key, ()):
            raise _unhonoured(name, key, value)
        notes.append(f"{key} {value!r}: mlx-lm's {name} computes another form, equal to about 1e-3")
    for tensor in shapes:
        if tensor.endswith(row.ignored_tensors):
            raise ArchitectureError(
                tensor, f"can't be honoured: mlx-lm's {name} leaves it out", HOPE
            )


def _unhonoured(name: str, key: str, value: Any) -> ArchitectureError:
    what = f"{key} {value!r} can't be honoured: mlx-lm's {name} computes something else"
    return ArchitectureError(WHERE, what, HOPE)


def _written(
    source: Mapping[str, Any],
    meaning: Meaning,
    fields: Mapping[str, Any],
    row: Architecture,
    notes: list[str],
) -> dict[str, Any]:
    """The source's config with every value in it that transformers' class holds."""
    values = meaning.values
    written = {
        key: value
        for key, value in source.items()
        if not (key in ROPE_KEYS and meaning.get("rope_parameters"))
    }
    for key, value in values.items():
        if not key.startswith("_") and (key in source or key not in BOOKKEEPING):
            written[key] = value
    for key in fields:
        if key not in written and key in meaning and key not in TOKEN_IDS:
            written[key] = meaning.get(key)
        unknown = key in values and key not in meaning.defaults and key not in ROPE_KEYS
        # transformers' models read a head_dim that their configuration class does not declare
        if unknown and key != "head_dim" and values[key] != fields[key]:
            notes.append(f"{key} {values[key]!r}: read by mlx-lm, unknown to transformers")
    for key, value in _derived(meaning).items():
        if key in fields and written.get(key) is None:
            written[key] = value
    if meaning.get("rope_parameters"):
        written |= rope.written_keys(values, fields, notes)
    for key, rule in row.renamed.items():
        written[key] = values[rule] if isinstance(rule, str) else rule(values)
    if (dtype := values.get("dtype")) is not None:
        written["dtype"] = written["torch_dtype"] = dtype
    return written


def _derived(meaning: Meaning) -> dict[str, Any]:
    """What a missing value stands for in transformers' models of every kind."""
    heads = meaning.get("num_attention_heads")
    derived = {"num_key_value_heads": heads, "head_dim": _plain_head_dim(meaning)}
    return {key: value for key, value in derived.items() if value is not None}


def _plain_head_dim(meaning: Meaning) -> int | None:
    width, heads = meaning.get("hidden_size"), meaning.get("num_attention_heads")
    return width // heads if width and heads else None


def _limit_to_window(
    written: dict[str, Any],
    meaning: Meaning,
    fields: Mapping[str, Any],
    row: Architecture,
    name: str,
    notes: list[str],
) -> None:
    """Where mlx-lm has no sliding window, let the folder promise no more positions than one."""
    kinds = meaning.get("layer_types")
    if kinds is not None and ("layer_types" in fields or "layer_types" in row.carried):
        return
    for key, kind in (("sliding_window", "sliding"), ("attention_chunk_size", "chunked")):
        window, positions = meaning.get(key), meaning.get("max_position_embeddings")
        drawn = kinds is None or any(kind in layer for layer in kinds)
        if not window or not drawn or (positions is not None and window >= positions):
            continue
        if window < LEAST_CONTEXT:
            raise _unhonoured(name, key, window)
        written["max_position_embeddings"] = window
        notes.append(
            f"max_position_embeddings {window}, not {positions}: mlx-lm's {name} does without "
            f"{key}, and up to {window} positions that makes no difference"
        )


def _refuse_untied(model: Any, meaning: Meaning, name: str) -> None:
    """Refuse a head of its own where mlx-lm's model uses the embeddings."""
    from mlx.utils import tree_flatten

    if meaning.get("tie_word_embeddings") is not False:
        return
    parameters = dict(tree_flatten(model.parameters()))
    if not any(key.endswith(("head.weight", "out.weight", "output.weight")) for key in parameters):
        raise _unhonoured(name, "tie_word_embeddings", False)


def _build(classes: mlx_lm_models.ArchitectureClasses, config: Mapping[str, Any]) -> Any:
    """mlx-lm's model for a config; its arrays are lazy, so nothing is allocated."""
    try:
        return classes.model(classes.args.from_dict(dict(config)))
    except BUILD_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise ArchitectureError(
            WHERE,
            f"mlx-lm's {classes.name} can't be built from it ({reason})",
            "is it the checkpoint's own?",
        ) from error
