"""The tokenizer.json of what tiktoken holds.

tiktoken merges the two neighbours whose bytes together have the lowest rank; `tokenizers`
follows a list of merges. That list is every way to cut a token into two others, in order
of the token's rank. A piece that is a token as it is, is that token to both.

Owns the form, and the check that the result gives every special token its id and no
ordinary text one. Imports `tokenizers` when it is called.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from checkpoint.json_file import quoted
from checkpoint.tiktoken_files.encoding import Encoding
from checkpoint.tiktoken_files.pattern import for_tokenizers
from configs.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LONGEST_TOKEN = 4096
_MEND = "save the tokenizer as tokenizer.json by other means"


def tokenizer_json(encoding: Encoding) -> bytes:
    """The file's content.

    Raises:
        TokenizerError: The encoding can't be had in that form.
    """
    from tokenizers import Tokenizer

    pattern = for_tokenizers(encoding.pattern, encoding.where)
    content = _content(encoding, pattern)
    text = json.dumps(content, ensure_ascii=False)
    try:
        made = Tokenizer.from_str(text)
        content["pre_tokenizer"]["pretokenizers"][0] |= _what_is_kept(made, pattern)
        text = json.dumps(content, ensure_ascii=False)
        made = Tokenizer.from_str(text)
        plain = Tokenizer.from_str(json.dumps({**content, "added_tokens": []}, ensure_ascii=False))
        _check(encoding, made, plain)
    except TokenizerError:
        raise
    except Exception as error:  # the library raises nothing narrower
        what = f"can't be made a tokenizer.json ({error})"
        raise TokenizerError(encoding.where, what, _MEND) from error
    return text.encode()


def _content(encoding: Encoding, pattern: str) -> dict[str, Any]:
    letters = byte_letters()
    vocabulary = {
        "".join(map(letters.__getitem__, token)): number
        for token, number in sorted(encoding.ranks.items(), key=lambda item: item[1])
    }
    merges = [
        ["".join(map(letters.__getitem__, part)) for part in pair] for pair in _merges(encoding)
    ]
    special = sorted(encoding.special.items(), key=lambda item: item[1])
    count = len(vocabulary)
    if [number for _, number in special] != list(range(count, count + len(special))):
        # The library numbers added tokens on from the vocabulary's count, unless they are in it.
        vocabulary |= dict(special)
        if len(vocabulary) != count + len(special):
            raise TokenizerError(encoding.where, "spells a special token as an ordinary one", _MEND)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text, number in special
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _merges(encoding: Encoding) -> Iterator[tuple[bytes, bytes]]:
    """Every way to cut a token into two, by the ranks of the whole and of its parts."""
    ranks = encoding.ranks
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > _LONGEST_TOKEN:
            what = f"has a token of {len(token)} bytes"
            raise TokenizerError(encoding.where, what, _MEND)
        pairs = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in ranks and token[cut:] in ranks
        ]
        yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def byte_letters() -> dict[int, str]:
    """The character that stands for each byte in a tokenizer.json of byte-level tokens.

    Bytes that print as Latin-1 stand for themselves, the others for what follows U+00FF.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {value: chr(value) for value in printed}
    others = [value for value in range(256) if value not in letters]
    return letters | {value: chr(0x100 + index) for index, value in enumerate(others)}


def _what_is_kept(made: Tokenizer, pattern: str) -> dict[str, Any]:
    """How to cut: text between matches tiktoken drops, where a pattern leaves any."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    matches = Split(Regex(pattern), behavior="removed", invert=True)
    left = [char for char in _samples() if not matches.pre_tokenize_str(char)]
    return {"behavior": "Removed", "invert": True} if left else {}


def _samples() -> list[str]:
    """Some characters of every general category."""
    found: dict[str, list[str]] = {}
    for number in range(0x20000):
        members = found.setdefault(unicodedata.category(chr(number)), [])
        if len(members) < 40 and not 0xD800 <= number < 0xE000:
            members.append(chr(number))
    return [char for members in found.values() for char in members]


def _check(encoding: Encoding, made: Tokenizer, plain: Tokenizer) -> None:
    """Hold special tokens to their ids, and ordinary text to ordinary tokens."""
    numbers = set(encoding.special.values())
    for text, number in encoding.special.items():
        told = f"special token {quoted(text)}"
        if made.token_to_id(text) != number or made.encode(text).ids != [number]:
            raise TokenizerError(encoding.where, f"{told} does not come out as {number}", _MEND)
        if numbers.intersection(plain.encode(text).ids):
            what = f"{told} comes out of text that only spells it"
            raise TokenizerError(encoding.where, what, _MEND)
    size = len(encoding.ranks) + len(encoding.special)
    if made.get_vocab_size() != size:
        what = f"comes out with {made.get_vocab_size()} tokens, not {size}"
        raise TokenizerError(encoding.where, what, _MEND)
