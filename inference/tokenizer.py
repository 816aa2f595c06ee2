"""Text to token ids and back, by the `tokenizers` library.

Owns reading a folder's tokenizer files, the special tokens and the ids that end an
answer. Knows nothing of templates' syntax, of sampling or of models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint.folder import CONFIG, GENERATION_CONFIG, file_in
from checkpoint.json_file import read_json_object
from checkpoint.tokenizer_files import check_tokenizer, custom_class
from configs.errors import ConfigError, ModelConfigError, RequestError, TokenizerError
from inference.segments import Segment, SegmentEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

    from inference.sections import Added

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
_OTHER_FORMATS = ("tokenizer.model", "vocab.json", "spiece.model", "tekken.json", "vocab.txt")


class Tokenizer:
    """One folder's tokenizer.

    Args:
        backend: The tokenizers library's object.
        config: tokenizer_config.json, or what stands for it.
        eos_ids: Ids that end an answer.
        where: The file to name in errors.
    """

    def __init__(
        self, backend: Backend, config: Mapping[str, Any], eos_ids: frozenset[int], where: Path
    ) -> None:
        self._backend = backend
        self._config = config
        self._where = where
        self.eos_ids = eos_ids
        self.special_tokens = {
            name: text for name in _SPECIAL_NAMES if (text := _token_text(config.get(name)))
        }
        vocabulary = backend.get_vocab(with_added_tokens=True)
        if len(set(vocabulary.values())) < len(vocabulary):
            raise TokenizerError(where, "gives one id to two tokens", "download it again")
        self._rows: int | None = None
        self.highest_id = max(vocabulary.values(), default=-1)
        self._longest = max((len(token) for token in vocabulary), default=1)

    def encode_text(self, text: str) -> list[int]:
        """Ids of a plain prompt; special tokens spelt out in it count as such.

        The tokenizer's own beginning-of-sequence token is put in front, once.
        """
        with _panics_named(self._where):
            ids = list(self._backend.encode(text, add_special_tokens=True).ids)
        bos = self.id_of(self.special_tokens.get("bos_token"))
        if bos is None:
            return self._within_rows(ids)
        if ids[:2] == [bos, bos]:
            del ids[0]
        if self._config.get("add_bos_token") is True and ids[:1] != [bos]:
            ids.insert(0, bos)
        return self._within_rows(ids)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in the middle of another, as far as the tokenizer can."""
        with _panics_named(self._where):
            return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_segments(self, segments: Sequence[Segment], control: Iterable[str]) -> list[int]:
        """Ids of a rendered chat, in which only the template writes `control` tokens."""
        known = {text: id_ for text in control if (id_ := self.id_of(text)) is not None}
        with _panics_named(self._where):
            ids = SegmentEncoder(self._backend, known).encode(segments)
        return self._within_rows(ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of the ids; special tokens are left out of it, and unknown ids always are."""
        return str(self._backend.decode(ids, skip_special_tokens=skip_special))

    def decode_all(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens too."""
        return self.decode(ids, skip_special=False)

    @property
    def tool_parser(self) -> str | None:
        """The parser of tool calls that tokenizer_config.json names, if it does."""
        return _token_text(self._config.get("tool_parser_type"))

    @cached_property
    def added(self) -> Added:
        """The added tokens."""
        from inference.sections import Added

        found = self._backend.get_added_tokens_decoder()
        return Added(
            {id_: token.content for id_, token in found.items() if token.content.strip()},
            frozenset(token.content for token in found.values() if token.special),
        )

    def piece(self, token: int) -> str | None:
        """A token as the vocabulary writes it; None for an id that has none."""
        found: str | None = self._backend.id_to_token(token)
        return found

    def decoder_kinds(self) -> frozenset[str]:
        """The kinds of the decoder's steps, by their names in tokenizer.json."""
        decoder = self._backend.decoder
        if decoder is None:
            return frozenset()
        state = json.loads(decoder.__getstate__())
        return frozenset(step["type"] for step in state.get("decoders", [state]))

    def special(self) -> list[str]:
        """The tokens that are marked special, by their text."""
        added = self._backend.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]

    def control_tokens(self, template: str) -> list[str]:
        """The tokens that mean something to the model: the special ones, and those of its template.

        A token of white space alone is ordinary text.
        """
        added = self._backend.get_added_tokens_decoder().values()
        return [
            token.content
            for token in added
            if token.content.strip() and (token.special or token.content in template)
        ]

    def check_rows(self, rows: int) -> None:
        """Refuse a tokenizer with ordinary tokens that the embedding has no row for.

        A prompt with a special token that it has no row for is refused when it comes.

        Raises:
            TokenizerError: With the highest id and the number of rows.
        """
        self._rows = rows
        if self.highest_id < rows:
            return
        added = self._backend.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        highest = max((id_ for id_ in vocabulary.values() if id_ not in special), default=-1)
        if highest >= rows:
            raise TokenizerError(
                self._where,
                f"has token id {highest}, and the embedding has {rows} rows",
                "use the tokenizer that belongs to these weights",
            )

    def _within_rows(self, ids: list[int]) -> list[int]:
        for token in ids:
            if self._rows is not None and token >= self._rows:
                raise RequestError(
                    "--prompt",
                    f"holds {self.piece(token)!r} (token {token}), and the model has embeddings "
                    f"for {self._rows} tokens only",
                    "leave it out",
                )
        return ids

    def check_length(self, characters: int, context: int | None) -> None:
        """Refuse text that can't fit the context, before time goes into encoding it.

        Raises:
            RequestError: With the counts.
        """
        # With room to spare for normalizers, which can shorten a text.
        if context is not None and characters > 4 * context * self._longest:
            raise RequestError(
                "--prompt",
                f"has {characters} characters, and the context of {context} tokens holds "
                f"{4 * context * self._longest} at the very most",
                "shorten it",
            )

    def id_of(self, text: str | None) -> int | None:
        """The id of the token of this text, if there is one."""
        found: int | None = None if text is None else self._backend.token_to_id(text)
        return found


