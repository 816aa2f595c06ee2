"""Stop strings, matched on text however it is cut into tokens.

Owns which text is safe to show. Knows nothing of tokens.
"""

from __future__ import annotations


class StopMatcher:
    """Lets text through up to the first stop string.

    Text that could still become a stop string is held back until it is known not
    to be one, so no part of a stop string is ever shown.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take more text; return what may be shown now. Once stopped, that is nothing."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        # The first to be complete, so that it does not matter how the text is cut.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        shown = len(text) - self._undecided(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
