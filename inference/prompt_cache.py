"""`--prompt-cache FILE`: what prompts begin with, read once and kept in a file.

Owns when the file is made and when it is of use. One that is not there is made of the
prompt, or of what the prompts of a batch begin with; one that is there is never changed,
and refused where it is of little use. Knows nothing of the file's form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from checkpoint import disk
from configs.command import note
from configs.errors import DestinationError, DiskError, RequestError, SourceError
from inference.beginning import Beginning
from inference.cache import Held, SequenceCache, common_length
from inference.cache_file import identity, load, save
from inference.engine import Engine
from inference.load import LoadedModel
from inference.marks import Mark
from inference.prefixes import SHORTEST
from inference.request import TokenRequest
from inference.session import Session

_FLAG = "--prompt-cache"
_LOOKED_AT = 256  # requests of a batch, to see what they share
_MEND = "give another file, or remove it to have it made anew"


def check_place(path: Path) -> None:
    """Refuse a file that could not be made, before anything is computed for it.

    Raises:
        DestinationError: It has no folder, or is one.
    """
    if disk.is_folder(path):
        raise DestinationError(path, "is a folder", "give a file")
    if not disk.is_folder(path.parent):
        raise DestinationError(path, "has no folder to be in", "make that first")


class PromptCache:
    """A file for one run.

    Args:
        path: The file.
        session: Of the run.
        loaded: The model.
        quiet: Say nothing of it.

    Raises:
        SourceError: It is of another model, dtype or form of cache.
        DiskError: It can't be read.
    """

    def __init__(
        self, path: Path, session: Session, loaded: LoadedModel, *, quiet: bool = False
    ) -> None:
        self._path = path
        self._quiet = quiet
        self._same = identity(loaded, session.kv_form, session.settings.memory.load_bits)
        self._marks: list[Mark] = []
        self._failed: DiskError | None = None
        self._found: Beginning | None = None
        if disk.is_there(path):
            held, marks = load(path, loaded.model, session.kv_form, self._same, _MEND)
            self._found = Beginning(held, marks)

    def one(
        self, engine: Engine, requests: Iterable[TokenRequest], stays: Callable[[], int | None]
    ) -> Iterator[TokenRequest]:
        """The answers to one prompt: they begin with the file, or it is made of the prompt.

        Args:
            engine: Runs them.
            requests: All of the same prompt; those that are returned are to be run.
            stays: Gives how many tokens of the prompt a longer one would begin with.

        Raises:
            SourceError: The prompt begins otherwise than the file.
        """
        first, *others = requests
        if self._found is not None:
            self._use(engine, [first.prompt])
            return iter((first, *others))

        def look(cache: SequenceCache) -> None:
            if cache.length < len(first.prompt) - 1:
                self._mark(cache)
            else:
                self._save(first.prompt, cache)

        place = stays()
        if len(first.prompt) < 2:
            raise RequestError(_FLAG, "the prompt has one token, which is never kept", "leave out")
        engine.submit(first, look=look, look_at=place)
        return iter(others)

    def many(self, engine: Engine, requests: Iterator[TokenRequest]) -> Iterator[TokenRequest]:
        """The rows of a batch: they begin with the file, or it is made of what they share.

        Args:
            engine: Runs them.
            requests: The rows; those that are returned are to be run.

        Raises:
            SourceError: No row begins as the file does.
            RequestError: The rows do not begin alike.
        """
        first = list(islice(requests, _LOOKED_AT))
        if not first:
            return iter(())
        prompts = [request.prompt for request in first]
        if self._found is not None:
            self._use(engine, prompts)
            return chain(first, requests)
        shared = min(common_length(prompts[0], prompt) for prompt in prompts)
        shared = min(shared, *(len(prompt) - 1 for prompt in prompts))
        if shared < SHORTEST:
            what = f"the rows begin alike for {shared} tokens, and {SHORTEST} are worth keeping"
            raise RequestError(_FLAG, what, "leave it out")

        def look(cache: SequenceCache) -> None:
            if cache.length == shared:
                self._save(prompts[0][:shared], cache)

        engine.submit(first[0], look=look, look_at=shared)
        return chain(first[1:], requests)

    def close(self) -> None:
        """The answers are there; say what became of the file.

        Raises:
            DiskError: It could not be written.
        """
        if self._failed is not None:
            raise self._failed

    def _use(self, engine: Engine, prompts: list[tuple[int, ...]]) -> None:
        found = self._found
        if found is None:
            raise RuntimeError("there is no file to use")
        best = max(prompts, key=found.usable)
        usable, kept = found.usable(best), len(found.held.tokens)
        if not usable or 2 * usable < min(kept, len(best) - 1):
            shared = common_length(found.held.tokens, best)
            what = f"begins otherwise than the prompt: {shared:,} of its {kept:,} tokens are alike"
            mend = _MEND
            if 2 * shared >= min(kept, len(best) - 1):
                what += ", and a cache of this architecture can't be cut there"
                mend = f"{_MEND}, by a prompt of what is shared alone"
            raise SourceError(self._path, what, mend)
        engine.begin_with(found)

    def _mark(self, cache: SequenceCache) -> None:
        if (made := Mark.of(cache)) is not None:
            self._marks.append(made)

    def _save(self, prompt: tuple[int, ...], cache: SequenceCache) -> None:
        tokens = prompt[: cache.length]
        try:
            save(self._path, Held(tokens, cache), self._marks, self._same)
        except DiskError as error:
            self._failed = error  # the answer first
            return
        if not self._quiet:
            note(f"{self._path}: made, with the cache of {len(tokens):,} tokens")
