"""The calls of one answer as JSON tells them.

Owns that none is dropped: what can't be read is told as the model said it. How calls are
read is `inference.tools`' to know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from configs.errors import RequestError

if TYPE_CHECKING:
    from inference.sections import Sections


@dataclass
class Calls:
    """The calls of one answer, as far as it has come.

    Attributes:
        read: As OpenAI writes them.
        errors: Those that can't be read: why, and what the model said.
        last: What the last one comes to, as JSON fields.
    """

    read: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    def take(self, text: str, sections: Sections | None) -> None:
        """Read the calls in a section of an answer."""
        if sections is None or sections.calls is None:
            raise RuntimeError("a call in an answer that can't have any")
        try:
            found = sections.calls.parse(text)
        except RequestError as error:
            self.errors.append({"message": str(error), "text": text})
            self.last = {"tool_call_error": self.errors[-1]}
            return
        fields = [call.fields(len(self.read) + at) for at, call in enumerate(found)]
        self.read += fields
        self.last = {"tool_calls": fields}

    def fields(self) -> dict[str, Any]:
        """All of them: `tool_calls`, and `tool_call_error` where one can't be read."""
        made: dict[str, Any] = {"tool_calls": self.read}
        if self.errors:
            texts = "\n".join(error["text"] for error in self.errors)
            made["tool_call_error"] = {"message": self.errors[0]["message"], "text": texts}
        return made
