"""`--calibrate self`: the model writes the text that it is calibrated on.

It is loaded as it is where it fits into memory, else quantized to 8 or 4 bits, which changes
what it writes little; where that does not fit either, a text of the user's own is asked for.
What it wrote lies beside the state of the calibration, so that one which goes on reads it
again. Owns that choice and that file; the writing is `writer`'s.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from checkpoint import disk
from checkpoint.architecture.kv_cost import cost_of_placeholders
from checkpoint.architecture.mapping import ModelMap, map_model
from checkpoint.architecture.recipes import Recipe
from checkpoint.architecture.rotations import tune_rotations
from checkpoint.recognise import Choices, open_source
from checkpoint.source import SourceFolder
from configs.errors import DiskError, GenerationError
from convert.calibration.beginnings import Beginnings, beginnings
from convert.calibration.text import FLAG, CalibrationText, most_windows, window_of
from convert.calibration.writer import write
from convert.quality.texts import fingerprint
from inference.device import Placement, allocating, cast, kv_budget, wired
from inference.plain import LOAD_BITS, fill_by_recipes, pack_placeholders
from inference.template import ChatTemplate, find_template
from inference.tokenizer import Tokenizer, load_tokenizer

SELF = "self"
_FILE = "self.json"
_FILE_BYTES = 64 << 20
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_GROUP = 64
_FEWEST_TOGETHER = 4  # rows, whose KV caches must fit beside the weights


@dataclass(frozen=True)
class OwnText:
    """A text that is still to be written.

    Attributes:
        shape: Rows, and positions of each.
        bits: Of the weights that write it; None for all that the source has.
        weight_bytes: About what those take in memory.
        kv_bytes: Most that the KV caches may take beside them.
        beginnings: Of the rows.
        tokenizer: The model's.
        placement: Where it runs.
    """

    shape: tuple[int, int]
    bits: int | None
    weight_bytes: int
    kv_bytes: int
    beginnings: Beginnings
    tokenizer: Tokenizer
    placement: Placement
    name: str = SELF

    @property
    def nbytes(self) -> int:
        """About how much memory writing takes."""
        return self.weight_bytes + self.kv_bytes

    @property
    def tokens(self) -> int:
        """Positions in all."""
        return math.prod(self.shape)

    @property
    def recorded(self) -> Mapping[str, Any]:
        """What decides what will be written, beside the model: as long as it is not."""
        begun = json.dumps(asdict(self.beginnings), default=sorted, sort_keys=True)
        return {
            "written_by_the_model": {
                "rows": self.shape[0],
                "positions": self.shape[1],
                "chats": self.shape[0] // 2 if self.beginnings.chats else 0,
                "bits": self.bits,
                "beginnings_sha256": hashlib.sha256(begun.encode()).hexdigest(),
            }
        }


def plan_own_text(
    source: SourceFolder,
    config: Mapping[str, Any],
    model_map: ModelMap,
    chat_template: bytes | None,
    limit: int | None = None,
) -> OwnText:
    """What the model will write, checked as far as can be before it does.

    Args:
        source: The source folder.
        config: Its config.json.
        model_map: The mapping onto the architecture.
        chat_template: A template that replaces the source's own.
        limit: Most memory that MLX may take; None for its own.

    Raises:
        GenerationError: the model does not fit into memory.
        TemplateError: the chat template can't be parsed.
        TokenizerError: the source has no tokenizer that can be used.
    """
    tokenizer = load_tokenizer(source.path, config)
    if chat_template is None:
        template = find_template(source.path)
    else:
        template = ChatTemplate(chat_template.decode("utf-8"), "--chat-template")
    shape = (most_windows(config), window_of(config))
    rows = model_map.config.get("vocab_size")
    vocabulary = rows if isinstance(rows, int) else tokenizer.highest_id + 1
    tokenizer.check_rows(vocabulary)
    placement = _placement()
    cost = cost_of_placeholders(model_map.model)
    # Twice, since placeholders have the source's dtype; a row may have a token in front.
    row = (2 if placement.dtype else 1) * cost.decoding(shape[1] + 1)
    bits, weights, left = _fitting(model_map.recipes, placement, limit, _FEWEST_TOGETHER * row)
    begun = beginnings(tokenizer, template, vocabulary, shape[1])
    kv_bytes = min(left, (shape[0] + 2) * row)
    return OwnText(shape, bits, weights, kv_bytes, begun, tokenizer, placement)


def written(
    text: OwnText,
    source: SourceFolder,
    choices: Choices,
    recipes: Mapping[str, Recipe],
    folder: Path | None,
    note: Callable[[str], None],
) -> CalibrationText:
    """The text: what lies in a folder, or what the model now writes, which then lies there.

    Args:
        text: What is to be written.
        source: The source folder.
        choices: What the user says of it.
        recipes: How each of the model's parameters is made.
        folder: Of the calibration, made if it is not there; None to keep nothing.
        note: Told what goes on.

    Raises:
        DiskError: reading or writing failed.
        GenerationError: there is too little memory, or the weights are damaged.
    """
    ids = None if folder is None else _kept(folder / _FILE, text)
    if ids is None:
        chats, refused = text.recorded["written_by_the_model"]["chats"], text.beginnings.refused
        weights = "" if text.bits is None else f", its weights at {text.bits} bits to fit memory"
        note(
            f"{FLAG} {SELF}: the model writes {text.tokens:,} tokens in {text.shape[0]} rows, "
            f"{chats} of them answers of a chat{weights}"
        )
        if refused:
            note(f"{FLAG} {SELF}: the chat template is not used: {refused}")
        ids = _write(text, source, choices, recipes, note)
        if folder is not None:
            if not disk.is_there(folder):
                disk.make_folder(folder)
            disk.replace_whole(folder / _FILE, json.dumps(ids).encode())
    content = "\n".join(text.tokenizer.decode(row) for row in ids)
    recorded = {**fingerprint(content), **text.recorded}
    return CalibrationText(SELF, recorded, mx.array(ids, mx.int32))


def _write(
    text: OwnText,
    source: SourceFolder,
    choices: Choices,
    recipes: Mapping[str, Recipe],
    note: Callable[[str], None],
) -> list[list[int]]:
    began = time.perf_counter()
    opened = open_source(source.path, choices, None)
    mapped = replace(map_model(opened.config, opened.catalog), recipes=dict(recipes))
    with allocating(), wired(text.placement):
        if text.bits is not None:
            pack_placeholders(mapped.model, text.bits)
        model = fill_by_recipes(mapped)
        model.eval()
        cast(model, text.placement)
        tune_rotations(model, mapped.config, text.shape[1])
        heads = next((mapped.config[key] for key in _HEADS if mapped.config.get(key)), None)
        ids = write(
            model,
            text.beginnings,
            text.shape,
            budget_bytes=text.kv_bytes,
            attention_heads=None if text.placement.fused_attention else heads,
            note=note,
        )
    del model, mapped
    mx.clear_cache()
    note(f"{FLAG} {SELF}: written in {time.perf_counter() - began:,.1f} s")
    return ids


def _kept(path: Path, text: OwnText) -> list[list[int]] | None:
    """What lies there from before; None if nothing that can be used does."""
    with suppress(DiskError, ValueError, TypeError, RecursionError):
        if not disk.is_there(path):
            return None
        ids = json.loads(disk.read_whole(path, _FILE_BYTES))
        rows, window = text.shape
        numbers = [each for row in ids if len(row) == window for each in row]
        if len(ids) == rows and len(numbers) == text.tokens and _are_ids(numbers):
            return [list(row) for row in ids]
    return None


def _are_ids(numbers: Sequence[object]) -> bool:
    return all(type(each) is int and 0 <= each < 1 << 31 for each in numbers)


def _placement() -> Placement:
    """Where this process computes anyway."""
    if mx.default_device() == mx.Device(mx.cpu):
        return Placement("cpu", "float32")
    return Placement("metal" if mx.metal.is_available() else "cuda", None)


def _fitting(
    recipes: Mapping[str, Recipe], placement: Placement, limit: int | None, beside: int
) -> tuple[int | None, int, int]:
    """The bits of the weights that write, their bytes, and the bytes that are left beside them.

    The bits are None for the weights as the source has them.
    """
    for bits in (None, *LOAD_BITS):
        nbytes = sum(_bytes(recipe, placement, bits) for recipe in recipes.values())
        left = kv_budget(placement, nbytes, limit)
        if left is None:
            return bits, nbytes, sys.maxsize
        if left >= beside:
            return bits, nbytes, left
    raise GenerationError(
        f"{FLAG} {SELF}",
        f"the model does not fit into memory to write, not even at {LOAD_BITS[-1]} bits, which "
        f"are {nbytes:,} bytes",
        f"name a text with {FLAG}: that takes the memory of one block",
    )


def _bytes(recipe: Recipe, placement: Placement, bits: int | None) -> int:
    """Of a parameter in memory, about."""
    floating = mx.issubdtype(recipe.dtype, mx.floating)
    size = 4 if placement.dtype == "float32" and floating else recipe.dtype.size
    shape = recipe.shape
    count = math.prod(shape)
    if bits is None or len(shape) < 2 or shape[-1] % _GROUP:
        return count * size
    return count * bits // 8 + count // _GROUP * 2 * size
