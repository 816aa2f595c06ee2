"""Where the result goes: checked, held, staged beside it, and put in its place by rename.

The destination is absent, old, or whole at every moment. Beside it lies, while a
conversion runs or waits to be gone on with, one folder:

    .<name>.ferry-staging/model       what will be the destination
    .<name>.ferry-staging/journal     which of it is finished
    .<name>.ferry-staging/owner.json  which process holds the destination, and a lock

and between the two renames that replace an old destination, .<name>.ferry-old.
Owns these names and the lock; knows nothing of what is in the folders.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from checkpoint import disk
from checkpoint.folder import CONFIG, staging_path
from configs.errors import DestinationError, DiskError, SourceError, UsageError

_OWNER = "owner.json"
_REPLACED = "replaced"
_OWNER_LIMIT = 1 << 16


@dataclass(frozen=True)
class Destination:
    """A checked destination.

    Attributes:
        path: Where the model folder will be, absolute.
        force: Whether something there may be replaced.
    """

    path: Path
    force: bool

    @property
    def staging(self) -> Path:
        """The folder in which the result grows, beside the destination."""
        return staging_path(self.path)

    @property
    def model(self) -> Path:
        """The staged model folder."""
        return self.staging / "model"

    @property
    def journal(self) -> Path:
        """The journal of the staged model folder."""
        return self.staging / "journal"

    @property
    def retired(self) -> Path:
        """Where the old result waits while the new one takes its place; always whole."""
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
    destination = Destination(path, force)
    _refuse_existing(destination)
    return destination


def check_not_held(destination: Destination) -> None:
    """Refuse a destination that another process is converting to, before any work.

    Raises:
        DestinationError: it is.
    """
    owner = destination.staging / _OWNER
    with suppress(DiskError):  # `held` will tell
        if disk.is_there(owner):
            disk.close(_lock(owner), owner)


def _refuse_existing(destination: Destination) -> None:
    """Refuse what must not be replaced; an empty folder may always be."""
    path = destination.path
    if not disk.is_there(path):
        return
    if not (path.is_symlink() or disk.is_folder(path) or path.is_file()):
        what = f"{path} is a device, a pipe or a socket"  # such as /dev/null
        raise UsageError("--mlx-path", what, "choose a new folder")
    if destination.force:
        return
    if path.is_symlink() or not disk.is_folder(path) or disk.list_folder(path):
        raise UsageError("--mlx-path", f"{path} exists already", "replace it with --force")


def check_apart(destination: Destination, source: Path) -> None:
    """Refuse a destination that is the source, lies inside it or contains it, or is no model.

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
    elif _is_no_model(destination.path):
        what = f"is no model: it holds folders and no {CONFIG}"
    else:
        return
    raise UsageError("--mlx-path", f"{destination.path} {what}", "choose another folder")


def _is_no_model(path: Path) -> bool:
    """Whether there is a folder of folders, such as somebody's documents, and not of a model."""
    if path.is_symlink() or not disk.is_folder(path):
        return False
    names = disk.list_folder(path)
    return CONFIG not in names and any(disk.is_folder(path / name) for name in names)


@contextmanager
def held(destination: Destination) -> Iterator[None]:
    """Keep the destination to this process; the staging folder exists meanwhile.

    The system lets go of it when the process ends, however it ends. What is left in the
    staging folder stays; an empty one is removed.

    Raises:
        DestinationError: another process is converting to the same destination.
        UsageError: something came to the destination since it was checked.
        DiskError: the staging folder can't be made or locked.
    """
    parent = destination.path.parent
    if not disk.is_there(parent):
        disk.make_folder(parent, exist_ok=True)
        disk.fsync_folder(parent.parent)
    with _owning(destination.staging):
        _restore(destination)
        _refuse_existing(destination)
        yield


def clear(destination: Destination) -> None:
    """Remove what a conversion has left beside a destination that is held.

    Raises:
        DiskError: something can't be removed.
    """
    _clear_retired(destination)
    for name in disk.list_folder(destination.staging):
        if name != _OWNER:
            disk.remove_tree(destination.staging / name)


