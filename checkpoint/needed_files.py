"""Which files of a repository a conversion needs, by their names and the index.

Owns the choice, whatever hub the repository is on. Fetches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

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
from checkpoint.shards import ShardIndex
from configs.errors import HubError

OTHER_PATTERNS = (*CONFIG_PATTERNS, *CARRIED_PATTERNS, README)


def needed_others(names: Collection[str]) -> list[str]:
    """All but the weights and their index: config, tokenizer, licences, README."""
    return sorted(name for name in names if matches(name, OTHER_PATTERNS))


def needed_weights(
    repo_id: str, names: Collection[str], index: Callable[[], ShardIndex]
) -> list[str]:
    """The shards that the index names; without an index, the single file.

    Args:
        repo_id: The repository, for messages.
        names: All of its files.
        index: Reads its index, if it has one.

    Raises:
        HubError: It has no safetensors, or not all that its index names.
    """
    if WEIGHTS_INDEX in names:
        shards = sorted(set(index().weight_map.values()))
        missing = [name for name in shards if name not in names]
        if missing:
            what = f"lacks {len(missing)} of the {len(shards)} shards that its index names"
            mend = "choose another revision"
            raise HubError(repo_id, f"{what}: {shown(missing)}", mend)
        return shards
    if WEIGHTS in names:
        return [WEIGHTS]
    found = [name for name in names if matches(name, WEIGHT_PATTERNS)]
    what = "is empty"
    if found:
        what = f"has neither {WEIGHTS_INDEX} nor {WEIGHTS}, only {shown(found)}"
    elif names:
        what = f"has no model*.safetensors, only {shown(names)}"
    raise HubError(repo_id, what, "choose a repository with safetensors")
