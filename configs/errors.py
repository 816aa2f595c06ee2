"""The root of the error tree: every error a user can meet, and its exit code.

    FerryError                 exit 1   bad input or environment
    ├── UsageError             exit 2   flags that are wrong or contradict each other
    │   └── RequestError       exit 2   a prompt or a sampling value that can't be honoured
    ├── ConfigError            exit 2   a TOML file, `--set`, or a value from one
    ├── SourceError            exit 1   something read from a model folder is wrong
    │   ├── HeaderError                 a safetensors header
    │   ├── ShardIndexError             the shard index against the shards
    │   ├── ModelConfigError            config.json
    │   ├── ArchitectureError           a model, or a value of it, that MLX can't honour
    │   ├── AdapterError                an adapter, or the model that it should fit
    │   ├── TokenizerError              tokenizer files
    │   ├── PickleError                 a pickle, or a PyTorch file that holds one
    │   └── TemplateError               a chat template
    ├── HubError               exit 1   the hub, or the way to it
    ├── DestinationError       exit 1   where the result should go
    ├── DiskError              exit 1   the operating system refused a read or a write
    ├── VerifyError            exit 1   what was written is not what was planned
    └── GenerationError        exit 1   the model produced something unusable

Library code raises these; only a `cli.py` prints them or exits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class FerryError(Exception):
    """One thing that went wrong, told in three parts.

    Args:
        where: The file, tensor or option that is at fault.
        what: What is wrong with it.
        mend: What the user can do about it; may be empty.
    """

    exit_code = 1

    def __init__(self, where: str | Path, what: str, mend: str = "") -> None:
        super().__init__(where, what, mend)
        self.where = str(where)
        self.what = what
        self.mend = mend

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}"
        return f"{line}; {self.mend}" if self.mend else line


class UsageError(FerryError):
    """Flags that are wrong or contradict each other."""

    exit_code = 2


class RequestError(UsageError):
    """A prompt or a sampling value that can't be honoured."""


class ConfigError(FerryError):
    """A TOML file, `--set`, or a value from one; `where` carries `file:line`."""

    exit_code = 2


class SourceError(FerryError):
    """Something read from a model folder is wrong."""


class HeaderError(SourceError):
    """A safetensors header."""


class ShardIndexError(SourceError):
    """The shard index, or the index against the shards."""


class ModelConfigError(SourceError):
    """config.json or generation_config.json."""


class ArchitectureError(SourceError):
    """A model, or a value of it, that MLX's architectures can't honour."""


class AdapterError(SourceError):
    """An adapter's files, or an adapter against the model that it should fit."""


class TokenizerError(SourceError):
    """Tokenizer files."""


class PickleError(SourceError):
    """A pickle, or a PyTorch file that holds one."""


class TemplateError(SourceError):
    """A chat template."""


class HubError(FerryError):
    """The hub, or the way to it."""


class DestinationError(FerryError):
    """Where the result should go."""


class DiskError(FerryError):
    """The operating system refused a read or a write."""


class VerifyError(FerryError):
    """What was written is not what was planned."""


class GenerationError(FerryError):
    """The model produced something unusable."""
