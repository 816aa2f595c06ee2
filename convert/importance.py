"""How much the error of each weight counts where nothing is known but the weights.

For a weight w of a group with the mean square s: s + w^2 / 4. Least squares alone cuts large
weights to spare many small ones, which can harm a layer's output; this holds it back.
"""

from __future__ import annotations

import mlx.core as mx

_EMPHASIS = 0.25
_LEAST = 1e-38


def importance(weights: mx.array, largest: mx.array) -> mx.array:
    """Each weight's share, 1 in all for every group.

    Args:
        weights: [groups, group_size] float32.
        largest: The largest magnitude of each group, [groups, 1]; squares are of
            weights relative to it, since those of huge or tiny ones are no numbers.
    """
    relative = weights * (1 / mx.maximum(largest, _LEAST))
    squares = relative * relative
    mean = mx.mean(squares, -1, keepdims=True)
    evenly = 1 / (weights.shape[-1] * (1 + _EMPHASIS))
    return squares * (_EMPHASIS * evenly / mx.where(mean == 0, 1, mean)) + evenly
