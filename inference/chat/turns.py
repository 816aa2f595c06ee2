"""One turn of a chat on the engine: what is new of the prompt is read, then the answer.

Owns the request of a turn and the cache kept between turns. Knows nothing of how
conversations are changed or shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import FerryError, RequestError
from inference.cache import SequenceCache, common_length
from inference.chat.kept import KeptCache
from inference.events import Event, Failed, Finished
from inference.marks import Mark
from inference.request import GenerationOptions, Message, Request, TokenRequest, seed_of_answer

if TYPE_CHECKING:
    from configs.schema import GenerateTable
    from inference.chat.conversation import Conversation
    from inference.load import LoadedModel
    from inference.session import Session

_WAYS_OUT = (
    "take turns back with /undo, begin anew with /clear, ask for less with /set max_tokens, "
    "or start again with a larger --context"
)


@dataclass
class Totals:
    """Tokens of all turns so far."""

    answers: int = 0
    read: int = 0
    cached: int = 0
    said: int = 0


class Turns:
    """Answers conversations, one after the other.

    Args:
        session: Whose settings hold where nothing else is set.
        loaded: The model.
    """

    def __init__(self, session: Session, loaded: LoadedModel) -> None:
        self.totals = Totals()
        self.kept = KeptCache()
        self._session = session
        self._loaded = loaded
        self._engine = session.engine(loaded)
        self._count = 0
        self._stays: dict[str, int | None] = {}  # of the last request

    @property
    def settings(self) -> GenerateTable:
        """What holds where the chat has set nothing else."""
        return self._session.settings.generate

    def check(self, changed: Mapping[str, Any]) -> None:
        """Refuse settings that contradict each other.

        Raises:
            RequestError: They do.
        """
        GenerationOptions.from_table(replace(self.settings, **changed))

    @property
    def context(self) -> int | None:
        """Most tokens that a conversation can have."""
        return self._session.context

    def request(
        self, conversation: Conversation, changed: Mapping[str, Any], attempt: int = 0
    ) -> TokenRequest:
        """The conversation in token ids, to be answered.

        Args:
            conversation: The user spoke last.
            changed: Keys of [generate] that the chat has set.
            attempt: How often this was asked before; each has its own seed.

        Raises:
            RequestError: It does not fit the context; it is never cut.
            TemplateError: The template refuses it.
        """
        table = replace(self.settings, **changed)
        options = GenerationOptions.from_table(table)
        sampling = options.sampling
        seed = seed_of_answer(sampling.seed, attempt)
        options = replace(options, sampling=replace(sampling, seed=seed))
        self._count += 1
        asked = Request(str(self._count), messages=conversation.whole, options=options)
        try:
            made = self._session.tokenize(asked, own_max_tokens="max_tokens" in changed)
        except RequestError as error:
            if error.where != "--prompt":
                raise
            raise RequestError("chat", error.what, _WAYS_OUT) from error
        self._stays = {made.id: self._length_that_stays(made, asked)}
        return made

    def run(self, request: TokenRequest) -> Iterator[Event]:
        """The events of the answer."""
        given = self.kept.take(request.prompt)
        stays = self._stays.get(request.id)
        self._engine.submit(request, given, keep=True, look=self.kept.mark, look_at=stays)
        sound = False
        try:
            for event in self._engine.run():
                match event:
                    case Finished():
                        sound = event.reason != "error"
                        self._count_in(event)
                    case Failed():
                        sound = False
                yield event
        finally:
            held = self._engine.take_cache(request.id)
            self.kept.put(held if sound else None)

    def _length_that_stays(self, request: TokenRequest, asked: Request) -> int | None:
        """How much of a prompt the next one will begin with; None where nobody needs to know.

        A template may end a prompt with more than it tells of an answer later: with the mark
        that begins a thought, which the history then leaves out. A cache that can't be cut
        has to be marked before that.
        """
        if not self._needs_marks:
            return None
        coming = (*asked.messages, Message("assistant", "x"), Message("user", "x"))
        options = replace(asked.options, max_tokens=1, min_tokens=0)
        try:
            after = self._session.tokenize(
                replace(asked, messages=coming, options=options), own_max_tokens=True
            )
        except FerryError:  # it will not fit, so there is no next one
            return None
        stays = common_length(request.prompt, after.prompt)
        return stays if 0 < stays < len(request.prompt) - 1 else None

    @cached_property
    def _needs_marks(self) -> bool:
        return Mark.of(SequenceCache(self._loaded.model)) is not None

    def cancel(self, request: TokenRequest) -> None:
        """End the answer with what it has; a signal handler may call it."""
        self._engine.cancel(request.id)

    def save_cache(self, path: Path) -> bool:
        """Write the cache to a file; False where there is none yet.

        Raises:
            DiskError: It can't be written; what was there is still there.
        """
        from inference.cache_file import save

        contents = self.kept.contents()
        if contents is None:
            return False
        save(path, *contents, self._identity)
        return True

    def load_cache(self, path: Path) -> int:
        """Go on from the cache in a file; how many tokens it has read.

        Raises:
            SourceError: It is none, or of another model, dtype or kind of cache.
            DiskError: It can't be read.
        """
        from inference.cache_file import load

        form = self._session.kv_form
        held, marks = load(path, self._loaded.model, form, self._identity)
        self.kept.restore(held, marks)
        return len(held.tokens)

    @cached_property
    def _identity(self) -> dict[str, str]:
        from inference.cache_file import identity

        load_bits = self._session.settings.memory.load_bits
        return identity(self._loaded, self._session.kv_form, load_bits)

    def _count_in(self, event: Finished) -> None:
        usage, totals = event.usage, self.totals
        totals.answers += 1
        totals.read += usage.prompt_tokens - usage.cached_tokens
        totals.cached += usage.cached_tokens
        totals.said += usage.completion_tokens
