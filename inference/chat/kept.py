"""The cache of a conversation, kept from turn to turn and brought back to what is shared.

Owns which of the tokens that were read still count for the next prompt. Attention's own
keys and values are cut where the prompts part. What can't be cut, such as a window that
has slid or a recurrent state, is set back to a mark: a copy made at an earlier place.
Knows nothing of messages.
"""

from __future__ import annotations

from inference.cache import Held, SequenceCache, common_length
from inference.marks import Mark, go_back

_MOST_MARKS = 16
_MOST_BYTES = 512 * 2**20  # of marks, but for the newest three, which a turn leaves
_LEAST_MARKS = 3


class KeptCache:
    """The cache after the last turn, and the marks on its way."""

    def __init__(self) -> None:
        self._held: Held | None = None
        self._marks: list[Mark] = []

    @property
    def tokens(self) -> int:
        """Tokens that the cache has read."""
        return 0 if self._held is None else self._held.cache.length

    def put(self, held: Held | None) -> None:
        """Keep the cache that a turn left; None lets go of everything."""
        self._held = held
        if held is None:
            self._marks.clear()
        else:
            self.mark(held.cache)

    def contents(self) -> tuple[Held, list[Mark]] | None:
        """What a file needs to go on from here: the cache, and the last places before its end.

        It stays this one's: it may be read, and not changed.
        """
        if self._held is None:
            return None
        end = self._held.cache.length
        return self._held, [mark for mark in self._marks if mark.length < end][1 - _LEAST_MARKS :]

    def restore(self, held: Held, marks: list[Mark]) -> None:
        """Take over what a file had."""
        self._marks = marks
        self.put(held)

    def mark(self, cache: SequenceCache) -> None:
        """Remember this place of the cache under way."""
        made = Mark.of(cache)
        if made is None or not made.length:
            return
        self._marks = [mark for mark in self._marks if mark.length < made.length]
        self._marks.append(made)
        while len(self._marks) > _LEAST_MARKS and (
            len(self._marks) > _MOST_MARKS or sum(m.nbytes for m in self._marks) > _MOST_BYTES
        ):
            del self._marks[0]

    def take(self, prompt: tuple[int, ...]) -> Held | None:
        """The cache with what it can hold of the beginning of `prompt`; None if that is nothing.

        It is the caller's from here. The prompt's last token is never in it, since what
        follows that is asked for.
        """
        held, self._held = self._held, None
        if held is None:
            self._marks.clear()
            return None
        shared = min(common_length(held.tokens, prompt), len(prompt) - 1)
        self._marks = [mark for mark in self._marks if mark.length <= shared]
        length = go_back(held.cache, shared, self._marks)
        if not length:
            self._marks.clear()
            return None
        return Held(prompt[:length], held.cache)
