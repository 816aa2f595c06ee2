"""What a trusted folder's own code tells: the rest of its config, and its tokenizer as a file.

Owns when that code is asked at all, and the check of what it says. Nothing of the code
gets into the result: what it makes are plain values and a tokenizer.json.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint.folder import file_in
from checkpoint.json_file import parse, read_json_object
from checkpoint.remote_code.run import FLAG, ask_code
from checkpoint.tiktoken_files.encoding import Encoding
from checkpoint.tiktoken_files.tokenizer_json import tokenizer_json
from checkpoint.tokenizer_files import check_tokenizer, custom_class
from configs.errors import TokenizerError

_TOKENIZER, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_TEXTS = (
    *("hello, world", "def main():\n    return 1 + 23456\n\n", " two  spaces\tand\r\nlines "),
    *("你好，世界！ Привет ÄÖÜ ß é é", "🙂👩‍👩‍👧 ﬁ ½ …", "<div>&amp;</div> http://a.b/c?d=e#f"),
)


@dataclass(frozen=True)
class Told:
    """What the code of a folder made.

    Attributes:
        config: config.json, with what the code adds.
        files: The tokenizer's files that are made, by name.
        notes: Which code was run for what, a line each.
    """

    config: dict[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def beyond(self, rows: int | None) -> tuple[str, ...]:
        """Special tokens, each with its id, that embeddings of so many rows lack.

        Raises:
            TokenizerError: An ordinary token has no row.
        """
        with tempfile.TemporaryDirectory(prefix="mlx-ferry-") as room:
            for name, content in self.files.items():
                (Path(room) / name).write_bytes(content)
            return check_tokenizer(Path(room), rows).beyond


def ask_trusted(folder: Path, config: dict[str, Any]) -> Told:
    """Run the folder's own code where there is no other way to know what it knows.

    Its configuration class is asked where transformers has none for the model; its
    tokenizer class where there is no tokenizer.json.

    Args:
        folder: The model folder, whose code the user trusts.
        config: config.json as read.

    Raises:
        TokenizerError: The tokenizer can't be had as a tokenizer.json.
        SourceError: The code fails.
    """
    notes: list[str] = []
    auto_map = config.get("auto_map")
    if isinstance(auto_map, dict) and isinstance(named := auto_map.get("AutoConfig"), str):
        answer = ask_code(folder, "config")
        if not answer["known"]:
            config = {**answer["values"], **config}
            notes.append(f"{FLAG}: the source's own {named} was run to fill in config.json")
    named_class = None if (folder / _TOKENIZER).exists() else custom_class(folder)
    if named_class is None:
        return Told(config, {}, tuple(notes))
    answer = ask_code(folder, "tokenizer", texts=_TEXTS)
    notes.append(f"{FLAG}: the source's own {named_class} was run to make {_TOKENIZER}")
    content = _content(folder, answer)
    _check(folder, content, answer["ids"])
    settings = _settings(folder, answer)
    return Told(config, {_TOKENIZER: content, _SETTINGS: settings}, tuple(notes))


def _content(folder: Path, answer: Mapping[str, Any]) -> bytes:
    if "json" in answer:
        return str(answer["json"]).encode()
    if "ranks" in answer:
        ranks = {base64.b64decode(key): int(rank) for key, rank in answer["ranks"]}
        where = folder / _SETTINGS
        return tokenizer_json(Encoding(answer["pattern"], ranks, answer["specials"], where))
    what = f"has a tokenizer in Python alone ({answer['class']}), of no form that is known"
    raise TokenizerError(folder, what, f"save it as {_TOKENIZER} by other means")


def _check(folder: Path, content: bytes, ids: list[list[int]]) -> None:
    """Hold the file that was made to the ids that the code gives."""
    from tokenizers import Tokenizer

    parse(content, folder / _TOKENIZER, TokenizerError)
    try:
        made = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        what = f"has code that makes no valid {_TOKENIZER} ({error})"
        raise TokenizerError(folder, what, "save it by other means") from error
    for text, expected in zip(_TEXTS, ids, strict=True):
        if made.encode(text, add_special_tokens=False).ids != expected:
            what = f"has a tokenizer in Python that no {_TOKENIZER} agrees with"
            raise TokenizerError(folder, what, "save it by other means")


def _settings(folder: Path, answer: Mapping[str, Any]) -> bytes:
    """tokenizer_config.json without the class that it is read by no more."""
    path = file_in(folder, _SETTINGS)
    settings = read_json_object(path, TokenizerError)
    settings.pop("auto_map", None)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings = {**answer["special"], **settings}
    return f"{json.dumps(settings, indent=2, ensure_ascii=False)}\n".encode()
