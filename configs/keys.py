"""Every key that a TOML file, `--set` or a flag can set: what it takes, and its default.

The one list that files, flags and tables are read by. What a key means is told where its table is,
in `configs.schema`; this module is apart from it so that a command's help costs little.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from configs.checks import (
    Check,
    biases,
    choice,
    file_path,
    integer,
    letters,
    path_or,
    plain_name,
    real,
    size,
    switch,
    text,
    texts,
    tokens,
)
from configs.json_check import json_of
from configs.mixtures import RECIPES


class Mode(NamedTuple):
    """What a quantization mode allows; the first of each is its default."""

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "affine": Mode((4, 2, 3, 5, 6, 8), (64, 32, 128)),
        "mxfp4": Mode((4,), (32,)),
        "nvfp4": Mode((4,), (16,)),
        "mxfp8": Mode((8,), (32,)),
    }
)

BITS = choice(2, 3, 4, 5, 6, 8)
GROUP_SIZE = choice(16, 32, 64, 128)
MODE = choice(*MODES)


class Key(NamedTuple):
    """What a key takes, and its built-in default; None when it is then not set."""

    check: Check
    default: object = None


def _layer_rules(value: object) -> object:
    from configs.quantization import layer_rules

    return layer_rules(value)


KEYS: Mapping[str, Key] = MappingProxyType(
    {
        "model.name": Key(plain_name()),
        "model.source": Key(text("a hub id or a folder", "PATH_OR_HUB_ID")),
        "model.revision": Key(text("a branch, tag or commit", "REVISION")),
        "model.path": Key(file_path()),
        "model.adapter": Key(file_path()),
        "model.draft": Key(file_path()),
        "model.step": Key(integer(0)),
        "convert.quantize": Key(switch(), False),
        "convert.dequantize": Key(switch(), False),
        "convert.bits": Key(BITS, MODES["affine"].bits[0]),
        "convert.group_size": Key(GROUP_SIZE, MODES["affine"].group_sizes[0]),
        "convert.mode": Key(MODE, "affine"),
        "convert.method": Key(choice("search", "rtn", "calibrated"), "search"),
        "convert.calibrate": Key(path_or("self")),
        "convert.target_bpw": Key(real(1, 16)),
        "convert.target_size": Key(size()),
        "convert.fit": Key(size()),
        "convert.recipe": Key(choice(*RECIPES)),
        "convert.dtype": Key(choice("float16", "bfloat16", "float32")),
        "convert.max_shard_size": Key(size(), 5 * 10**9),
        "convert.softcap": Key(real(0, above=True)),
        "convert.window_pattern": Key(letters("SL")),
        "convert.layers": Key(
            Check("a list of rules, [[convert.layers]] in a file", "RULES", _layer_rules), ()
        ),
        "tokenizer.eos_tokens": Key(texts("a list of tokens"), ()),
        "tokenizer.chat_template": Key(file_path()),
        "tokenizer.pattern": Key(text("a regular expression", "REGEX")),
        "tokenizer.trust_remote_code": Key(switch(), False),
        "generate.temperature": Key(real(0, 100), 0.7),
        "generate.top_p": Key(real(0, 1, above=True), 0.95),
        "generate.top_k": Key(integer(0), 0),
        "generate.min_p": Key(real(0, 1), 0.0),
        "generate.xtc_probability": Key(real(0, 1), 0.0),
        "generate.xtc_threshold": Key(real(0, 0.5), 0.1),
        "generate.repetition_penalty": Key(real(0, above=True), 1.0),
        "generate.repetition_context": Key(integer(0), 20),
        "generate.presence_penalty": Key(real(-100, 100), 0.0),
        "generate.presence_context": Key(integer(0), 0),
        "generate.frequency_penalty": Key(real(-100, 100), 0.0),
        "generate.frequency_context": Key(integer(0), 0),
        "generate.logit_bias": Key(biases(100), ()),
        "generate.max_tokens": Key(integer(1), 512),
        "generate.min_tokens": Key(integer(0), 0),
        "generate.stop": Key(texts("a list of texts"), ()),
        "generate.stop_token": Key(tokens(), ()),
        "generate.ignore_eos": Key(switch(), False),
        "generate.logprobs": Key(integer(0, 20)),
        "generate.n": Key(integer(1, 128), 1),
        "generate.prompt_lookup": Key(switch(), False),
        "generate.seed": Key(integer(0, 2**64 - 1)),
        "generate.thinking": Key(choice("show", "fold", "hide", "off")),
        "generate.thinking_budget": Key(integer(0)),
        "generate.tools": Key(json_of(list, "a JSON list of tools, in OpenAI's form")),
        "generate.json_schema": Key(json_of(dict, "a JSON schema, which is an object")),
        "generate.regex": Key(text("a regular expression", "REGEX")),
        "generate.choice": Key(texts("a list of texts"), ()),
        "generate.calculator": Key(switch(), False),
        "generate.system": Key(text("text", empty=True)),
        "memory.context": Key(integer(1)),
        "memory.load_bits": Key(choice(4, 8)),
        "memory.kv_bits": Key(choice(4, 8)),
        "memory.kv_start": Key(integer(0), 0),
        "memory.batch_size": Key(integer(1, 4096), 32),
        "memory.limit": Key(size()),
    }
)

TABLE_NAMES = tuple(dict.fromkeys(key.partition(".")[0] for key in KEYS))
