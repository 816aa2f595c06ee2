"""Models on the Hugging Face hub: what the local cache has, and how the rest gets there.

Owns the choice of files, their way into the library's own cache, and the check of every
one of them against the hub's hashes. Large files are fetched by `checkpoint.transfer`,
as the library throws away what a cut connection has left; it does all else, its cache,
locks and tokens included. Importing this module imports `huggingface_hub`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Event

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from checkpoint import disk, own_cache
from checkpoint.at_once import StoppedError, at_once
from checkpoint.byte_bar import byte_bar
from checkpoint.digests import Digest
from checkpoint.folder import (
    CONFIG,
    PICKLED_INDEX,
    TOKENIZER_PATTERNS,
    WEIGHTS,
    WEIGHTS_INDEX,
    files_like,
)
from checkpoint.hub_client import HubFile, Listing, list_files, patiently, revision_name, talking
from checkpoint.nanochat.folder import repository_files
from checkpoint.needed_files import (
    OTHER_PATTERNS,
    needed_others,
    needed_weights,
    python_files,
)
from checkpoint.shards import ShardIndex, read_index
from checkpoint.transfer import fetch, url_shown
from checkpoint.verified import Expected, check_files, remember
from checkpoint.weight_files import WeightFiles, weight_files
from configs.command import note
from configs.errors import HubError, SourceError

_THE_HUB = "the hub"
_MANIFEST = "hub-files"


@dataclass(frozen=True)
class _Job:
    """A large file to fetch."""

    name: str
    url: str
    size: int
    digest: Digest


def cached_snapshot(
    repo_id: str, revision: str | None, *, quiet: bool = False, code: bool = False
) -> Path | None:
    """The folder of the model in the local cache, if it is complete; asks no network.

    Its files are held to the hashes that the cache names them by. With `code`, one without
    Python files is not complete.

    Raises:
        HubError: The revision can be none.
        SourceError: A file in the cache is damaged.
    """
    with talking(repo_id, revision):
        try:
            found = snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=[*OTHER_PATTERNS, WEIGHTS_INDEX, PICKLED_INDEX],
                local_files_only=True,
            )
        except LocalEntryNotFoundError:
            return None
    snapshot = Path(found)
    known = own_cache.recall(_MANIFEST, f"{repo_id}@{snapshot.name}").get("files")
    known = known if isinstance(known, dict) else {}
    names = _complete(snapshot, known)
    scripts = python_files(disk.list_folder(snapshot)) if code else []
    if names is None or (code and not scripts):
        return None
    names += scripts
    expected = [_by_cache(snapshot / name, known.get(name)) for name in names]
    check_files(expected, _THE_HUB, quiet=quiet)
    return snapshot


def download_snapshot(
    repo_id: str, revision: str | None, *, quiet: bool = False, code: bool = False
) -> Path:
    """Download what a conversion needs of the model, all of one commit, into the cache.

    Args:
        repo_id: The hub's name of the model.
        revision: A branch, tag or commit; None for the main branch.
        quiet: Show no progress on stderr.
        code: The model's own Python files too.

    Raises:
        HubError: It does not exist, may not be read, has no weights, or the hub can't
            be reached.
        SourceError: A file is not what the hub says it is.
    """
    with talking(repo_id, revision):
        listing = list_files(repo_id, revision)
        names = [*needed_others(listing.files), *weight_names(repo_id, listing)]
        names += python_files(listing.files) if code else []
        files = [listing.files[name] for name in names]
        ours = [job for file in files if (job := _job(file)) is not None]
        _fetch_large(repo_id, listing.commit, ours, quiet=quiet)
    left = len(ours) < sum(file.large for file in files)
    with talking(repo_id, revision, bars=left and not quiet and sys.stderr.isatty()):
        snapshot = download_small(repo_id, listing.commit, names)
    check_listed(snapshot, files, quiet=quiet)
    _note_down(repo_id, snapshot, files)
    _remember_revision(snapshot, revision_name(revision), listing.commit)
    return snapshot


def weight_names(repo_id: str, listing: Listing) -> list[str]:
    """The files that hold the weights, and their index, if there is one, which is fetched.

    Raises:
        HubError: There are no weights, or shards are missing.
        ShardIndexError: The index is none.
    """

    def index(name: str) -> ShardIndex:
        path = Path(patiently(lambda: hf_hub_download(repo_id, name, revision=listing.commit)))
        check_listed(path.parent, [listing.files[name]], quiet=True)
        return read_index(path.parent, name)

    return needed_weights(repo_id, listing.files, index)


def download_small(repo_id: str, commit: str, names: Sequence[str]) -> Path:
    """Let the library bring these files into its cache; gives the snapshot's folder.

    One by one: for several at once it may give a folder that lacks some.
    """

    def bring(name: str, stop: Event) -> str:
        if stop.is_set():
            raise StoppedError
        return patiently(lambda: hf_hub_download(repo_id, name, revision=commit))

    at_once(bring, names, threads=8)
    return _storage(repo_id) / "snapshots" / commit


def check_listed(snapshot: Path, files: Iterable[HubFile], *, quiet: bool) -> None:
    """Hold files of a snapshot to what the hub's list says of them.

    Where the list says nothing, the names in the cache do.
    """
    expected = [
        Expected(snapshot / file.name, file.size, file.digest)
        if file.digest is not None
        else _by_cache(snapshot / file.name, None)
        for file in files
    ]
    check_files(expected, _THE_HUB, quiet=quiet)


def _complete(folder: Path, known: Iterable[str]) -> list[str] | None:
    """The files of a snapshot, if all that a conversion can't do without are there.

    So are all that are known to belong to it: to us, from our own download, or to the
    library, where it has the repository's list.
    """
    if native := repository_files(_there(folder)):
        return native if all((folder / name).exists() for name in (*native, *known)) else None
    if not (folder / CONFIG).exists() or not files_like(folder, TOKENIZER_PATTERNS):
        return None
    there = [name for name in disk.list_folder(folder) if (folder / name).exists()]
    found = weight_files(there) or WeightFiles(single=WEIGHTS)
    weights = [str(found.single)]
    if found.index is not None:
        try:
            weights = sorted(set(read_index(folder, found.index).weight_map.values()))
        except SourceError:
            weights = []  # no download would mend it: let it be read and named
        weights.append(found.index)
    if not all((folder / name).exists() for name in (*weights, *known)):
        return None
    return [*files_like(folder, OTHER_PATTERNS), *weights]


def _there(folder: Path) -> list[str]:
    """The files of a folder, and those in a folder named tokenizer."""
    names = disk.list_folder(folder)
    if "tokenizer" in names and (folder / "tokenizer").is_dir():
        names += [f"tokenizer/{name}" for name in disk.list_folder(folder / "tokenizer")]
    return names


def _by_cache(path: Path, noted: object) -> Expected:
    """What the cache itself, or our own note of a download, says of a file."""
    if path.is_symlink():
        return Expected(path, None, Digest.named(path.readlink().name))
    match noted:  # a cache on a file system that has no links
        case [int(size), str(value)]:
            return Expected(path, size, Digest.named(value))
    return Expected(path, None, None)


def _job(file: HubFile) -> _Job | None:
    """A large file as one for us to fetch.

    Those beyond what plain HTTP carries are left to the library, and so are all where the
    user has set it up for speed.
    """
    if file.digest is None or file.size is None or file.digest.kind != "sha256":
        return None
    too_large = file.size > constants.MAX_HTTP_DOWNLOAD_SIZE
    if too_large and (constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None):
        what = f"has {file.size:,} bytes, more than the hub sends by plain HTTP"
        raise HubError(url_shown(file.url), what, "unset HF_HUB_DISABLE_XET, or install hf_xet")
    if too_large or constants.HF_XET_HIGH_PERFORMANCE:
        return None
    return _Job(file.name, file.url, file.size, file.digest)


def _fetch_large(repo_id: str, commit: str, jobs: Sequence[_Job], *, quiet: bool) -> None:
    """Fetch large files that the cache has not, some at a time."""
    storage = _storage(repo_id)
    snapshot = storage / "snapshots" / commit
    jobs = [job for job in jobs if not (snapshot / job.name).exists()]
    missing = {_blob(storage, job): job for job in jobs if not _blob(storage, job).exists()}
    if jobs:
        snapshot.mkdir(parents=True, exist_ok=True)
        (storage / "blobs").mkdir(exist_ok=True)
    here = sum(_size(_partial(blob)) for blob in missing)
    total = sum(job.size for job in missing.values())
    _check_room(repo_id, storage, total - here)
    with byte_bar(f"downloading {repo_id}", total, quiet=quiet) as tell:

        def bring(job: _Job, stop: Event) -> None:
            _bring(storage, snapshot, job, tell, stop)

        at_once(bring, jobs)


def _bring(
    storage: Path, snapshot: Path, job: _Job, tell: Callable[[int], None], stop: Event
) -> None:
    """Put one file into the cache as the library would: a blob, and a link that names it."""
    blob, pointer = _blob(storage, job), snapshot / job.name
    locks = storage.parent / ".locks" / storage.name
    locks.mkdir(parents=True, exist_ok=True)
    with _locked(locks / f"{blob.name}.lock", stop):
        fetched = not blob.exists()
        if fetched:
            fetch(job.url, _partial(blob), job.size, job.digest, tell, stop)
            disk.rename(_partial(blob), blob)
        pointer.parent.mkdir(exist_ok=True)
        pointer.unlink(missing_ok=True)  # it leads nowhere
        _link(blob, pointer)
        if fetched:
            remember(pointer, job.digest)


def _link(blob: Path, pointer: Path) -> None:
    """Name a blob in a snapshot; where there are no links, by moving it."""
    if not constants.HF_HUB_DISABLE_SYMLINKS:
        with contextlib.suppress(OSError):  # of a file system that knows none
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    if not pointer.exists():
        disk.rename(blob, pointer)


def _storage(repo_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"


def _blob(storage: Path, job: _Job) -> Path:
    return storage / "blobs" / job.digest.value


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.mlx-ferry.incomplete")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def _locked(path: Path, stop: Event) -> Iterator[None]:
    """Hold the library's own lock of a blob."""
    with contextlib.ExitStack() as stack:
        for turn in itertools.count():
            try:
                stack.enter_context(WeakFileLock(path, timeout=1.0))
                break
            except TimeoutError:
                if stop.is_set():
                    raise StoppedError from None
                if not turn:
                    note("waiting for another process that downloads the same file")
        yield


