"""How probable the model found a token, and which it found most probable.

Owns the measurement: of the model's own distribution, before temperature, penalties and
filters, by a softmax in float32. Knows nothing of text or events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import mlx.core as mx


@dataclass(frozen=True)
class Logprobs:
    """Those of one place in an answer, on the device and unevaluated.

    Attributes:
        chosen: [1], of the token that was drawn.
        ids: [count], the most probable tokens, best first.
        values: [count], theirs.
    """

    chosen: mx.array
    ids: mx.array
    values: mx.array

    def arrays(self) -> tuple[mx.array, mx.array, mx.array]:
        """What to evaluate before `read`."""
        return self.chosen, self.ids, self.values

    def read(self) -> tuple[float, tuple[tuple[int, float], ...]]:
        """The log-probability of the token, and the best with theirs; impossible ones are none."""
        ids = cast(list[int], self.ids.tolist())
        values = cast(list[float], self.values.tolist())
        best = zip(ids, values, strict=True)
        return cast(float, self.chosen.item()), tuple(
            (token, value) for token, value in best if value > -float("inf")
        )


def logprobs(logits: mx.array, token: mx.array, count: int) -> Logprobs:
    """Measure one place.

    Args:
        logits: [vocabulary], as the model gives them, in any float type.
        token: [1], the one that was drawn.
        count: How many of the most probable tokens to name.
    """
    logits = logits.astype(mx.float32)
    found = logits - mx.logsumexp(logits)
    count = min(count, logits.shape[-1])
    if count == 0:
        return Logprobs(found[token], mx.zeros((0,), mx.uint32), mx.zeros((0,)))
    best = mx.sort(mx.argpartition(-found, count - 1)[:count])  # of equals the lower id first
    best = best[mx.argsort(-found[best])]
    return Logprobs(found[token], best, found[best])
