"""What was said, and the ways to go back on it.

Owns the conversation as a value: every operation gives a new one. Knows nothing of
tokens, caches, files or screens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from configs.errors import RequestError
from inference.request import Message


@dataclass(frozen=True)
class Conversation:
    """A system message, and turns that each begin with a message of the user.

    Where an answer calls tools, one message with the result of each call follows, and then
    another answer.

    Attributes:
        system: The system message, if any.
        messages: All others, in order.

    Raises:
        RequestError: The messages are not of that form.
    """

    system: str | None = None
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        before, calls = "assistant", 0
        for number, message in enumerate(self.messages, start=1):
            if message.role not in ("user", "assistant", "tool"):
                raise RequestError(f"message {number}", f"is of the role {message.role!r}")
            if message.role == "tool":
                if not calls:
                    raise RequestError(f"message {number}", "is the result of no call")
                calls -= 1
            elif (message.role == "user") != (before == "assistant"):
                expected = "user" if before == "assistant" else "assistant"
                raise RequestError(f"message {number}", f"is not of the {expected}")
            else:
                calls = len(message.tool_calls)
            before = message.role

    @property
    def whole(self) -> tuple[Message, ...]:
        """The messages as a template takes them, the system's first."""
        said = () if self.system is None else (Message("system", self.system),)
        return (*said, *self.messages)

    @property
    def turns(self) -> int:
        """How often the user spoke."""
        return sum(message.role == "user" for message in self.messages)

    @property
    def waits(self) -> bool:
        """Whether what was said last has no answer."""
        return bool(self.messages) and self.messages[-1].role != "assistant"

    @property
    def calls(self) -> tuple[Mapping[str, Any], ...]:
        """The calls of the last answer that have no result yet."""
        given = 0
        for message in reversed(self.messages):
            if message.role == "assistant":
                return message.tool_calls[given:]
            given += message.role == "tool"
        return ()

    @property
    def question(self) -> str | None:
        """The user's last message."""
        return self._last("user")

    @property
    def answer(self) -> str | None:
        """The last answer."""
        return self._last("assistant")

    def ask(self, text: str) -> Conversation:
        """The user says something.

        Raises:
            RequestError: What was said before has no answer, as in a file from elsewhere.
        """
        if self.waits:
            mend = "/retry answers it, /undo takes it back"
            if self.messages[-1].role == "tool" and self.calls:
                mend = "/result gives that of the next call, /undo takes it back"
            raise RequestError("chat", "the last message has no answer yet", mend)
        return replace(self, messages=(*self.messages, Message("user", text)))

    def result(self, text: str) -> Conversation:
        """What the first of the calls that have no result has given.

        Raises:
            RequestError: There is none.
        """
        if not self.calls:
            raise RequestError("/result", "the last answer calls no tool", "say something")
        call = self.calls[0]
        name, id_ = call["function"]["name"], call.get("id")
        said = Message("tool", text, tool_call_id=None if id_ is None else str(id_), name=name)
        return replace(self, messages=(*self.messages, said))

    def answered(self, said: Message | str) -> Conversation:
        """The assistant answers, with text alone or with a whole message."""
        message = Message("assistant", said) if isinstance(said, str) else said
        return replace(self, messages=(*self.messages, message))

    def undo(self) -> Conversation:
        """Without the last turn.

        Raises:
            RequestError: There is none.
        """
        return replace(self, messages=self.messages[: self._last_turn()])

    def retry(self) -> Conversation:
        """As it was before the last answer.

        Raises:
            RequestError: There is no turn, or calls have no result.
        """
        self._last_turn()  # refuses where nothing was said
        if not self.waits:
            return replace(self, messages=self.messages[:-1])
        if self.messages[-1].role == "tool" and self.calls:
            raise RequestError("chat", "a call has no result yet", "/result gives it")
        return self

    def edit(self, text: str) -> Conversation:
        """As if the user had said this the last time.

        Raises:
            RequestError: There is no turn.
        """
        return self.undo().ask(text)

    def clear(self) -> Conversation:
        """The system message alone."""
        return replace(self, messages=())

    def with_system(self, system: str | None) -> Conversation:
        """The same, said after another system message."""
        return replace(self, system=system)

    def _last(self, role: str) -> str | None:
        found = [message.content for message in self.messages if message.role == role]
        return found[-1] if found else None

    def _last_turn(self) -> int:
        """Where the last turn begins."""
        for index in reversed(range(len(self.messages))):
            if self.messages[index].role == "user":
                return index
        raise RequestError("chat", "nothing was said yet", "say something first")
