"""What a linear layer's inputs say of its weights: second moments, summed over tokens.

The error of an output is that of the weights seen through the inputs: with H = sum of x x^T,
an error E of the weights [out, in] costs trace(E H E^T). Where the model before the layer is
quantized, its inputs differ from the source's; the moments then also say which weights would
make of them what the source makes of its own. Owns those sums and their algebra, sums in
float32 and factors in float64; knows nothing of codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

_DAMPING = 0.01
_MOST_TRIES = 12
_LEAST_DIAGONAL = 1e-12
_TOGETHER = 256


class Moments:
    """Sums over tokens of products of a layer's inputs, and of them with what its output lacks.

    Args:
        inputs: Columns of the weights.
        outputs: Rows of what the layer's output lacks; 0 where nothing is told of it.
        drifts: Whether the source's inputs may differ from these.

    Attributes:
        tokens: How many were added.
        hessian: Sum of x x^T, [in, in].
        drift: Sum of (x' - x) x^T, [in, in], for the source's inputs x'; None if none are given.
        lack: Sum of r x^T, [outputs, in], for what is to be added to the output besides.
    """

    def __init__(self, inputs: int, outputs: int = 0, *, drifts: bool = True) -> None:
        self.tokens = 0
        self.hessian: Floats = np.zeros((inputs, inputs), np.float32)
        self.drift: Floats | None = np.zeros((inputs, inputs), np.float32) if drifts else None
        self.lack: Floats = np.zeros((outputs, inputs), np.float32)

    def add(self, x: Floats, source: Floats | None = None, lack: Floats | None = None) -> None:
        """Add some tokens.

        Args:
            x: Inputs that the layer will have, [tokens, in].
            source: Those that it has in the source model, [tokens, in].
            lack: What the source's stream holds beyond ours, [tokens, out], where the output
                is added to it.
        """
        self.tokens += len(x)
        with np.errstate(over="ignore", invalid="ignore"):  # `sound` will tell
            self.hessian += x.T @ x
            if source is not None and self.drift is not None:
                self.drift += (source - x).T @ x
            if lack is not None:
                self.lack += lack.T @ x

    @property
    def sound(self) -> bool:
        """Whether all sums are numbers, and any input was not zero."""
        every = [self.hessian, self.lack]
        if self.drift is not None:
            every.append(self.drift)
        return bool(self.hessian.any()) and all(np.isfinite(each).all() for each in every)

    def damped(self, damping: float = _DAMPING) -> Matrix:
        """The Hessian with some of its mean on its diagonal, [in, in], so that it has an inverse.

        Inputs that are always zero cost a little then, too.

        Args:
            damping: How much, in parts of the mean.
        """
        hessian: Matrix = self.hessian.astype(np.float64)
        added = max(damping * float(np.mean(np.diag(hessian))), _LEAST_DIAGONAL)
        hessian[np.diag_indices_from(hessian)] += added
        return hessian


class System:
    """Moments made ready to solve for weights.

    Args:
        moments: Sound ones.
        damping: How much of the mean is added to the diagonal.

    Attributes:
        hessian: Damped, [in, in].
        factor: `inverse_factor` of it.
    """

    def __init__(self, moments: Moments, damping: float = _DAMPING) -> None:
        hessian = moments.damped(damping)
        self.hessian: Floats = hessian.astype(np.float32)
        self.factor: Floats = np.ascontiguousarray(inverse_factor(hessian), np.float32)
        del hessian
        drift, lack = moments.drift, moments.lack
        self._by_weights = None if drift is None else self._over_hessian(drift)
        self._besides = self._over_hessian(lack) if len(lack) else None

    def wanted(self, weights: Floats, first_row: int = 0, lack: Floats | None = None) -> Floats:
        """The weights that make of our inputs what the source makes of its own, [in, rows].

        Args:
            weights: Some rows of the source's, [rows, in].
            first_row: Which row of the layer the first of them is.
            lack: Sum of r x^T for these rows, [rows, in], beside what the moments hold.
        """
        wanted = weights.copy()
        if lack is not None:
            wanted += self._over_hessian(lack)
        if self._by_weights is not None:
            wanted += weights @ self._by_weights
        if self._besides is not None:
            wanted += self._besides[first_row : first_row + len(weights)]
        return np.ascontiguousarray(wanted.T)

    def _over_hessian(self, matrix: Floats) -> Floats:
        turned: Floats = matrix @ self.factor.T
        made: Floats = turned @ self.factor
        return made


def inverse_factor(hessian: Matrix) -> Matrix:
    """The upper triangular U with U^T U = H^-1, [in, in], for a damped Hessian.

    With H = R R^T for an upper triangular R, it is R^-1. More is added to the diagonal as long
    as rounding leaves H indefinite.

    Raises:
        numpy.linalg.LinAlgError: it has no such factor however much is added.
    """
    added = 0.0
    for _ in range(_MOST_TRIES):
        turned = hessian[::-1, ::-1].copy()
        turned[np.diag_indices_from(turned)] += added
        try:
            _cholesky(turned)
        except np.linalg.LinAlgError:
            added = max(10 * added, 1e-8 * float(np.mean(np.diag(hessian))))
        else:
            _invert(turned)
            return turned[::-1, ::-1]
    raise np.linalg.LinAlgError("not positive definite")


def _cholesky(matrix: Matrix) -> None:
    """Put the lower triangular L with L L^T = matrix in its place, some columns at a time.

    LAPACK's own by way of NumPy takes the memory of the matrix twice more.
    """
    size = len(matrix)
    for low in range(0, size, _TOGETHER):
        high = min(size, low + _TOGETHER)
        columns = matrix[low:, low:high]
        columns -= matrix[low:, :low] @ matrix[low:high, :low].T
        corner = np.linalg.cholesky(columns[: high - low])
        columns[: high - low] = corner
        columns[high - low :] = columns[high - low :] @ np.linalg.inv(corner).T
        matrix[low:high, high:] = 0


def _invert(lower: Matrix) -> None:
    """Put the inverse of a lower triangular matrix in its place, some rows at a time."""
    size = len(lower)
    for low in range(0, size, _TOGETHER):
        high = min(size, low + _TOGETHER)
        corner = np.tril(np.linalg.inv(lower[low:high, low:high]))
        lower[low:high, :low] = -(corner @ (lower[low:high, :low] @ lower[:low, :low]))
        lower[low:high, low:high] = corner
