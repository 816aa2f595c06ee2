"""What the options add to a model's tokenizer: more tokens that end an answer.

Owns where they are written: into generation_config.json, beside those that end one
already. Knows nothing of how the tokenizer's files are made or copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.folder import GENERATION_CONFIG, file_in
from checkpoint.json_file import parse, quoted
from configs.errors import ConfigError, ModelConfigError, TokenizerError
from configs.resolve import Resolved

_TOKENIZER = "tokenizer.json"
_LIMIT = 100_000_000


def with_eos_tokens(
    files: Mapping[str, bytes], source: Path, config: Mapping[str, Any], options: Resolved
) -> Mapping[str, bytes]:
    """The files that are made, with the option's tokens among those that end an answer.

    Args:
        files: Those made so far.
        source: The source folder.
        config: config.json.
        options: The options in force.

    Raises:
        ConfigError: One is no token of the tokenizer's.
        TokenizerError: There is no tokenizer.json to look them up in.
    """
    wanted = options.tokenizer.eos_tokens
    if not wanted:
        return files
    tokenizer = _content(files, source, _TOKENIZER)
    if tokenizer is None:
        what = "is missing, and --eos-token is looked up in it"
        raise TokenizerError(source / _TOKENIZER, what, "save the tokenizer so first")
    numbers = [_number(tokenizer, text, source, options) for text in wanted]
    content = _content(files, source, GENERATION_CONFIG)
    path = source / GENERATION_CONFIG
    generation = {} if content is None else parse(content, path, ModelConfigError)
    if not isinstance(generation, dict):
        raise ModelConfigError(path, "holds no object", "download it again")
    ends = list(dict.fromkeys([*_ends(generation, config), *numbers]))
    generation["eos_token_id"] = ends
    text = json.dumps(generation, indent=2, ensure_ascii=False)
    return {**files, GENERATION_CONFIG: f"{text}\n".encode()}


def _content(files: Mapping[str, bytes], source: Path, name: str) -> bytes | None:
    if name in files:
        return files[name]
    path = file_in(source, name)
    return disk.read_whole(path, _LIMIT) if path.is_file() else None


def _number(tokenizer: bytes, text: str, source: Path, options: Resolved) -> int:
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_buffer(tokenizer).token_to_id(text)
    except Exception as error:  # the library raises nothing narrower
        what = f"is not a valid tokenizer ({error})"
        raise TokenizerError(source / _TOKENIZER, what, "download it again") from error
    if found is None:
        where = options.origin("tokenizer.eos_tokens")
        what = f"{quoted(text)} is not a token of {source}"
        raise ConfigError(where, what, "check its spelling")
    return int(found)


def _ends(generation: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[int]:
    """The ids that end an answer already; those of generation_config.json, if it has any."""
    text_config = config.get("text_config")
    tables = (generation, config, text_config if isinstance(text_config, dict) else {})
    for table in tables:
        value = table.get("eos_token_id")
        if value is not None:
            yield from value if isinstance(value, list) else [value]
            return
