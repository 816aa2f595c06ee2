"""Checks a folder's tokenizer files without building a tokenizer.

Owns the token ids: each given once, none out of range, none beyond the embedding. A file
of 30 MB takes a second or two and about 120 MB of memory. Knows nothing of how text is
split, and runs no code of the folder.
"""

from __future__ import annotations

import binascii
import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from checkpoint import disk
from checkpoint.folder import TOKENIZER_PATTERNS, file_in, files_like, matches
from checkpoint.json_file import json_type, json_value, parse_text, quoted, read_json_object
from configs.errors import TokenizerError

_LIMIT = 100_000_000
_AGAIN = "download it again"
_LARGEST_ID = 2**32 - 2
# What a tokenizer can be built from, the first found is the one that counts.
_SOURCES = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "spiece.model", "vocab.json")
# No possessive quantifiers around groups: Python before 3.11.5 matches them wrongly.
_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_MERGE = rf"(?:{_STRING}|\[\s*{_STRING}\s*,\s*{_STRING}\s*\])"
_MERGES = re.compile(r'"merges"\s*:\s*(?=\[)')
# So many at a time that matching them takes little memory.
_SOME_MERGES = re.compile(rf"\s*{_MERGE}(?:\s*,\s*{_MERGE}){{0,999}}\s*")
_NO_MERGES = re.compile(r"\[\s*\]")
_RANK = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,10})")


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder's tokenizer is built from.

    Attributes:
        main: The file that counts; anything but "tokenizer.json" must first be turned
            into one.
        highest_id: The highest token id; None if the file's format hides it.
        beyond: Special tokens that the embedding has no row for, each with its id.
    """

    main: str
    highest_id: int | None
    beyond: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Ids:
    """The highest id of all, the highest of ordinary tokens, and the special tokens by id."""

    highest: int
    ordinary: int
    special: dict[int, str]


def _ordinary(highest: int) -> _Ids:
    return _Ids(highest, highest, {})


def check_tokenizer(folder: Path, embedding_rows: int | None = None) -> TokenizerFiles:
    """Check the token ids of a folder's tokenizer.

    A special token that the embedding has no row for is no fault of the folder's, as long
    as no text holds it: models of text alone keep such marks for images.

    Args:
        folder: The model folder.
        embedding_rows: How many tokens the model has; None if that is not known.

    Raises:
        TokenizerError: There is none, it is invalid, needs code of the folder's own, or
            has an ordinary token that the embedding has no row for.
        SourceError: What stands in the place of one of its files is no file.
        DiskError: A file can't be read.
    """
    _refuse_special(folder)
    found = {pattern: files_like(folder, (pattern,)) for pattern in _SOURCES}
    main = next((names[0] for names in found.values() if names), None)
    custom = custom_class(folder)
    if main != "tokenizer.json" and custom:
        what = f"needs the folder's own class {quoted(custom)}, which is not run"
        mend = "save it as tokenizer.json, or let `convert --trust-remote-code` run that code"
        raise TokenizerError(folder / "tokenizer_config.json", what, mend)
    if main is None:
        raise TokenizerError(folder / "tokenizer.json", "is missing", _AGAIN)
    path = file_in(folder, main)
    ids = _ids(path)
    if ids is None or embedding_rows is None:
        return TokenizerFiles(main, ids.highest if ids else None)
    if ids.ordinary >= embedding_rows:
        what = f"has token id {ids.ordinary}, and the embedding has {embedding_rows} rows"
        raise TokenizerError(path, what, "use the tokenizer that belongs to these weights")
    beyond = sorted(number for number in ids.special if number >= embedding_rows)
    named = tuple(f"{_shown(ids.special[number])} ({number})" for number in beyond)
    return TokenizerFiles(main, ids.highest, named)


def _refuse_special(folder: Path) -> None:
    """Name a FIFO, device or folder called as a tokenizer's file, which is not just missing."""
    for name in disk.list_folder(folder):
        path = folder / name
        if matches(name, TOKENIZER_PATTERNS) and path.exists() and not path.is_file():
            with disk.reading(file_in(folder, name)):
                pass  # which raises, saying what it is


def custom_class(folder: Path) -> str | None:
    """The Python class of the folder's own that its tokenizer_config.json names; None if none."""
    path = file_in(folder, "tokenizer_config.json")
    if not path.is_file():
        return None
    auto_map = read_json_object(path, TokenizerError).get("auto_map")
    if isinstance(auto_map, dict):
        auto_map = auto_map.get("AutoTokenizer")
    names = auto_map if isinstance(auto_map, list) else [auto_map]
    return next((name for name in names if isinstance(name, str)), None)


def _ids(path: Path) -> _Ids | None:
    """What is said of a file's ids; None if its format hides them."""
    if path.name == "tokenizer.json":
        return _of_tokenizer_json(path)
    if path.name == "vocab.json":
        vocab = _parse(path)
        if not isinstance(vocab, dict):
            raise TokenizerError(path, f"holds {json_type(vocab)}, not an object", _AGAIN)
        by_id = _by_id(path, vocab.items())
        return _ordinary(max(by_id)) if by_id else None
    data = disk.read_whole(path, _LIMIT)
    if path.suffix == ".tiktoken" or _RANK.fullmatch(data.split(b"\n", 1)[0]):
        return _ordinary(check_tiktoken(path, data))
    if not data:
        raise TokenizerError(path, "is empty", _AGAIN)
    return None


