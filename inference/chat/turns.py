"""One turn of a chat on the engine: what is new of the prompt is read, then the answer.

Owns the request of a turn and the cache kept between turns. Knows nothing of how
conversations are changed or shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from configs.errors import RequestError
from inference.chat.kept import KeptCache
from inference.events import Event, Failed, Finished
from inference.request import GenerationOptions, Request, TokenRequest, seed_of_answer

if TYPE_CHECKING:
    from inference.chat.conversation import Conversation
    from inference.load import LoadedModel
    from inference.session import Session

_WAYS_OUT = "take turns back with /undo, begin anew with /clear, or lower it with /set max_tokens"


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
        self._engine = session.engine(loaded)
        self._count = 0

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
        table = replace(self._session.settings.generate, **changed)
        options = GenerationOptions.from_table(table)
        sampling = options.sampling
        seed = seed_of_answer(sampling.seed, attempt)
        options = replace(options, sampling=replace(sampling, seed=seed))
        self._count += 1
        asked = Request(str(self._count), messages=conversation.whole, options=options)
        try:
            return self._session.tokenize(asked, own_max_tokens="max_tokens" in changed)
        except RequestError as error:
            if error.where != "--prompt":
                raise
            raise RequestError("chat", error.what, _WAYS_OUT) from error

    def run(self, request: TokenRequest) -> Iterator[Event]:
        """The events of the answer."""
        given = self.kept.take(request.prompt)
        self._engine.submit(request, given, keep=True, look=self.kept.mark)
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

    def cancel(self, request: TokenRequest) -> None:
        """End the answer with what it has; a signal handler may call it."""
        self._engine.cancel(request.id)

    def _count_in(self, event: Finished) -> None:
        usage, totals = event.usage, self.totals
        totals.answers += 1
        totals.read += usage.prompt_tokens - usage.cached_tokens
        totals.cached += usage.cached_tokens
        totals.said += usage.completion_tokens
