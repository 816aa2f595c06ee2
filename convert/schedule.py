"""In which order a source is converted when its shards come and go one by one.

Pure arithmetic over which parameter needs which shard: owns the order and what of
the source is on the disk at each moment. Knows nothing of how a shard is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Turn:
    """One parameter's turn.

    Attributes:
        name: The parameter.
        fetch: Source shards that it is the first to need.
        release: Source shards that it is the last to need.
    """

    name: str
    fetch: tuple[Path, ...]
    release: tuple[Path, ...]


@dataclass(frozen=True)
class Schedule:
    """Every parameter's turn, and the most bytes of source shards held at once."""

    turns: tuple[Turn, ...]
    held_bytes: int


def schedule(needs: Mapping[str, Sequence[Path]], sizes: Mapping[Path, int]) -> Schedule:
    """Order the parameters so that few source shards are on the disk at a time.

    A parameter comes with the last of its shards, in the order of the shards' names;
    of those that come together, the ones that let go of the oldest shard come first.
    As models are stored layer by layer, that holds two shards, seldom more.

    Args:
        needs: The source shards of every parameter, in the model's order.
        sizes: Bytes of each shard.
    """
    place = {path: index for index, path in enumerate(sorted(sizes))}

    def key(name: str) -> tuple[int, int]:
        places = [place[path] for path in needs[name]]
        return max(places, default=-1), min(places, default=-1)

    order = sorted(needs, key=key)
    last = {path: name for name in order for path in needs[name]}
    turns = []
    held: set[Path] = set()
    most = 0
    for name in order:
        wanted = dict.fromkeys(needs[name])
        fetch = tuple(path for path in wanted if path not in held)
        held.update(fetch)
        most = max(most, sum(sizes[path] for path in held))
        release = tuple(path for path in wanted if last[path] == name)
        held.difference_update(release)
        turns.append(Turn(name, fetch, release))
    return Schedule(tuple(turns), most)
