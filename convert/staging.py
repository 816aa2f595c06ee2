"""What is kept of a conversion that did not come to its end, and gone on with by the next.

Owns the decisions: whether what lies in the staging folder is of use, whether to keep it
when something goes wrong, and what to tell the user about it. Where it lies is
`destination`'s to note, how blocks are recorded the journal's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from checkpoint import disk
from configs.errors import ConfigError, DiskError, FerryError, SourceError, UsageError
from convert.blocks import Blocks
from convert.destination import Destination, clear, leftovers
from convert.journal import Journal, read_made_of
from convert.shard_file import ShardFiles
from convert.show import gigabytes

Note = Callable[[str], None]
"""Told what the user should know, a line at a time."""


@contextmanager
def staged(
    destination: Destination,
    made_of: Mapping[str, str],
    blocks: Blocks,
    *,
    resume: bool,
    note: Note,
) -> Iterator[Journal]:
    """The journal of a held destination's staged folder: continued if it can be, else new.

    When the `with` block fails, finished blocks are kept for the next run, unless
    another run could not do better. Nothing is kept when it succeeds.

    Args:
        destination: Where the result goes.
        made_of: What the result's bytes depend on.
        blocks: The blocks of the result.
        resume: Whether to go on with what is there.
        note: Told what is started over, and what can't be removed at the end.

    Raises:
        DiskError: the folder can't be read or written.
    """
    journal = Journal(destination.journal, blocks)
    continued = resume and _can_go_on(destination, made_of, note)
    if continued:
        journal.resume()
    else:
        clear(destination)
    try:
        if continued:
            _clear_papers(destination, blocks)
        else:
            disk.make_folder(destination.model)
            journal.begin(made_of)
        yield journal
    except (SourceError, UsageError, ConfigError):
        with suppress(DiskError):
            clear(destination)
        raise
    except FerryError as error:
        kept = _kept(destination, blocks, journal)
        if not kept:
            raise
        mend = f"{error.mend}; {kept}" if error.mend else kept
        raise type(error)(error.where, error.what, mend) from error
    except BaseException as error:  # Ctrl-C above all
        if kept := _kept(destination, blocks, journal):
            error.add_note(f"{kept}, and with --no-resume it starts over")
        raise
    finally:
        with suppress(DiskError):  # what of it is lost costs some blocks
            journal.close()
    try:
        clear(destination)
    except DiskError as error:
        note(f"what is left beside {destination.path} can't be removed: {error}")


def confirm(
    blocks: Blocks, journal: Journal, files: ShardFiles, progress: Callable[[str, int], None]
) -> int:
    """Read back what the journal says is finished, and forget what differs.

    Returns:
        Bytes of the finished blocks.

    Raises:
        DiskError: reading failed.
    """
    kept = 0
    for shard in blocks.plan.shards:
        there = files.has(shard)
        for block in filter(journal.has, blocks.in_shard(shard)):
            if there and all(
                files.checksum(shard, piece) == journal.checksum(piece) for piece in block.pieces
            ):
                progress(block.parameter.name, block.nbytes)
                kept += block.nbytes
            else:
                journal.forget(block)
    return kept


def tidy(destination: Destination, note: Note) -> None:
    """Remove what conversions to other destinations in the same folder left for nothing.

    What one of them can go on with is somebody's work, and only named.
    """
    with suppress(DiskError):
        for other in leftovers(destination):
            with suppress(FerryError):  # its owner will hear of it
                if read_made_of(other.journal) is None:
                    clear(other)
                else:
                    note(
                        f"{other.staging} ({gigabytes(disk.held_bytes(other.staging))}) is an"
                        f" interrupted conversion to {other.path}; it goes on when it is run again,"
                        " or can be removed"
                    )


def _can_go_on(destination: Destination, made_of: Mapping[str, str], note: Note) -> bool:
    found = read_made_of(destination.journal)
    if found is None or not disk.is_there(destination.model):
        return False
    changed = [name for name, digest in made_of.items() if found.get(name) != digest]
    if changed:
        note(f"starting over: the interrupted conversion differs in its {changed[0]}")
    return not changed


def _clear_papers(destination: Destination, blocks: Blocks) -> None:
    """Remove all that a conversion writes after the shards, which is written anew."""
    shards = {shard.file for shard in blocks.plan.shards}
    for name in disk.list_folder(destination.model):
        if name not in shards:
            disk.remove_tree(destination.model / name)


def _kept(destination: Destination, blocks: Blocks, journal: Journal) -> str:
    """Keep what is finished and say how much; clear up if nothing is."""
    finished = journal.finished_bytes
    with suppress(DiskError):
        if not finished or not disk.is_there(destination.model):
            finished = 0
            clear(destination)
    if not finished:
        return ""
    amounts = f"{gigabytes(finished)} of {gigabytes(blocks.plan.tensor_bytes)}"
    return f"{amounts} is kept: the same command goes on from there"
