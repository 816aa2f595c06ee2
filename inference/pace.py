"""How many guessed tokens are worth checking.

Owns the odds that guesses are right, as far as they were seen, and the account of what guessing
has saved. Goes by counts alone, so that the same request always takes the same passes. Knows
nothing of where guesses come from.
"""

from __future__ import annotations

import math

MOST = 15  # tokens guessed at once
_KEPT = 0.9  # of what was seen, each time that something is
_LOSS = 0.3  # passes that guessing may lose in any answer
_SHARE = 0.01  # and for each token of it
_MOST_BALANCE = 3.0
_WAIT = 0.05  # passes that the device waits where a token has to be known before the next


class Odds:
    """The share of guesses that are right, the latest counting most."""

    def __init__(self) -> None:
        self._right, self._all = 1.0, 2.0

    def learn(self, right: bool) -> None:
        """One more guess is known to be right or wrong."""
        self._right = self._right * _KEPT + right
        self._all = self._all * _KEPT + 1

    def worth(self, cost: float) -> int:
        """How many tokens to guess at once.

        As many as are likelier to be right, each with all before it, than they cost.

        Args:
            cost: Of one more token, in what a right one saves.
        """
        each = self._right / self._all
        if each <= cost + _WAIT:
            return 0
        if cost <= 0:
            return MOST
        return max(1, min(MOST, int(math.log(cost) / math.log(each))))


class Account:
    """What guessing has saved in one answer, less what it has taken, in passes of the model.

    Where that comes to a loss beyond a small share of the answer there are no more guesses
    until the answer has grown.
    """

    def __init__(self) -> None:
        self._balance = _LOSS

    def allows(self, said: int) -> bool:
        """Whether to guess after so many tokens of the answer."""
        return self._balance + _SHARE * said > 0

    def learn(self, right: int, spent: float) -> None:
        """What came of guessing, or of waiting for it.

        Args:
            right: Guesses that were.
            spent: What it took to guess and to check, in passes.
        """
        self._balance = min(self._balance + right - spent - _WAIT, _MOST_BALANCE)
