"""A model whose weights stay on the hub until they are needed, shard by shard.

Owns the reading of headers across the network, and the coming and going of single
shards in a folder of the caller's. What the user's own hub cache holds already is used
in place and never removed. Importing this module imports `huggingface_hub`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from checkpoint import disk
from checkpoint.at_once import at_once
from checkpoint.digests import Digest
from checkpoint.folder import WEIGHTS_INDEX
from checkpoint.header import Header, parse_header, read_header
from checkpoint.hub import check_listed, download_small, weight_names
from checkpoint.hub_client import HubFile, list_files, patiently, talking
from checkpoint.needed_files import needed_others
from checkpoint.shards import join_headers, read_index
from checkpoint.source import SourceFolder
from checkpoint.tensors import Catalog
from checkpoint.transfer import fetch, read_part
from checkpoint.verified import Expected, check_files, hash_file
from configs.errors import HubError, SourceError

# Most headers are shorter, so that one request brings one.
_FIRST_PART = 1 << 17


@dataclass(frozen=True)
class RemoteShard:
    """A shard on the hub, and its place here.

    Attributes:
        path: Where it lies once it is fetched.
        url: Where it is downloaded.
        size: Its bytes.
        digest: What it should hash to.
        cached: Whether the user's hub cache holds it; then `path` lies in that.
    """

    path: Path
    url: str
    size: int
    digest: Digest
    cached: bool


class RemoteModel:
    """A model at one commit of which only the small files are here.

    Made by `open_remote`. Its methods raise HubError for the hub and the network,
    DiskError for the disk.

    Attributes:
        source: The folder of everything but the weights: config, tokenizer, index,
            licences, README; in the library's cache.
        commit: The commit that all of it, the shards included, belongs to.
        shards: Every shard by its name, in name order.
    """

    def __init__(self, source: SourceFolder, commit: str, shards: Mapping[str, RemoteShard]):
        self.source = source
        self.commit = commit
        self.shards = shards
        self._repo_id = str(source.repo_id)
        self._brought: set[Path] = set()

    def catalog(self) -> Catalog:
        """Every tensor, by headers read across the network: a few 100 kB a shard.

        A tensor's `file` is where its shard will lie. The checks are those of
        `checkpoint.shards.read_catalog`.

        Raises:
            HeaderError: A shard is not a safetensors file that MLX can carry.
            ShardIndexError: The index does not fit the shards.
            HubError: The server sends no parts of files, among others.
        """
        shards = list(self.shards.values())
        with talking(self._repo_id, self.commit):
            headers = at_once(_header, shards)
        has_index = (self.source.path / WEIGHTS_INDEX).exists()
        index = read_index(self.source.path) if has_index else None
        return join_headers(
            index, {shard.path: header for shard, header in zip(shards, headers, strict=True)}
        )

    def fetch(self, name: str, tell: Callable[[int], None] = lambda count: None) -> Path:
        """Bring a shard here, going on with what an earlier try has left; gives its path.

        Args:
            name: The shard's name.
            tell: Told of bytes as they come.

        Raises:
            HubError: It does not arrive, or not as the hub describes it.
            SourceError: What lies in its place is something else.
        """
        shard = self.shards[name]
        if shard.cached:
            expected = Expected(shard.path, shard.size, shard.digest)
            check_files([expected], "the hub", quiet=True)
        elif disk.is_there(shard.path):
            _adopt(shard, tell)
            self._brought.add(shard.path)
        else:
            partial = _partial(shard)
            with talking(self._repo_id, self.commit):
                fetch(shard.url, partial, shard.size, shard.digest, tell, Event())
            disk.rename(partial, shard.path)
            self._brought.add(shard.path)
        return shard.path

    def release(self, name: str) -> None:
        """Remove a shard that `fetch` brought; one in the user's cache stays."""
        path = self.shards[name].path
        if path in self._brought:
            self._brought.remove(path)
            disk.remove(path)


def open_remote(
    repo_id: str, revision: str | None, folder: Path, *, quiet: bool = False
) -> RemoteModel:
    """Pin a commit and bring everything but the weights.

    Args:
        repo_id: The hub's name of the model.
        revision: A branch, tag or commit; None for the main branch.
        folder: An existing folder for the shards. Those that an earlier process left
            there, whole or in part, are gone on with if they are of this commit.
        quiet: Show no progress on stderr.

    Raises:
        HubError: The model does not exist, may not be read, has no safetensors, or the
            hub can't be reached or does not say what its files hash to.
        SourceError: A file is not what the hub says it is.
    """
    with talking(repo_id, revision):
        listing = list_files(repo_id, revision)
        weights = weight_names(repo_id, listing)
        others = needed_others(listing.files)
        if WEIGHTS_INDEX in weights:
            weights.remove(WEIGHTS_INDEX)
            others.append(WEIGHTS_INDEX)
        if not all(name.endswith(".safetensors") for name in weights):
            what = f"holds its weights as PyTorch's files ({weights[0]}), which are read whole"
            raise HubError(repo_id, what, "leave --consume-source out")
        snapshot = download_small(repo_id, listing.commit, others)
    check_listed(snapshot, [listing.files[name] for name in others], quiet=quiet)
    source = SourceFolder(snapshot, "hub", repo_id, listing.commit)
    shards = {name: _shard(repo_id, listing.files[name], snapshot, folder) for name in weights}
    return RemoteModel(source, listing.commit, shards)


def _shard(repo_id: str, file: HubFile, snapshot: Path, folder: Path) -> RemoteShard:
    if file.size is None or file.digest is None:
        what = f"the hub does not say what {file.name} hashes to"
        raise HubError(repo_id, what, "leave --consume-source out, or use another HF_ENDPOINT")
    cached = (snapshot / file.name).exists()
    path = (snapshot if cached else folder) / file.name
    return RemoteShard(path, file.url, file.size, file.digest, cached)


def _header(shard: RemoteShard, stop: Event) -> Header:
    """A shard's header, from the cache or by one request, seldom two."""
    if shard.cached:
        return read_header(shard.path)
    first = _read(shard, min(_FIRST_PART, shard.size), 0) if shard.size else bytearray()

    def read(count: int, offset: int) -> bytearray:
        have = first[offset : offset + count]
        if len(have) < count:
            have += _read(shard, count - len(have), offset + len(have))
        return have

    return parse_header(shard.path, shard.size, read)


def _read(shard: RemoteShard, count: int, offset: int) -> bytearray:
    return patiently(lambda: read_part(shard.url, offset, count, shard.size))


def _adopt(shard: RemoteShard, tell: Callable[[int], None]) -> None:
    """Make sure that what lies in a shard's place is the shard."""
    with disk.reading(shard.path) as fd:
        size = disk.file_bytes(fd, shard.path)
    whole = size == shard.size
    if not whole or not hash_file(shard.path, shard.digest, size, tell, Event()).matches:
        raise SourceError(shard.path, "is not the shard that the hub has", "delete it")


def _partial(shard: RemoteShard) -> Path:
    """Named after the content too, so that another commit's is not gone on with."""
    return shard.path.with_name(f"{shard.path.name}.{shard.digest.value[:12]}.incomplete")
