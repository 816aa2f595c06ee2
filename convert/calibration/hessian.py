"""What a linear layer's inputs say of its weights: second moments, summed over tokens.

The error of an output is that of the weights seen through the inputs: with H = sum of x x^T,
an error E of the weights [out, in] costs trace(E H E^T). Where the model before the layer is
quantized, its inputs differ from the source's; the moments then also say which weights would
make of them what the source makes of its own. Owns those sums and their algebra, sums in
float32 and inverses in float64; knows nothing of codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

_DAMPING = 0.01
_MOST_TRIES = 12
_LEAST_DIAGONAL = 1e-12


class Moments:
    """Sums over tokens of products of a layer's inputs, and of them with what its output lacks.

    Args:
        inputs: Columns of the weights.
        outputs: Rows of what the layer's output lacks; 0 where nothing is told of it.
        whole: Whether to keep what it takes to tell a loss in full.

    Attributes:
        tokens: How many were added.
        hessian: Sum of x x^T, [in, in].
        drift: Sum of (x' - x) x^T, [in, in], for the source's inputs x'.
        lack: Sum of r x^T, [outputs, in], for what is to be added to the output besides.
    """

    def __init__(self, inputs: int, outputs: int = 0, *, whole: bool = False) -> None:
        self.tokens = 0
        size = inputs if whole else 0
        self._apart: Floats = np.zeros((size, size), np.float32)
        self._lack_apart: Floats = np.zeros((outputs, size), np.float32)
        self._lack_square: Floats = np.zeros(outputs, np.float32)
        self.hessian: Floats = np.zeros((inputs, inputs), np.float32)
        self.drift: Floats = np.zeros((inputs, inputs), np.float32)
        self.lack: Floats = np.zeros((outputs, inputs), np.float32)

    def add(self, x: Floats, source: Floats, lack: Floats | None = None) -> None:
        """Add some tokens.

        Args:
            x: Inputs that the layer will have, [tokens, in].
            source: Those that it has in the source model, [tokens, in].
            lack: What the source's stream holds beyond ours, [tokens, out], where the output
                is added to it.
        """
        self.tokens += len(x)
        with np.errstate(over="ignore", invalid="ignore"):  # `sound` will tell
            self._add(x, source, lack)

    def _add(self, x: Floats, source: Floats, lack: Floats | None) -> None:
        self.hessian += x.T @ x
        apart = source - x
        self.drift += apart.T @ x
        if len(self._apart):
            self._apart += apart.T @ apart
        if lack is not None:
            self.lack += lack.T @ x
            if len(self._apart):
                self._lack_apart += lack.T @ apart
                self._lack_square += np.square(lack).sum(0)

    @property
    def sound(self) -> bool:
        """Whether all sums are numbers, and any input was not zero."""
        every = (self.hessian, self.drift, self.lack)
        return bool(self.hessian.any()) and all(np.isfinite(each).all() for each in every)

    def damped(self) -> Matrix:
        """The Hessian with some of its mean on its diagonal, [in, in], so that it has an inverse.

        Inputs that are always zero cost a little then, too.
        """
        hessian: Matrix = self.hessian.astype(np.float64)
        added = max(_DAMPING * float(np.mean(np.diag(hessian))), _LEAST_DIAGONAL)
        hessian[np.diag_indices_from(hessian)] += added
        return hessian

    def pull(self, weights: Floats, first_row: int = 0) -> Floats:
        """How the loss falls at the source's own weights: minus half its gradient.

        Args:
            weights: Some rows of the source's, [rows, in].
            first_row: Which row of the layer the first of them is.
        """
        pull: Floats = weights @ self.drift
        if len(self.lack):
            pull += self.lack[first_row : first_row + len(weights)]
        return pull

    def loss(self, made: Floats, weights: Floats, first_row: int = 0) -> float:
        """The squared error of the output, summed over tokens.

        It is the error beyond that of the source's weights, less than nothing if there is less,
        where the moments are not kept whole.

        Args:
            made: Some rows to judge, [rows, in].
            weights: The source's, [rows, in].
            first_row: Which row of the layer the first of them is.
        """
        error = made - weights
        terms = (error @ self.hessian - 2 * self.pull(weights, first_row)) * error
        loss = float(np.sum(terms, dtype=np.float64))
        if not len(self._apart):
            return loss
        loss += float(np.sum((weights @ self._apart) * weights, dtype=np.float64))
        if len(self._lack_apart):
            cut = slice(first_row, first_row + len(weights))
            loss += 2 * float(np.sum(self._lack_apart[cut] * weights, dtype=np.float64))
            loss += float(np.sum(self._lack_square[cut], dtype=np.float64))
        return loss


def inverse_factor(hessian: Matrix) -> Matrix:
    """The upper triangular U with U^T U = H^-1, [in, in], for a damped Hessian.

    More is added to the diagonal as long as rounding leaves it indefinite.

    Raises:
        numpy.linalg.LinAlgError: it has no such factor however much is added.
    """
    added = 0.0
    for _ in range(_MOST_TRIES):
        try:
            inverse = np.linalg.inv(hessian + added * np.eye(len(hessian)))
            factor = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float64)
        except np.linalg.LinAlgError:
            added = max(10 * added, 1e-8 * float(np.mean(np.diag(hessian))))
        else:
            return factor
    raise np.linalg.LinAlgError("not positive definite")