def _parse(path: Path) -> Any:
    """The file's JSON, without the merges, its strings' UTF-8 bytes read as Latin-1.

    So a character costs one byte, and a large vocabulary a third of the memory.
    """
    data = disk.read_whole(path, _LIMIT)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), 1 << 20):
            decoder.decode(data[start : start + (1 << 20)])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as problem:
        raise TokenizerError(path, "is not valid UTF-8", _AGAIN) from problem
    text = data.decode("latin-1")
    del data
    return parse_text(_without_merges(text), path, TokenizerError)


def _without_merges(text: str) -> str:
    """The JSON text with its merges, if they are well formed, made empty.

    A quotation mark that follows no backslash can't lie inside a string of valid JSON, so
    what is found is the key itself.
    """
    for key in _MERGES.finditer(text):
        if key.start() and text[key.start() - 1] == "\\":
            continue
        end = _end_of_merges(text, key.end())
        if end is not None:
            return f"{text[: key.end()]}[]{text[end:]}"
    return text


def _end_of_merges(text: str, start: int) -> int | None:
    """The end of the array of merges that begins at `start`; None if it is not well formed."""
    empty = _NO_MERGES.match(text, start)
    if empty:
        return empty.end()
    at = start
    while text[at : at + 1] == ("[" if at == start else ","):
        found = _SOME_MERGES.match(text, at + 1)
        if not found:
            return None
        at = found.end()
    return at + 1 if text[at : at + 1] == "]" else None


def _of_tokenizer_json(path: Path) -> _Ids:
    content = _parse(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise TokenizerError(path, "has no object named model", _AGAIN)
    by_id = _by_id(path, _pieces(path, model.get("vocab")))
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise TokenizerError(path, f"added_tokens is {json_type(added)}, not an array", _AGAIN)
    if added:
        known = set(by_id.values())
        by_id = _by_id(path, _added(path, added, known), by_id)
    if not by_id:
        raise TokenizerError(path, "has an empty vocabulary", _AGAIN)
    special = {token["id"]: token["content"] for token in added if token.get("special") is True}
    ordinary = max((number for number in by_id if number not in special), default=-1)
    return _Ids(max(by_id), ordinary, special)


def _pieces(path: Path, vocab: object) -> Iterable[tuple[str, object]]:
    """Token and id of each entry of the model's vocabulary."""
    if isinstance(vocab, dict):
        return vocab.items()
    if not isinstance(vocab, list):
        raise TokenizerError(path, "has no vocabulary", _AGAIN)
    for number, entry in enumerate(vocab):  # Unigram: a token's id is its place
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            what = f"entry {number} of its vocabulary is not a token and its score"
            raise TokenizerError(path, what, _AGAIN)
    return ((entry[0], number) for number, entry in enumerate(vocab))


def _added(path: Path, tokens: list[Any], known: set[str]) -> Iterator[tuple[str, object]]:
    """Token and id of each added token that the vocabulary has not already."""
    for token in tokens:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise TokenizerError(path, "has an added token without its text", _AGAIN)
        name, number = token["content"], token.get("id")
        if not _is_id(number):
            raise _wrong_id(path, name, number)
        if name not in known:
            yield name, number


def _by_id(
    path: Path, pairs: Iterable[tuple[str, object]], by_id: dict[int, str] | None = None
) -> dict[int, str]:
    """Tokens by their ids, added to those given; no id may stand for two."""
    by_id = {} if by_id is None else by_id
    for name, number in pairs:
        if not _is_id(number):
            raise _wrong_id(path, name, number)
        other = by_id.setdefault(number, name)
        if other != name:
            both = f"{_shown(other)} and to {_shown(name)}"
            raise TokenizerError(path, f"gives the id {number} to {both}", _AGAIN)
    return by_id


def _is_id(number: object) -> TypeGuard[int]:
    return type(number) is int and 0 <= number <= _LARGEST_ID


def _wrong_id(path: Path, name: str, number: object) -> TokenizerError:
    given = f"{json_value(number)} for an id"
    if type(number) is int:
        given = f"the id {json_value(number)}, outside 0 to {_LARGEST_ID}"
    return TokenizerError(path, f"gives token {_shown(name)} {given}", _AGAIN)


def _shown(name: str) -> str:
    """A token read as Latin-1, for a message."""
    try:
        return quoted(name.encode("latin-1").decode("utf-8"))
    except UnicodeError:  # it was written with an escape for a character beyond Latin-1
        return quoted(name)


def check_tiktoken(path: Path, data: bytes) -> int:
    """Check lines of a base64 token and its rank; gives the highest.

    Raises:
        TokenizerError: Naming the line.
    """
    ranks, tokens = set[int](), set[bytes]()
    for number, line in enumerate(data.splitlines(), 1):
        match = _RANK.fullmatch(line)
        try:
            token = binascii.a2b_base64(match[1], strict_mode=True) if match else None
        except binascii.Error:
            token = None
        if match is None or token is None:
            raise TokenizerError(path, f"line {number} is not a base64 token and its rank", _AGAIN)
        rank = int(match[2])
        if rank in ranks or token in tokens:
            twice = f"rank {rank}" if rank in ranks else f"token {quoted(match[1].decode())}"
            raise TokenizerError(path, f"gives {twice} twice, again in line {number}", _AGAIN)
        ranks.add(rank)
        tokens.add(token)
    if not ranks:
        raise TokenizerError(path, "is empty", _AGAIN)
    return max(ranks)
