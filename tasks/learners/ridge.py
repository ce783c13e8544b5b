r"""Ridge regression on any coalition of training samples, in closed form, many coalitions at once.

For a coalition S the coefficients are

.. math:: w_S = \arg\min_w \sum_{i \in S} (x_i^\top w - y_i)^2 + \rho_S \|w\|^2
              = \Bigl(\sum_{i \in S} x_i x_i^\top + \rho_S I\Bigr)^{-1} \sum_{i \in S} y_i x_i

(Hoerl, Kennard: *Ridge Regression: Biased Estimation for Nonorthogonal Problems*, Technometrics 12, 1970), where each
:math:`x_i` ends with the constant 1. Its coefficient, the intercept, is penalised with the others, so every coalition
has exactly one solution; the empty one predicts 0. :math:`\rho_S` is `l2`, or `l2` times \|S\| where the loss is
renormalised: the mean over S in place of the sum. The utility is minus the mean squared error on the validation
samples, or their coefficient of determination, which is an affine function of it.

**Variance**: none; a coalition has one utility, up to rounding.

**Rounding.** Features are turned so that the mean of the training samples is an axis (`design.along_the_mean`), which
leaves the penalty as it is; coefficients are refined by the residuals of the samples. How far rounding can still have
moved the utility is estimated: by the last refinement, and by rounding errors of residuals, moments and predictions,
drawn at random and carried through the factor. Where rounding of the matrix could keep refinements from converging, or
the utility may have moved by more than a millionth (in float32 a thousandth) of itself or, if that is more, of a
thousandth of that of predicting 0, it is refused.

**Cost**, for n samples and d features, d <= n (with more of them, n takes the place of d): :math:`2 n d^2` operations
a coalition, in one matrix product for all coalitions of a chunk, and :math:`d^3 / 3` for a Cholesky factor.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from baselines.game import described
from tasks.fixed_attributes import FixedAttributes
from tasks.learners.coalitions import in_chunks
from tasks.learners.design import DesignMatrix, along_the_mean, with_intercept
from tasks.learners.identity import identity_of
from tasks.learners.parameters import one_of, positive
from tasks.learners.samples import checked_coalitions, features, real_targets

__all__ = ["RidgeGame"]

RidgeUtility = Literal["loss", "r2"]

_REFINEMENTS = 3
_DRAWS = 4  # of rounding errors
_SAFETY = 4  # times their root mean square
_SLOWEST = 0.25  # to which part a refinement brings the error
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}  # of a mean squared error, relative to itself
_OF_ZERO = 1e-3  # or that of predicting 0 times this


class RidgeGame(FixedAttributes):
    """The game of ridge regression (see the module's docstring).

    Parameters
    ----------
    x_train : float [n, d]
        Features of the training samples, the players. The penalty is the same for all features: standardise them.
    y_train : float [n]
        Their targets. Centre them, or the penalised intercept has to carry their mean.
    x_validation, y_validation : float [v, d], float [v]
        Samples that utilities are measured on.
    l2 : float
        Penalty, positive.
    utility : {"loss", "r2"}
        Minus the mean squared error in squared units of the targets, or R squared against the mean of `y_validation`.
    renormalised : bool
        Whether a coalition's loss is the mean over its members in place of the sum: `l2` times its size in place of
        `l2`.
    dtype : torch.dtype
        float64, or float32: half the memory, and utilities good to some five digits where the penalty is not small.
    device : str or torch.device
        Where to compute.

    Attributes
    ----------
    n_players : int
        Number of training samples.
    utility : str
        As given.

    Raises
    ------
    TypeError
        If features or targets are no real numbers.
    ValueError
        If shapes do not match, a feature or target is NaN or infinite, `l2` is not positive, `utility` or `dtype` is
        unknown, or `utility` is ``"r2"`` and all validation targets are the same. When called: if `coalitions` is not
        bool [m, n_players], or the penalty is too small for the working precision.

    Examples
    --------
    >>> import numpy as np
    >>> game = RidgeGame([[1.0], [2.0]], [2.0, 4.0], [[3.0]], [6.0], l2=1e-6)
    >>> game(np.array([[False, False], [True, True]])).round(3) + 0.0
    array([-36.,   0.])
    """

    fixed = ("l2", "n_players", "renormalised", "utility")

    def __init__(
        self,
        x_train: ArrayLike,
        y_train: ArrayLike,
        x_validation: ArrayLike,
        y_validation: ArrayLike,
        *,
        l2: float = 1.0,
        utility: RidgeUtility = "loss",
        renormalised: bool = False,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> None:
        x, xv = features(x_train, x_validation)
        y, yv = real_targets(y_train, y_validation, len(x), len(xv))
        self.utility: RidgeUtility = one_of("utility", utility, get_args(RidgeUtility))
        self.n_players = len(x)
        self.l2 = positive("l2", l2)
        self.renormalised = bool(renormalised)
        one_of("dtype", dtype, (torch.float64, torch.float32))
        self._spread = float(yv.var())
        if utility == "r2" and self._spread == 0:
            raise ValueError(f"utility 'r2' needs y_validation to vary, got {yv[0]} for each of {len(yv)} samples")
        self._identity = identity_of(
            type(self).__name__,
            {"l2": self.l2, "renormalised": self.renormalised, "dtype": str(dtype), "utility": utility},
            *(x, y, xv, yv),
        )
        x, xv = along_the_mean(with_intercept(x), with_intercept(xv))
        self._design = DesignMatrix(torch.from_numpy(x).to(device, dtype))
        self._y, self._x_validation, self._y_validation = (
            torch.from_numpy(array).to(device, dtype) for array in (y, xv, yv)
        )
        chance = np.random.default_rng(0)
        self._sample_draws, self._draws = (
            torch.from_numpy(chance.normal(size=(size, _DRAWS))).to(device, dtype) for size in x.shape
        )

    def __call__(self, coalitions: NDArray[np.bool_], /) -> NDArray[np.float64]:
        """Return the utility, float64 [m], of each coalition of bool [m, n_players]."""
        coalitions = checked_coalitions(coalitions, self.n_players)
        if len(coalitions) == 0:
            return np.empty(0)
        members = torch.from_numpy(coalitions).to(self._y.device)
        errors = in_chunks(self._mean_squared_errors, members, self._bytes_a_coalition()).cpu().numpy()
        inexact = np.isnan(errors)
        if inexact.any():
            raise ValueError(
                f"l2={self.l2} is too small for {self._y.dtype}: the normal equations of "
                f"{described(coalitions[np.argmax(inexact)])} are singular to working precision, or its utility is not "
                f"known to {_TOLERANCES[self._y.dtype]:.0e} of itself; raise l2, standardise the features, centre the "
                "targets, or leave out features that follow from others"
            )
        return -errors if self.utility == "loss" else 1 - errors / self._spread

    def identity(self) -> str:
        """Return a digest of all that the utilities follow from; see `tasks.learners.identity.identity_of`."""
        return self._identity

    def _mean_squared_errors(self, members: torch.Tensor) -> torch.Tensor:
        """Return the validation error, float64 [k], of each coalition of bool [k, n]; NaN where it is not exact."""
        weights = members.to(self._y.dtype)
        normal = self._design.gram(weights)
        penalties = self.l2 * (
            weights.sum(1, keepdim=True).clamp(min=1) if self.renormalised else weights.new_ones(1, 1)
        )
        normal.diagonal(dim1=1, dim2=2).add_(penalties)
        factor, singular = torch.linalg.cholesky_ex(normal)

        def solved(moments: torch.Tensor) -> torch.Tensor:
            return torch.cholesky_solve(moments[:, :, None], factor)[:, :, 0]

        x, x_validation = self._design.x, self._x_validation
        step = coefficients = solved((weights * self._y) @ x)  # [k, d]
        # with fewer members than features a tiny penalty leaves them accurate to rounding / l2; further steps mend it
        for _ in range(_REFINEMENTS):
            residuals = weights * (self._y - coefficients @ x.T)
            step = solved(residuals @ x - penalties * coefficients)
            coefficients = coefficients + step
        predicted = (coefficients @ x_validation.T - self._y_validation).double()
        errors = predicted.square().mean(1)
        rounding = _SAFETY * torch.finfo(self._y.dtype).eps
        # rounding of the residuals, of the moments and of the matrix, and what becomes of them
        of_residuals = weights * (self._y.abs() + coefficients.abs() @ x.T.abs())  # [k, n]
        of_moments = residuals.abs() @ x.abs() + penalties * coefficients.abs()  # [k, d]
        scales = normal.diagonal(dim1=1, dim2=2).sqrt()[:, :, None]
        drawn = [x.T @ (of_residuals[:, :, None] * self._sample_draws), of_moments[:, :, None] * self._draws]
        carried = torch.cholesky_solve(torch.cat([*drawn, scales * self._draws], 2), factor)
        slowness = rounding * (scales * carried[:, :, 2 * _DRAWS :]).square().sum(1).mean(1).sqrt()
        moved = (x_validation @ carried[:, :, : 2 * _DRAWS]).double().square().mean(1)  # [k, draws]
        of_predictions = (coefficients.abs() @ x_validation.T.abs() + self._y_validation.abs()).double().square()
        moved_by = rounding * (2 * moved.mean(1) + of_predictions.mean(1)).sqrt()
        moved_by += (step @ x_validation.T).double().square().mean(1).sqrt()
        of_zero = _OF_ZERO * self._y_validation.double().square().mean()
        exact = moved_by * (2 * errors.sqrt() + moved_by) <= _TOLERANCES[self._y.dtype] * errors.clamp(min=of_zero)
        return errors.where(exact & (slowness <= _SLOWEST) & (singular == 0), torch.nan)

    def _bytes_a_coalition(self) -> int:
        n, d = self._design.x.shape
        products = 0 if self._design.has_table else n * d
        draws = 3 * _DRAWS * (n + 2 * d + len(self._y_validation))
        return self._y.element_size() * (2 * d * d + products + 5 * n + 4 * d + 5 * len(self._y_validation) + draws)