def publish(destination: Destination) -> None:
    """Put the staged folder in the destination's place and wait until that is on disk.

    Every file in it must be synced already.

    Raises:
        DiskError: a rename or a sync failed; what was there before is there again.
    """
    staged, path = destination.model, destination.path
    folders = [staged / name for name in disk.list_folder(staged)]
    for folder in (*filter(disk.is_folder, folders), staged):
        disk.fsync_folder(folder)
    _clear_retired(destination)
    try:
        if destination.force and disk.is_there(path):
            disk.rename(path, destination.retired)
        disk.rename(staged, path)
        disk.fsync_folder(path.parent)
    except DiskError:
        if not disk.is_there(staged):
            disk.rename(path, staged)
        raise
    finally:
        # Whatever came between the renames, Ctrl-C too: the new one is there, or the old one back.
        _restore(destination)


def leftovers(destination: Destination) -> Iterator[Destination]:
    """Other destinations in the same folder whose staging folder no process holds.

    Each is held while the caller looks at it. One that can't be looked at is left out.
    """
    parent = destination.path.parent
    for name in disk.list_folder(parent):
        other = Destination(parent / name.removeprefix(".").removesuffix(".ferry-staging"), False)
        if other.path.name and other.staging.name == name and other.path != destination.path:
            with suppress(DiskError, DestinationError), _owning(other.staging):
                yield other


def _restore(destination: Destination) -> None:
    """Undo a replacement that stopped between its two renames."""
    if disk.is_there(destination.retired) and not disk.is_there(destination.path):
        disk.rename(destination.retired, destination.path)


def _clear_retired(destination: Destination) -> None:
    """Remove the old result once the new one is in its place for good."""
    if disk.is_there(destination.retired) and disk.is_there(destination.path):
        disk.fsync_folder(destination.path.parent)
        # Not under its own name, which stands for something whole at every moment.
        replaced = destination.staging / _REPLACED
        if disk.is_there(replaced):
            disk.remove_tree(replaced)
        disk.rename(destination.retired, replaced)
        disk.remove_tree(replaced)


@contextmanager
def _owning(staging: Path) -> Iterator[None]:
    """Hold a staging folder, made if it is missing, by the lock in it."""
    path = staging / _OWNER
    file = _owned(staging, path)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = json.dumps({"pid": os.getpid(), "since": since}).encode()
        disk.truncate(file, path, len(text))
        disk.write_at(file, path, text, 0)
        yield
    finally:
        # What can't be removed is so by the next run. Another process may be here already
        # once the file is gone, and the folder then stays for it.
        with suppress(DiskError):
            disk.remove(path)
        with suppress(DiskError):
            disk.remove_empty_folder(staging)
        with suppress(DiskError):
            disk.close(file, path)


def _owned(staging: Path, path: Path) -> int:
    """The lock file, locked; not one that another process has removed in the meantime."""
    if staging.is_symlink():
        raise DestinationError(staging, "is a symbolic link", "remove it")
    while True:
        disk.make_folder(staging, exist_ok=True)
        try:
            file = _lock(path)
        except DiskError:
            if disk.is_there(staging):
                raise
            continue  # another process has just removed it
        with ExitStack() as unless_ours:
            unless_ours.callback(disk.close, file, path)
            if disk.is_open_at(file, path):
                unless_ours.pop_all()
                return file


def _lock(path: Path) -> int:
    """Open and lock a staging folder's lock file.

    Raises:
        DestinationError: another process has locked it.
        DiskError: it can't be opened or locked.
    """
    file = disk.open_lock(path)
    with ExitStack() as unless_ours:
        unless_ours.callback(disk.close, file, path)
        if not disk.lock(file, path):
            what = f"{_owner(path)} is converting to this destination"
            raise DestinationError(path.parent, what, "wait for it")
        unless_ours.pop_all()
    return file


def _owner(path: Path) -> str:
    try:
        owner = json.loads(disk.read_whole(path, _OWNER_LIMIT))
        return f"process {int(owner['pid'])} (since {owner['since']})"
    except (DiskError, SourceError, ValueError, KeyError, TypeError):
        return "another process"
