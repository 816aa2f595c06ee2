"""Rank files: lines of a base64 token and its rank, which say neither pattern nor specials.

Owns the table of those that are known by name, and where else the rest of a tokenizer may
stand: the pattern in the user's own options, special tokens in tokenizer_config.json.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.folder import file_in, files_like
from checkpoint.json_file import json_value, quoted, read_json_object
from checkpoint.tiktoken_files.encoding import Encoding
from checkpoint.tokenizer_files import check_tiktoken
from configs.errors import TokenizerError

SUFFIX = ".tiktoken"
_LIMIT = 100_000_000
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_O200K = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTED}?",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTED}?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_QWEN = (
    rf"{_CONTRACTED}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Known:
    """What a rank file of a known name leaves out.

    Attributes:
        ranks: How many it has.
        pattern: Of Rust's kind.
        special: Tokens and ids.
    """

    ranks: int
    pattern: str
    special: Mapping[str, int]


_END = "<|endoftext|>"
KNOWN: Mapping[str, Known] = {
    "r50k_base": Known(50256, _GPT2, {_END: 50256}),
    "p50k_base": Known(50280, _GPT2, {_END: 50256}),
    "cl100k_base": Known(
        100256,
        _CL100K,
        {
            _END: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Known(199998, _O200K, {_END: 199999, "<|endofprompt|>": 200018}),
    "qwen": Known(
        151643,
        _QWEN,
        {_END: 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
        | {f"<|extra_{index}|>": 151646 + index for index in range(205)},
    ),
}


def rank_file(folder: Path) -> Path | None:
    """The folder's rank file, where that is what its tokenizer is."""
    names = files_like(folder, (f"*{SUFFIX}",))
    return file_in(folder, names[0]) if names else None


def read_rank_file(path: Path, pattern: str | None) -> Encoding:
    """Read a rank file.

    Args:
        path: The file.
        pattern: What the user says of it, in place of what is known.

    Raises:
        TokenizerError: It is none, or nothing says how it cuts text.
        DiskError: It can't be read.
    """
    data = disk.read_whole(path, _LIMIT)
    check_tiktoken(path, data)
    ranks = {}
    for line in data.splitlines():
        token, _, rank = line.partition(b" ")
        ranks[binascii.a2b_base64(token)] = int(rank)
    special = _listed(path.parent)
    known = KNOWN.get(path.name.removesuffix(SUFFIX))
    if known is not None and known.ranks == len(ranks):
        return Encoding(pattern or known.pattern, ranks, special or known.special, path)
    if pattern is None:
        raise TokenizerError(
            path,
            "does not say by which pattern it cuts text, and is none that is known",
            "add --set tokenizer.pattern=..., or save the tokenizer as tokenizer.json",
        )
    return Encoding(pattern, ranks, special, path)


def _listed(folder: Path) -> dict[str, int]:
    """The added tokens of tokenizer_config.json."""
    path = file_in(folder, "tokenizer_config.json")
    table = read_json_object(path, TokenizerError) if path.is_file() else {}
    listed: Any = table.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise TokenizerError(path, "added_tokens_decoder is no object", "download it again")
    found = {}
    for number, token in listed.items():
        text = token.get("content") if isinstance(token, dict) else None
        if not number.isdecimal() or len(number) > 10 or not isinstance(text, str):
            what = f"added_tokens_decoder has {quoted(number)}: {json_value(token)}"
            raise TokenizerError(path, what, "download it again")
        found[text] = int(number)
    return found
