"""What several prompts begin with, read once.

Owns the caches of such beginnings: where a prompt should leave one, which one a prompt
can begin with, and how long each is kept. A cache is copied at the very token where it
was left, so it does not matter whether its entries could go back. Knows nothing of how
prompts are read.
"""

from __future__ import annotations

from collections.abc import Iterable

from inference.cache import SequenceCache, common_length

SHORTEST = 32  # tokens; what is shorter is read again as fast as it is copied


class Prefixes:
    """The caches of beginnings that requests still wait for."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, ...], SequenceCache] = {}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each that is held."""
        return [len(tokens) for tokens in self._held]

    def longest(self, prompt: tuple[int, ...]) -> SequenceCache | None:
        """A copy of the longest that the prompt begins with, short of its last token."""
        fitting = [
            tokens
            for tokens in self._held
            if len(tokens) < len(prompt) and prompt[: len(tokens)] == tokens
        ]
        return self._held[max(fitting, key=len)].copy() if fitting else None

    def put(self, tokens: tuple[int, ...], cache: SequenceCache) -> None:
        """Keep a copy of a cache that has read these tokens."""
        self._held[tokens] = cache.copy()

    def keep(self, waiting: Iterable[tuple[int, ...]]) -> None:
        """Let go of those that no waiting prompt begins with."""
        if self._held:
            prompts = list(waiting)
            self._held = {
                tokens: cache
                for tokens, cache in self._held.items()
                if any(prompt[: len(tokens)] == tokens for prompt in prompts)
            }

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()


def where_to_leave(
    prompt: tuple[int, ...], read: int, waiting: Iterable[tuple[int, ...]]
) -> int | None:
    """After how many tokens a prompt should leave its cache for those that wait.

    The place that saves them the most reading: each saves what lies between what can be
    had already and that place.

    Args:
        prompt: Of the request that is read now.
        read: Tokens of it that need no reading.
        waiting: The other prompts.

    Returns:
        None where it is not worth leaving.
    """
    start = prompt[:SHORTEST]
    shared = sorted(
        (
            min(common_length(prompt, other), len(prompt) - 1, len(other) - 1)
            for other in waiting
            if other[:SHORTEST] == start
        ),
        reverse=True,
    )
    best, place = 0, None
    for count, length in enumerate(shared, start=1):
        if length - read >= SHORTEST and (length - read) * count > best:
            best, place = (length - read) * count, length
    return place
