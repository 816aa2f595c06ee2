"""A cache that every prompt may begin with, as far as it begins alike.

Owns how much of it a prompt can use, and the copies that prompts go on from. Knows nothing
of where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference.cache import Held, SequenceCache, common_length
from inference.marks import Mark, can_cut, go_back


class Beginning:
    """A cache with the tokens that it has read, and places in it to go back to.

    Args:
        held: The cache, which stays as it is.
        marks: The places, in order.
    """

    def __init__(self, held: Held, marks: Sequence[Mark] = ()) -> None:
        self.held = held
        self._marks = tuple(marks)

    def usable(self, prompt: tuple[int, ...]) -> int:
        """How many tokens of a prompt it spares; never the last one."""
        shared = min(common_length(self.held.tokens, prompt), len(prompt) - 1)
        if shared == self.held.cache.length or can_cut(self.held.cache):
            return shared
        return max((mark.length for mark in self._marks if mark.length <= shared), default=0)

    def begin(self, prompt: tuple[int, ...]) -> SequenceCache | None:
        """A cache that has read what the prompt begins with; None if that is nothing."""
        usable = self.usable(prompt)
        if not usable:
            return None
        cache = self.held.cache.copy()
        marks = [mark for mark in self._marks if mark.length <= usable]
        return cache if go_back(cache, usable, marks) == usable else None
