"""Which files of a repository a conversion needs, by their names and the index.

Owns the choice, whatever hub the repository is on. Fetches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from checkpoint.folder import (
    CARRIED_PATTERNS,
    CONFIG_PATTERNS,
    README,
    WEIGHT_PATTERNS,
    WEIGHTS,
    WEIGHTS_INDEX,
    matches,
    shown,
)
from checkpoint.nanochat.folder import repository_files
from checkpoint.odd_layouts import refuse_odd_layout
from checkpoint.shards import ShardIndex
from checkpoint.weight_files import weight_files
from configs.errors import HubError

OTHER_PATTERNS = (*CONFIG_PATTERNS, *CARRIED_PATTERNS, README)


def needed_others(names: Collection[str]) -> list[str]:
    """All but the weights and their index: config, tokenizer, licences, README."""
    return sorted(name for name in names if matches(name, OTHER_PATTERNS))


def needed_weights(
    repo_id: str, names: Collection[str], index: Callable[[str], ShardIndex]
) -> list[str]:
    """The index and the shards that it names; without an index, the single file.

    Of nanochat's own repositories also what says the sizes, and the tokenizer.

    PyTorch's files count only where there are no safetensors.

    Args:
        repo_id: The repository, for messages.
        names: All of its files.
        index: Reads the index of this name.

    Raises:
        HubError: It has no weights, or not all that its index names.
        ShardIndexError: It is no repository of a model, but of an adapter or the like.
    """
    if native := repository_files(names):
        if missing := [name for name in native if name not in names]:
            what = f"holds a checkpoint of nanochat's own, and lacks {shown(missing)}"
            raise HubError(repo_id, what, "choose another revision")
        return native
    chosen = weight_files(names)
    if chosen is not None and chosen.index is not None:
        shards = sorted(set(index(chosen.index).weight_map.values()))
        missing = [name for name in shards if name not in names]
        if missing:
            what = f"lacks {len(missing)} of the {len(shards)} shards that its index names"
            mend = "choose another revision"
            raise HubError(repo_id, f"{what}: {shown(missing)}", mend)
        return [*shards, chosen.index]
    if chosen is not None:
        return [str(chosen.single)]
    refuse_odd_layout(repo_id, {name.partition("/")[0] for name in names})
    found = [name for name in names if matches(name, WEIGHT_PATTERNS)]
    what = "is empty"
    if found:
        what = f"has neither {WEIGHTS_INDEX} nor {WEIGHTS}, only {shown(found)}"
    elif names:
        what = f"has neither model*.safetensors nor pytorch_model*.bin, only {shown(names)}"
    raise HubError(repo_id, what, "choose a repository with safetensors")


def python_files(names: Iterable[str]) -> list[str]:
    """The Python files beside the config, which may be needed to understand it."""
    return sorted(name for name in names if "/" not in name and name.endswith(".py"))