def load_tokenizer(
    folder: Path, config: Mapping[str, Any], eos_tokens: Sequence[str] = ()
) -> Tokenizer:
    """Read a folder's tokenizer.

    Args:
        folder: The model folder.
        config: Its config.json.
        eos_tokens: More tokens, as text, that end an answer.

    Raises:
        TokenizerError: It is missing or invalid.
        ConfigError: One of `eos_tokens` is not a token.
    """
    path = file_in(folder, "tokenizer.json")
    settings = _optional(folder, "tokenizer_config.json", TokenizerError)
    backend = _read_backend(path) if path.is_file() else _convert_backend(folder)
    eos = _eos_ids(folder, config, settings, backend)
    for text in eos_tokens:
        found = backend.token_to_id(text)
        if found is None:
            raise ConfigError(
                "tokenizer.eos_tokens", f"{text!r} is not a token of {path}", "check its spelling"
            )
        eos.add(found)
    return Tokenizer(backend, settings, frozenset(eos), path)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds tokenizer files of any format we can read."""
    return any((folder / name).is_file() for name in ("tokenizer.json", *_OTHER_FORMATS))


def _read_backend(path: Path) -> Backend:
    from tokenizers import Tokenizer as Backend

    try:
        with _panics_named(path):
            return Backend.from_file(str(path))
    except TokenizerError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(
            path, f"is not a valid tokenizer ({error})", "download it again"
        ) from error


def _convert_backend(folder: Path) -> Backend:
    """The older formats, by transformers, which takes seconds to import."""
    if not has_tokenizer(folder):
        if custom_class(folder) is not None:
            check_tokenizer(folder)  # which says why that class is not run
        raise TokenizerError(
            folder / "tokenizer.json", "is missing", "copy it from the source of the model"
        )
    check_tokenizer(folder)
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise TokenizerError(folder, f"transformers can't read its tokenizer ({first})") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            folder, "has a tokenizer written in Python alone", "save it as tokenizer.json"
        )
    converted: Backend = backend
    return converted


def _eos_ids(
    folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], backend: Backend
) -> set[int]:
    generation = _optional(folder, GENERATION_CONFIG, ModelConfigError)
    text_config = config.get("text_config")
    sources: list[tuple[str, Mapping[str, Any]]] = [
        (GENERATION_CONFIG, generation),
        (CONFIG, config),
        (CONFIG, text_config if isinstance(text_config, dict) else {}),
    ]
    found: set[int] = set()
    for name, source in sources:
        value = source.get("eos_token_id")
        if value is None:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 2**31:
                raise ModelConfigError(folder / name, f"eos_token_id {item!r} is not a token id")
            found.add(item)
    text = _token_text(settings.get("eos_token"))
    named = None if text is None else backend.token_to_id(text)
    if named is not None:
        found.add(named)
    return found


def _token_text(value: object) -> str | None:
    """The text of a token as tokenizer_config.json writes it: alone, or in an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _optional(
    folder: Path, name: str, error: type[TokenizerError] | type[ModelConfigError]
) -> dict[str, Any]:
    path = file_in(folder, name)
    return read_json_object(path, error) if path.is_file() else {}


@contextmanager
def _panics_named(where: Path) -> Iterator[None]:
    """Turn a panic inside the tokenizers library into a TokenizerError.

    A panic is not an `Exception`, and the library writes its own report of it to file
    descriptor 2, which is kept from the user's terminal.
    """
    with _stderr_closed():
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise TokenizerError(
                where, f"the tokenizer gave up on this text ({error})", "shorten or change it"
            ) from error


@contextmanager
def _stderr_closed() -> Iterator[None]:
    try:
        saved = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
