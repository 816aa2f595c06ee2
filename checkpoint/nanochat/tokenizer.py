"""The tokenizer files of a model folder, from nanochat's tokenizer.pkl.

Owns what stands in each of them. The form of tokenizer.json is
`checkpoint.tiktoken_files`' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.nanochat.chat import ASSISTANT_END, BOS, CHAT_TEMPLATE, CHAT_TOKENS, ends
from checkpoint.tiktoken_files.encoding import Encoding, read_pickled
from checkpoint.tiktoken_files.tokenizer_json import tokenizer_json
from configs.errors import TokenizerError

_OTHERS = "use the tokenizer.pkl that belongs to these weights"


@dataclass(frozen=True)
class TokenizerMade:
    """What comes of a tokenizer.

    Attributes:
        files: Name to content.
        ids: Keys of config.json that name tokens.
        chat: Whether it has all that a conversation takes.
    """

    files: Mapping[str, bytes]
    ids: Mapping[str, Any]
    chat: bool


def make_tokenizer(path: Path, vocabulary: int, context: int) -> TokenizerMade:
    """Make the files.

    Args:
        path: tokenizer.pkl.
        vocabulary: Tokens that the model has.
        context: Positions that it has.

    Raises:
        TokenizerError: It is not of these weights, or can't be had as tokenizer.json.
        PickleError: It is no pickle that can be read.
    """
    encoding = read_pickled(path)
    _check(encoding, vocabulary)
    special = encoding.special
    chat = all(token in special for token in CHAT_TOKENS)
    stop = ends(special)
    settings = {
        "add_bos_token": True,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": ASSISTANT_END if ASSISTANT_END in special else BOS,
        "model_max_length": context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {"bos_token_id": special[BOS], "eos_token_id": stop}
    files = {
        "tokenizer.json": tokenizer_json(encoding),
        "tokenizer_config.json": _json(settings),
        "generation_config.json": _json(generation),
    }
    if chat:
        files["chat_template.jinja"] = CHAT_TEMPLATE.encode()
    return TokenizerMade(files, generation, chat)


def _check(encoding: Encoding, vocabulary: int) -> None:
    if encoding.highest_id >= vocabulary:
        what = f"has token id {encoding.highest_id}, and the model has {vocabulary} tokens"
        raise TokenizerError(encoding.where, what, _OTHERS)
    if BOS not in encoding.special:
        raise TokenizerError(encoding.where, f"has no special token {BOS}", _OTHERS)
    highest = max(encoding.ranks.values())
    early = [text for text, number in encoding.special.items() if number <= highest]
    if early:
        what = f"has the special token {early[0]} among ordinary ones"
        raise TokenizerError(encoding.where, what, _OTHERS)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
