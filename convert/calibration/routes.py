"""Which tokens go to which experts: from the way a call holds them to expert by expert, and back.

Owns that order; knows nothing of weights.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from convert.calibration.hessian import Floats


class Routes:
    """The routes of one call of a stack of experts.

    Args:
        indices: The expert of each token that is routed, integers of any shape.
        experts: How many there are.

    Attributes:
        counts: How many tokens each expert has.
    """

    def __init__(self, indices: mx.array, experts: int) -> None:
        found = np.array(indices)
        self._shape = found.shape
        self._order = np.argsort(found.reshape(-1), kind="stable")
        self.counts: tuple[int, ...] = tuple(
            int(count) for count in np.bincount(found.reshape(-1), minlength=experts)
        )

    def gather(self, given: mx.array) -> Floats:
        """The inputs, expert by expert, [tokens, in].

        Args:
            given: As mlx-lm's experts take them, [..., 1, in]; all but the last two axes are
                broadcast to the routes' shape.
        """
        leading = given.shape[:-2]
        numbers = np.arange(np.prod(leading, dtype=int)).reshape(leading)
        rows = np.broadcast_to(numbers, self._shape).reshape(-1)[self._order]
        flat: Floats = np.asarray(given.astype(mx.float32)).reshape(-1, given.shape[-1])
        gathered: Floats = flat[rows]
        return gathered

    def scatter(self, made: Floats) -> mx.array:
        """Outputs that lie expert by expert, [tokens, out], as a call gives them: [..., 1, out]."""
        back = np.empty_like(made)
        back[self._order] = made
        return mx.array(back.reshape(*self._shape, 1, made.shape[-1]))
