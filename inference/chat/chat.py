"""The chat itself: a conversation, how it is set, and the turn that answers it.

Owns the state that commands change and the order of a turn. Knows nothing of the
commands' names, nor of how lines are read or answers shown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from configs.command import note
from configs.errors import DiskError, RequestError, SourceError
from inference.batch.messages import read_messages
from inference.calculator import parts_of
from inference.chat.conversation import Conversation
from inference.chat.saved import Saved
from inference.chat.turns import Turns
from inference.chat.view import View
from inference.device import allocating
from inference.events import Finished
from inference.render import Answer
from inference.request import Message, TokenRequest
from inference.statistics import guessed


@dataclass
class Chat:
    """A conversation under way.

    Attributes:
        turns: Answers it.
        view: Where lines come from and answers go.
        model: Its name, as the user gave it.
        conversation: What was said.
        changed: Keys of [generate] that were set.
        quiet: Say nothing but what was asked for, and errors.
        file: Where every turn is saved; None for nowhere.
        with_cache: Whether the KV cache is saved beside what is saved.
        draft: What the next line begins with; it then takes the place of the last turn.
        over: Whether the user leaves.
    """

    turns: Turns
    view: View
    model: str
    conversation: Conversation
    changed: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False
    file: Path | None = None
    with_cache: bool = False
    draft: str | None = None
    over: bool = False
    _under_way: TokenRequest | None = None
    _attempt: int = 0

    def ask(self, text: str) -> None:
        """The user says something; it is answered.

        Raises:
            FerryError: It could not be answered.
        """
        draft, self.draft = self.draft, None
        if draft is None:
            self.turn(self.conversation.ask(text))
        else:
            self.turn(self.conversation.edit(text))

    def turn(self, asked: Conversation, attempt: int = 0) -> None:
        """Answer a conversation, and go on with it.

        An error leaves the conversation as it was. What was said before an answer was
        stopped, or went wrong, is kept; a turn in which nothing was is taken back.

        Raises:
            FerryError: It could not be answered.
        """
        request = self.turns.request(asked, self.changed, attempt)
        self._under_way = request
        try:
            with allocating():
                answer = self.view.answer(request, self.turns.run(request))
        finally:
            self._under_way = None
        if answer.error is not None:
            raise answer.error
        finished = answer.finished
        if finished is None:
            raise RuntimeError("the event stream ended without an end of the answer")
        said = _message(answer)
        if request.options.calculator:
            said = replace(said, parts=parts_of(said.content))
        if said.content or said.tool_calls or finished.reason in ("stop", "length"):
            self.conversation, self._attempt = asked.answered(said), attempt
            self.save_if_asked()
        else:
            self.tell("nothing was said; the turn is taken back")
        self._close(finished, request)
        if said.tool_calls and self.view.alive:
            called = ", ".join(call["function"]["name"] for call in said.tool_calls)
            self.tell(f"it calls {called}: /result TEXT says what that gives")

    def retry(self) -> None:
        """Answer the last turn anew.

        Raises:
            FerryError: It could not be answered.
        """
        self.turn(self.conversation.retry(), self._attempt + 1)

    def stop(self) -> None:
        """End the answer under way, if there is one; a signal handler may call it."""
        if self._under_way is not None:
            self.turns.cancel(self._under_way)

    def setting(self, name: str) -> object:
        """The value of a key of [generate] that holds now."""
        return getattr(replace(self.turns.settings, **self.changed), name)

    def set(self, name: str, value: object) -> None:
        """Set a key of [generate] for the turns to come.

        Raises:
            RequestError: It contradicts another.
        """
        changed = {**self.changed, name: value}
        self.turns.check(changed)
        self.changed = changed
        self.save_if_asked()

    def save(self, path: Path, *, with_cache: bool = False) -> bool:
        """Save the conversation; whether its cache now lies beside it.

        Raises:
            DestinationError: The file holds something else.
            DiskError: It can't be written.
        """
        from inference.cache_file import beside

        Saved(self.conversation, self.changed, self.model).save(path)
        return with_cache and self.turns.save_cache(beside(path))

    def save_if_asked(self) -> None:
        """Save where every turn is to be saved; the cache, which is large, only at the end."""
        if self.file is not None:
            self.save(self.file)

    def open(self, path: Path) -> None:
        """Go on with the chat in a file, and with the cache beside it.

        Raises:
            SourceError: It holds no chat.
            DiskError: It can't be read.
        """
        from checkpoint import disk
        from inference.cache_file import beside

        saved = Saved.load(path)
        self.turns.check(saved.changed)
        self.conversation, self.changed = saved.conversation, dict(saved.changed)
        self.draft, self._attempt = None, 0
        if saved.model != self.model:
            self.tell(f"this chat was with {saved.model or 'another model'}")
        about = f"{counted(saved.conversation)} from {path}"
        if disk.is_there(beside(path)):
            try:
                with allocating():
                    about += f", with {self.turns.load_cache(beside(path))} tokens in the cache"
            except (SourceError, DiskError) as error:
                self.tell(f"the cache is left aside, and the chat will be read anew: {error}")
        self.tell(about)

    def leave(self) -> None:
        """Save at the end what is too large to be saved each turn."""
        if self.file is not None and self.with_cache:
            self.save(self.file, with_cache=True)

    def tell(self, text: str) -> None:
        """Say something on stderr that nobody asked for."""
        if not self.quiet:
            note(text)

    def _close(self, finished: Finished, request: TokenRequest) -> None:
        """What is to be said after an answer."""
        self.tell(status(finished, self.turns.context))
        if finished.reason == "length":
            longest = request.options.max_tokens
            self.tell(f"the answer was cut after {longest} tokens: /set max_tokens allows more")
        if finished.error is not None:
            raise finished.error


def _message(answer: Answer) -> Message:
    """What the assistant said, for the conversation.

    Calls that can't be read, or be told to a template, stay as text.
    """
    texts = ["".join(answer.pieces), *(error["text"] for error in answer.calls.errors)]
    calls = answer.calls.read
    try:
        [read] = read_messages([{"role": "assistant", "content": "", "tool_calls": calls}])
    except RequestError:
        texts.append(json.dumps(calls, ensure_ascii=False))
        read = Message("assistant", "")
    content = "\n".join(text for text in texts if text)
    return replace(read, content=content, thinking=answer.thinking or None)


def status(finished: Finished, context: int | None) -> str:
    """The line after an answer: speed, time to the first token, context, memory."""
    usage, timings = finished.usage, finished.timings
    rate = timings.decode_tokens_per_second
    used = usage.prompt_tokens + usage.completion_tokens
    parts = [
        f"{usage.completion_tokens} tokens" + ("" if rate is None else f" at {rate:,.1f}/s"),
        f"read {usage.prompt_tokens - usage.cached_tokens} of {usage.prompt_tokens}",
        f"context {used}" + ("" if context is None else f" of {context}"),
        memory(),
    ]
    if timings.first_token_seconds is not None:
        parts.insert(1, f"first token after {timings.first_token_seconds:.2f} s")
    if (guesses := guessed([finished])) is not None:
        parts.append(guesses)
    if finished.reason == "cancelled":
        parts.insert(0, "stopped")
    return "; ".join(parts)


def counted(conversation: Conversation) -> str:
    """How many turns it has, in words."""
    return f"{conversation.turns} turn{'' if conversation.turns == 1 else 's'}"


def memory() -> str:
    """What MLX holds now."""
    return f"memory {mx.get_active_memory() / 1e6:,.0f} MB"
