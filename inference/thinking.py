"""How a model marks what it thinks before it answers, and how its template is told of it.

Owns the table of markers, which of them a model has, and the template's own variable that
turns thinking on or off. Knows nothing of how the sections are read or shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import RequestError


@dataclass(frozen=True)
class Markers:
    """What stands around a thinking section.

    Attributes:
        start: Begins it.
        end: Ends it.
        tokens: Tokens that a model with these markers has; `start` and `end` if none are named.
        after: What stands between `end` and the answer.
        silent: What is no text where the answer stands, such as the head of a message.
    """

    start: str
    end: str
    tokens: tuple[str, ...] = ()
    after: str = ""
    silent: tuple[str, ...] = ()

    def of(self, has_token: Callable[[str], bool], template: str) -> bool:
        """Whether they are a model's: its tokens, or its template's words."""
        if all(map(has_token, self.tokens or (self.start, self.end))):
            return True
        return not self.tokens and self.start in template and self.end in template

    @property
    def close(self) -> str:
        """What has to be said to end a section and come to the answer."""
        return self.end + self.after


_FINAL = "<|channel|>final<|message|>"
MARKERS = (
    Markers("<think>", "</think>"),
    Markers("<longcat_think>", "</longcat_think>"),
    Markers("<|think:start|>", "<|think:end|>"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("[THINK]", "[/THINK]"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("<|begin_of_thought|>", "<|end_of_thought|>"),
    Markers("<|inner_prefix|>", "<|inner_suffix|>"),
    Markers("◁think▷", "◁/think▷"),
    Markers("<thought>", "</thought>"),
    Markers("<thinking>", "</thinking>"),
    Markers("<reasoning>", "</reasoning>"),
    Markers("<|channel>thought", "<channel|>", ("<|channel>", "<channel|>")),
    Markers(
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        silent=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
    ),
    # OpenAI's harmony: every message says its channel.
    Markers(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        ("<|channel|>", "<|message|>", "<|start|>", "<|end|>"),
        after=f"<|start|>assistant{_FINAL}",
        silent=(_FINAL, "<|channel|>commentary<|message|>", "<|start|>assistant", "<|end|>"),
    ),
)
# A template's own variables, the first that it reads, and what turns thinking off and on.
_SWITCHES: Mapping[str, tuple[Any, Any]] = {
    "enable_thinking": (False, True),
    "thinking": (False, True),
    "thinking_budget": (0, -1),
}


def find_markers(has_token: Callable[[str], bool], template: str) -> Markers | None:
    """The markers of a model, if it is known to think.

    Args:
        has_token: Whether the vocabulary has a token of this text.
        template: The chat template's source.
    """
    return next((each for each in MARKERS if each.of(has_token, template)), None)


def switch_variables(thinking: str | None, template: frozenset[str]) -> dict[str, Any]:
    """The template's variables for a choice of `--thinking`.

    Args:
        thinking: What the user chose; None leaves it to the template.
        template: The variables that the template reads.

    Raises:
        RequestError: It is to be off, and the template has no way to do that.
    """
    if thinking is None:
        return {}
    for name, (off, on) in _SWITCHES.items():
        if name in template:
            return {name: off if thinking == "off" else on}
    if thinking == "off":
        names = ", ".join(_SWITCHES)
        raise RequestError(
            "thinking",
            f"off: this model's chat template has no switch for it (none of {names})",
            "hide shows the answer alone; --thinking-budget 0 ends the section at once",
        )
    return {}
