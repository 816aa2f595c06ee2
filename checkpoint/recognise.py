"""What a source folder is, told by its content, and read but for its tensors.

    nanochat's own files     config.json and the tokenizer's files are made
    a GGUF file, or one in a folder   config.json and the tokenizer's files are made
    a rank file of tiktoken  tokenizer.json is made
    anything else            is read as Hugging Face's layout, or MLX's

Owns that choice and its words. What each kind holds is its own module's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint.folder import files_like
from checkpoint.gguf_files.source import gguf_file, open_gguf
from checkpoint.model_config import read_model_config
from checkpoint.nanochat.model_config import Overrides
from checkpoint.nanochat.source import open_nanochat
from checkpoint.remote_code.trusted import Told, ask_trusted
from checkpoint.shards import read_catalog
from checkpoint.tensors import Catalog
from checkpoint.tiktoken_files.rank_files import rank_file, read_rank_file
from checkpoint.tiktoken_files.tokenizer_json import tokenizer_json
from checkpoint.tokenizer_files import check_tokenizer
from configs.errors import SourceError

_TOKENIZER = "tokenizer.json"
_EARLIER = (_TOKENIZER, "tokenizer.model")


@dataclass(frozen=True)
class Choices:
    """What the user says of a source beside its name.

    Attributes:
        step: Of training, of nanochat's.
        overrides: Of nanochat's.
        pattern: By which a rank file's tokenizer cuts text.
        trust_remote_code: Run the folder's own Python code where nothing else will do.
    """

    step: int | None = None
    overrides: Overrides = field(default_factory=Overrides)
    pattern: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Opened:
    """A source, read but for its tensors.

    Attributes:
        config: config.json.
        catalog: Its tensors.
        files: Files that are made, not copied, by name.
        check_tokenizer: Given the rows of the embeddings, special tokens that have none.
        recognised: What it is, where that is not plain to see; else empty.
        notes: What was recognised, assumed or left out, for the receipt.
        warnings: What the user should know.
    """

    config: dict[str, Any]
    catalog: Catalog
    files: Mapping[str, bytes]
    check_tokenizer: Callable[[int | None], tuple[str, ...]]
    recognised: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def open_source(folder: Path, choices: Choices, catalog: Catalog | None = None) -> Opened:
    """Read what a folder says of itself.

    Args:
        folder: Of whatever kind.
        choices: The user's.
        catalog: Its tensors, where its shards are not in the folder.

    Raises:
        SourceError: It is damaged, incomplete or of no kind that can be read; or the choices
            are of another kind.
        DiskError: Something can't be read.
    """
    if catalog is None and (single := gguf_file(folder)) is not None:
        _refuse_choices(folder, choices)
        found = open_gguf(single)
        return Opened(
            found.config,
            found.catalog,
            found.files,
            lambda rows: (),  # as many tokens as the embeddings have rows, or refused with them
            found.recognised,
            (found.recognised,),
        )
    native = None if catalog is not None else open_nanochat(folder, choices.step, choices.overrides)
    if native is not None:
        return Opened(
            native.config,
            native.catalog,
            native.files,
            lambda rows: (),  # held to the vocabulary when it was made
            native.notes[0],
            native.notes,
            native.warnings,
        )
    _refuse_choices(folder, choices)
    config = read_model_config(folder)
    catalog = read_catalog(folder) if catalog is None else catalog
    told = ask_trusted(folder, config) if choices.trust_remote_code else Told(config)
    if told.files:
        return Opened(told.config, catalog, told.files, told.beyond, notes=told.notes)
    config = told.config
    ranks = None if files_like(folder, _EARLIER) else rank_file(folder)
    if ranks is None:
        return Opened(
            config,
            catalog,
            {},
            lambda rows: check_tokenizer(folder, rows).beyond,
            notes=told.notes,
        )
    encoding = read_rank_file(ranks, choices.pattern)
    made_of = f"{ranks.name}, a rank file of tiktoken's, is made {_TOKENIZER}"
    made = {_TOKENIZER: tokenizer_json(encoding)}
    return Opened(config, catalog, made, encoding.beyond, made_of, (made_of, *told.notes))


def _refuse_choices(folder: Path, choices: Choices) -> None:
    """Refuse what is said of nanochat's own files where there are none."""
    if choices.step is None and choices.overrides == Overrides():
        return
    given = "a step" if choices.step is not None else "a softcap or window pattern"
    mend = "leave it out; it is for nanochat's own checkpoints"
    raise SourceError(folder, f"takes no choice of {given}", mend)
