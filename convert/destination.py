"""Where the result goes: checked, staged beside it, and put in its place by rename.

The destination is absent, old, or whole at every moment. Owns the staged folder
and the old one that it replaces; knows nothing of what is in them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from checkpoint import disk
from checkpoint.folder import staging_path
from configs.errors import DestinationError, UsageError

_OWNER = "owner.json"


@dataclass(frozen=True)
class Destination:
    """A checked destination.

    Attributes:
        path: Where the model folder will be, absolute.
        replaces: Whether something there is to be replaced.
    """

    path: Path
    replaces: bool

    @property
    def staging(self) -> Path:
        """The folder in which the result grows, beside the destination."""
        return staging_path(self.path)

    @property
    def retired(self) -> Path:
        """Where the old result waits while the new one takes its place."""
        return self.path.with_name(f".{self.path.name}.ferry-old")


def check_destination(path: Path, *, force: bool, make_parent: bool = False) -> Destination:
    """Refuse a destination that can't or must not be written, before any work.

    Args:
        path: The destination as given.
        force: Whether an existing destination may be replaced.
        make_parent: Whether the folder it lies in will be made when it is missing.

    Raises:
        UsageError: it exists without `force`, or holds more than a model.
        DestinationError: its parent is missing or can't be written.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  a link at the end must not be followed
    here = Path.cwd().resolve()
    if path.resolve() in {here, *here.parents, Path.home().resolve()}:
        raise UsageError("--mlx-path", f"{path} holds more than a model", "choose a new folder")
    parent = path.parent
    if make_parent and not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise DestinationError(parent, "there is no such folder", f"make it: mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DestinationError(parent, "can't be written", "choose another folder")
    if len(os.fsencode(f".{path.name}.ferry-staging")) > os.pathconf(parent, "PC_NAME_MAX"):
        raise DestinationError(path, "the name is too long", "choose a shorter one")
    exists = _is_there(path)
    if exists and not path.is_symlink() and path.is_dir() and not disk.list_folder(path):
        return Destination(path, replaces=False)
    if exists and not force:
        raise UsageError("--mlx-path", f"{path} exists already", "replace it with --force")
    return Destination(path, replaces=exists)


def check_apart(destination: Destination, source: Path) -> None:
    """Refuse a destination that is the source, lies inside it or contains it.

    Raises:
        UsageError: it does.
    """
    there, origin = destination.path.resolve(), source.resolve()
    if there == origin:
        what = "is the source itself"
    elif origin in there.parents:
        what = "lies inside the source"
    elif there in origin.parents:
        what = "contains the source"
    else:
        return
    raise UsageError("--mlx-path", f"{destination.path} {what}", "choose another folder")


@contextmanager
def staged(destination: Destination) -> Iterator[Path]:
    """An empty folder beside the destination, ours alone, gone at the end unless published.

    Raises:
        DestinationError: another process is converting to the same destination.
        DiskError: the folder can't be made.
    """
    staging = destination.staging
    if not staging.parent.exists():
        disk.make_folder(staging.parent)
    if staging.exists():
        with _locked(staging):
            disk.remove_tree(staging)
    disk.make_folder(staging)
    with _locked(staging):
        try:
            _restore(destination)
            disk.write_whole(staging / _OWNER, json.dumps({"pid": os.getpid()}).encode())
            yield staging
        finally:
            if staging.exists():
                disk.remove_tree(staging)


def publish(destination: Destination) -> None:
    """Put the staged folder in the destination's place and wait until that is on disk.

    Raises:
        DiskError: a rename failed; what was there before is there again.
    """
    staging = destination.staging
    disk.remove(staging / _OWNER)
    disk.fsync_folder(staging)
    try:
        if destination.replaces:
            disk.rename(destination.path, destination.retired)
        disk.rename(staging, destination.path)
        disk.fsync_folder(destination.path.parent)
    finally:
        # Whatever came between the renames, Ctrl-C too: the old one is back, or the new one there.
        _restore(destination)


def _is_there(path: Path) -> bool:
    """Whether the name is taken, be it by a link to nowhere."""
    return path.is_symlink() or path.exists()


def _restore(destination: Destination) -> None:
    """Undo a replacement that stopped between its two renames."""
    if not _is_there(destination.retired):
        return
    if _is_there(destination.path):
        disk.remove_tree(destination.retired)
    else:
        disk.rename(destination.retired, destination.path)


@contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Hold the staged folder; the system lets go of it when the process ends, however it ends."""
    folder = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DestinationError(
                staging,
                f"process {_owner(staging)} is converting to this destination",
                "wait for it",
            ) from error
        yield
    finally:
        os.close(folder)


def _owner(staging: Path) -> str:
    try:
        return str(json.loads((staging / _OWNER).read_bytes())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another"
