"""A hub model converted shard by shard, each fetched when it is needed and removed after.

So the disk needs room for the result and a shard or two of the source. Owns the coming
and going of the shards, in a folder inside the staging folder; in which order is
`schedule`'s to say, how a shard is fetched `checkpoint.remote`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from checkpoint import disk
from checkpoint.remote import RemoteModel, open_remote
from checkpoint.tensors import Catalog
from configs.errors import UsageError
from convert.destination import Destination
from convert.pipeline import check_free_space
from convert.plan import Parameter, Plan
from convert.schedule import Schedule, Turn, schedule
from convert.show import gigabytes


class Consumed:
    """A source of which only what is needed is on the disk; a `convert.stream.Supply`.

    Args:
        remote: The model on the hub.
        folder: Where its shards come and go.
        note: Told of every shard that is fetched.
    """

    def __init__(self, remote: RemoteModel, folder: Path, note: Callable[[str], None]) -> None:
        self.remote = remote
        self.catalog: Catalog = remote.catalog()
        self._folder = folder
        self._note = note

    def check_room(self, plan: Plan, destination: Destination) -> None:
        """Refuse a conversion that the disk has no room for, the source's shards included.

        Raises:
            DiskError: with what is needed and what is free.
        """
        held = self._schedule(plan.parameters).held_bytes
        there = disk.held_bytes(destination.staging) if disk.is_there(destination.staging) else 0
        check_free_space(destination.path.parent, plan.disk_bytes + held - there)

    def turns(self, left: Sequence[Parameter]) -> Sequence[Turn]:
        made = self._schedule(left)
        wanted = {path for turn in made.turns for path in turn.fetch}
        if disk.is_there(self._folder):
            for name in disk.list_folder(self._folder):
                # What an interrupted run has left and this one does not need.
                if not any(name.startswith(path.name) for path in wanted):
                    disk.remove(self._folder / name)
        return made.turns

    def fetch(self, files: Iterable[Path]) -> None:
        disk.make_folder(self._folder, parents=True, exist_ok=True)
        for path in files:
            shard = self.remote.shards[path.name]
            if not shard.cached:
                self._note(f"fetching {path.name} ({gigabytes(shard.size)})")
            self.remote.fetch(path.name)

    def release(self, files: Iterable[Path]) -> None:
        for path in files:
            self.remote.release(path.name)

    def _schedule(self, parameters: Sequence[Parameter]) -> Schedule:
        needs = {
            parameter.name: [self.catalog[name].file for name in parameter.sources]
            for parameter in parameters
        }
        shards = self.remote.shards.values()
        return schedule(needs, {shard.path: 0 if shard.cached else shard.size for shard in shards})


def open_consumed(
    named: str,
    revision: str | None,
    destination: Destination,
    note: Callable[[str], None],
    *,
    quiet: bool,
) -> Consumed:
    """Look a hub model over without its weights.

    Args:
        named: The hub's name of the model.
        revision: A branch, tag or commit; None for the main branch.
        destination: Where the result goes.
        note: Told of every shard that is fetched.
        quiet: Show no progress.

    Raises:
        UsageError: it is a local folder, which is never consumed, or not on the hub.
        HubError: the hub does not have it, or can't be reached.
    """
    if disk.is_folder(Path(named).expanduser()):
        raise UsageError(
            "--consume-source", f"{named} is a local folder, which is never removed", "leave it out"
        )
    if named.count("/") != 1 or ":" in named:
        raise UsageError("--consume-source", f"{named} is not a model on the hub", "leave it out")
    folder = destination.staging / "source"
    return Consumed(open_remote(named, revision, folder, quiet=quiet), folder, note)