def _check_room(repo_id: str, storage: Path, needed: int) -> None:
    """Refuse a download that the disk has no room for."""
    existing = next(folder for folder in (storage, *storage.parents) if folder.exists())
    free = disk.free_bytes(existing)
    if free < needed:
        what = f"needs {needed:,} bytes in {constants.HF_HUB_CACHE}, where {free:,} are free"
        raise HubError(repo_id, what, "free some space, or set HF_HOME to another disk")


def _note_down(repo_id: str, snapshot: Path, files: Iterable[HubFile]) -> None:
    """Keep the hub's list for later checks, which without links has no other source."""
    known = {file.name: [file.size, file.digest and file.digest.value] for file in files}
    own_cache.note_down(_MANIFEST, f"{repo_id}@{snapshot.name}", {"files": known})


def _remember_revision(snapshot: Path, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch or tag was, so that the next run asks nobody.

    The library does so itself when it is given a branch; it was given the pinned commit.
    """
    if snapshot.name == revision:
        return
    ref = snapshot.parents[1] / "refs" / revision
    with contextlib.suppress(OSError):  # a cache that can't be written to still serves
        ref.parent.mkdir(parents=True, exist_ok=True)
        new = ref.with_name(f"{ref.name}.{os.getpid()}")
        new.write_text(commit)
        new.replace(ref)
