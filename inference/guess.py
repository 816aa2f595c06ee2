"""A guess of the next tokens of an answer.

Owns the type. Knows nothing of where guesses come from, or of how they are checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Guess:
    """Tokens that may come next in an answer.

    Attributes:
        tokens: They; maybe none.
        cost: Of each, in passes of the model.
        allowed: What may come at each place, the one after them too; empty for anything.
    """

    tokens: tuple[int, ...] = ()
    cost: float = 0.0
    allowed: tuple[mx.array | None, ...] = ()
