"""A PyTorch file as a model's weights: the names as the model has them, and what to say of it.

Owns the prefixes that training wrappers put before all names. Knows nothing of folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from checkpoint.folder import shown
from checkpoint.pickles.archive import Archive, read_archive

# Of torch's DistributedDataParallel and of torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")


def read_model_file(path: Path) -> Archive:
    """`read_archive`, with the prefixes of training wrappers taken off the names.

    Raises:
        PickleError: It is not a file of tensors that can be read in place.
        SourceError: It is not a regular file.
        DiskError: It can't be read.
    """
    archive = read_archive(path)
    tensors = archive.tensors
    while any(all(name.startswith(prefix) for name in tensors) for prefix in _WRAPPERS):
        tensors = {
            name.partition(".")[2]: replace(ref, name=name.partition(".")[2])
            for name, ref in tensors.items()
        }
    return replace(archive, tensors=tensors)


def warnings_of(path: Path, archive: Archive) -> Iterator[str]:
    """What a user should know of a file, a line each."""
    if archive.left_out:
        yield f"{path} also holds {shown(archive.left_out)}, no weights, which are left out"
    if archive.unchecked:
        yield f"{path} was saved without checksums: damage to it can't be seen"
