"""What one TOML file says of one model: its tables, their keys, ranges, units and defaults.

Every key here is honoured by `convert` or `infer`; there are no others. The tables know nothing of
files, flags or precedence: `configs.resolve` fills them, and says where each value came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from configs.checks import (
    Check,
    Table,
    choice,
    file_path,
    integer,
    plain_name,
    real,
    size,
    switch,
    text,
    texts,
)
from configs.quantization import ConvertTable, LayerChoice, LayerRule

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CHECKS",
    "TABLES",
    "ConvertTable",
    "GenerateTable",
    "LayerChoice",
    "LayerRule",
    "MemoryTable",
    "ModelTable",
    "TokenizerTable",
]


@dataclass(frozen=True)
class ModelTable(Table):
    """`[model]`: which model this is.

    Args:
        name: What to call it, and the first part of the default folder's name; the last part of
            `source` when not set.
        source: The Hugging Face checkpoint: a hub id, or a local folder. In a TOML file a local
            folder starts with `./`, `../`, `/` or `~`.
        revision: A branch, tag or commit of a hub id; the hub's main branch when not set.
        path: The MLX folder: where `convert` writes and `infer` reads.
    """

    name: str | None = None
    source: str | None = None
    revision: str | None = None
    path: Path | None = None

    checks: ClassVar[Mapping[str, Check]] = {
        "name": plain_name(),
        "source": text("a hub id or a folder", "PATH_OR_HUB_ID"),
        "revision": text("a branch, tag or commit", "REVISION"),
        "path": file_path(),
    }


@dataclass(frozen=True)
class TokenizerTable(Table):
    """`[tokenizer]`: what the model's own tokenizer files lack or have wrong.

    Args:
        eos_tokens: Tokens, as text, that end an answer, besides the model's own.
        chat_template: A jinja file to use in place of the model's own template.
        trust_remote_code: Allow Python code from the model's folder to run.
    """

    eos_tokens: tuple[str, ...] = ()
    chat_template: Path | None = None
    trust_remote_code: bool = False

    checks: ClassVar[Mapping[str, Check]] = {
        "eos_tokens": texts("a list of tokens"),
        "chat_template": file_path(),
        "trust_remote_code": switch(),
    }


@dataclass(frozen=True)
class GenerateTable(Table):
    """`[generate]`: how answers are drawn.

    Args:
        temperature: 0 takes the most probable token each time.
        top_p: Draw from the most probable tokens that together have this probability; 1 is off.
        top_k: Draw from this many most probable tokens; 0 is off.
        min_p: Leave out tokens below this share of the most probable one's probability; 0 is off.
        repetition_penalty: Above 1 makes tokens that were just used less probable; 1 is off.
        repetition_context: How many tokens back the penalty looks.
        max_tokens: Longest answer, in tokens.
        stop: The answer ends before any of these texts.
        seed: Of the random numbers; a new one each time when not set.
        system: The system message.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context: int = 20
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int | None = None
    system: str | None = None

    checks: ClassVar[Mapping[str, Check]] = {
        "temperature": real(0),
        "top_p": real(0, 1, above=True),
        "top_k": integer(0),
        "min_p": real(0, 1),
        "repetition_penalty": real(0, above=True),
        "repetition_context": integer(1),
        "max_tokens": integer(1),
        "stop": texts("a list of texts"),
        "seed": integer(0, 2**64 - 1),
        "system": text("text", empty=True),
    }


@dataclass(frozen=True)
class MemoryTable(Table):
    """`[memory]`: what a run may take.

    Args:
        context: Most tokens of prompt and answer together; the model's own limit when not set.
        kv_bits: Keep the KV cache at this many bits; in the compute dtype when not set.
        limit: Most memory for MLX, in bytes; text such as "12GB" is read. MLX's own when not set.
    """

    context: int | None = None
    kv_bits: int | None = None
    limit: int | None = None

    checks: ClassVar[Mapping[str, Check]] = {
        "context": integer(1),
        "kv_bits": choice(4, 8),
        "limit": size(),
    }


TABLES: Mapping[str, type[Table]] = MappingProxyType(
    {
        "model": ModelTable,
        "convert": ConvertTable,
        "tokenizer": TokenizerTable,
        "generate": GenerateTable,
        "memory": MemoryTable,
    }
)

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        f"{name}.{key}": check
        for name, table in TABLES.items()
        for key, check in table.checks.items()
    }
)
