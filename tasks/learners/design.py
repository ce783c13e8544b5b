r"""Design matrices, and their Gram matrices under many weightings of the samples at once.

Fitting a linear model to a coalition S takes :math:`\sum_{i \in S} v_i x_i x_i^\top`, for every coalition of a chunk.
Over all of them this is one matrix product, weights [m, n] times the table of all :math:`x_i x_i^\top`, [n, d d]. Where
the table would be too large it is one product for all coalitions as well, of the weighted features with the features;
the same number of operations, but what is multiplied has to be written first.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["DesignMatrix", "along_the_mean", "span_of_samples", "with_intercept"]

_TABLE_BYTES = 2**25


class DesignMatrix:
    """Features of training samples.

    Parameters
    ----------
    x : float [n, d]
        One sample a row.

    Attributes
    ----------
    x : float [n, d]
        The same.

    Raises
    ------
    ValueError
        If the sum of the features' squares is beyond single precision.
    """

    def __init__(self, x: torch.Tensor) -> None:
        if not x.float().square().sum().isfinite():
            raise ValueError(
                f"features are too large to be squared in single precision, up to {x.abs().max():.3g}; "
                f"standardise x_train and x_validation"
            )
        self.x = x

    def __getstate__(self) -> dict[str, torch.Tensor]:
        return {"x": self.x}  # a worker makes the table itself: it is d times as large

    @property
    def has_table(self) -> bool:
        """Whether the outer products of all samples are few enough to be kept."""
        n, d = self.x.shape
        return n * d * d * self.x.element_size() <= _TABLE_BYTES

    @cached_property
    def _table(self) -> torch.Tensor:
        return (self.x[:, :, None] * self.x[:, None, :]).flatten(1)  # [n, d d]

    def gram(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the sum of w_i x_i x_i^T for each weighting of the samples, [..., n] -> [..., d, d]."""
        d = self.x.shape[1]
        if self.has_table:
            return (weights @ self._table).view(*weights.shape[:-1], d, d)
        return (weights[..., None, :] * self.x.T) @ self.x


def with_intercept(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Append the constant feature 1, [n, d] -> [n, d + 1]: its coefficient is the intercept, penalised as all are."""
    return np.hstack([x, np.ones((len(x), 1))])


def span_of_samples(
    x_train: NDArray[np.float64], x_validation: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Express features in an orthonormal basis of what the training samples span, where that is the smaller space.

    With an l2 penalty, coefficients fitted to any coalition are combinations of its samples (representer theorem), and
    neither their norm nor their products with features depend on the basis. With more features than samples
    everything is therefore computed in as many dimensions as there are samples, and is the same.

    Parameters
    ----------
    x_train : float64 [n, d]
        Features of the training samples.
    x_validation : float64 [v, d]
        Features of the samples that a fit is judged on.

    Returns
    -------
    float64 [n, min(n, d)], float64 [v, min(n, d)]
        Both in the new basis.
    """
    n, d = x_train.shape
    if d <= n:
        return x_train, x_validation
    basis, coordinates = np.linalg.qr(x_train.T)  # x_train.T = basis coordinates
    return np.ascontiguousarray(coordinates.T), x_validation @ basis


def along_the_mean(
    x_train: NDArray[np.float64], x_validation: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Express features in an orthonormal basis of which the first axis is that of the training samples' mean.

    As in :func:`span_of_samples`, no fit with an l2 penalty depends on the basis, and with more features than samples
    there are fewer dimensions. But where samples lie far from zero and close to each other, their differences, which
    the products of features as given would round away, are now in axes of their own.

    Parameters
    ----------
    x_train : float64 [n, d]
        Features of the training samples.
    x_validation : float64 [v, d]
        Features of the samples that a fit is judged on.

    Returns
    -------
    float64 [n, min(n + 1, d)], float64 [v, min(n + 1, d)]
        Both in the new basis.
    """
    n, d = x_train.shape
    mean = x_train.mean(axis=0)
    from_mean, validation_from_mean = x_train - mean, x_validation - mean
    if d <= n + 1:
        basis, lengths = np.linalg.qr(mean[:, None], mode="complete")  # mean = basis lengths
    else:
        basis, lengths = np.linalg.qr(np.column_stack([mean, from_mean.T]))
    both = [from_mean @ basis, validation_from_mean @ basis]
    for coordinates in both:
        coordinates[:, 0] += lengths[0, 0]
    return both[0], both[1]
