"""What all requests of an engine took together.

Owns the counts and their rates. Knows nothing of what is counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Throughput:
    """Of an engine since it was made.

    Attributes:
        seconds: That it worked.
        passes: Calls of the model that gave answers' tokens.
        prompt_tokens: Read.
        cached_tokens: Of prompts, that needed no reading.
        answer_tokens: Drawn and looked at.
        drafted: Of answers, guessed before the model was asked.
        accepted: Of those, right.
        rows: Requests under way.
        most_rows: Most of them at once.
        one_by_one: Why answers are not decoded together; None if they are, or if there
            is never more than one.
    """

    seconds: float = 0.0
    passes: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    rows: int = 0
    most_rows: int = 0
    one_by_one: str | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Of answers, all together."""
        return self.answer_tokens / self.seconds if self.seconds > 0 else None

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds that pass inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
