r"""Logistic regression on any coalition of training samples, fitted to the optimum, many coalitions at once.

For a coalition S the coefficients are

.. math:: W_S = \arg\min_W \sum_{i \in S} \ell(W x_i, y_i) + \frac{\rho_S}{2} \|W\|^2

with the cross-entropy :math:`\ell`, where each :math:`x_i` ends with the constant 1. Its coefficients, the intercepts,
are penalised with the others, so every coalition has exactly one optimum: the empty one predicts all classes with the
same probability, one of a single class prefers that class. Two classes have one vector of coefficients (sigmoid), K > 2
have K (softmax), all of them penalised, those of classes that S lacks included. :math:`\rho_S` is `l2`, or `l2` times
\|S\| where the loss is renormalised: the mean over S in place of the sum. This is scikit-learn's
``LogisticRegression(C=1 / rho, fit_intercept=False)`` on features with a constant column. The utility is minus the mean
cross-entropy on the validation samples, in nats, or their accuracy.

**How**: Newton's method on all coalitions of a chunk at once (`tasks.learners.newton`). A coalition of k of the n
samples starts from the optimum of everyone with weight k / n, the average over all coalitions of that size, so where
it starts depends on its size and not on the coalitions that are asked for with it. Single precision takes it to the
neighbourhood of its optimum, in half the time, and double precision from there. A fit stops at a bound on its
distance from the optimum, :math:`\|W - W_S\| \le \varepsilon`. The validation loss is then off by at most
:math:`\varepsilon \, c \, \overline{\|x\|}`, since its gradient is the mean of :math:`(p - y) x^\top`: the mean norm of
validation samples, times c = 1 for two classes and :math:`\sqrt 2` for more. `tolerance` is that error; rounding adds
to it about :math:`10^{-15} / \rho`, which counts where the penalty is negligible.

**Variance**: none; a coalition has one utility, up to `tolerance`.

**Cost**, for n samples, d features (with d > n, n takes their place) and C = 1 margins a sample for two classes, K for
K > 2: three or four factorisations on average, each of :math:`n C^2 d^2 + (C d)^3 / 3` operations.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from baselines.arguments import whole_number
from baselines.game import described
from tasks.fixed_attributes import FixedAttributes
from tasks.learners.coalitions import in_chunks
from tasks.learners.design import DesignMatrix, span_of_samples, with_intercept
from tasks.learners.identity import identity_of
from tasks.learners.newton import cross_entropies, fit_logistic
from tasks.learners.parameters import one_of, positive
from tasks.learners.samples import checked_coalitions, class_codes, features

__all__ = ["LogisticGame"]

LogisticUtility = Literal["loss", "accuracy"]

_STARTS = 32
_ROUGH_DISTANCE = 0.1  # from the optimum, at which double precision takes over
_ROUGH_FACTORS = 20  # where single precision has not come so far by then, it does not pay


class LogisticGame(FixedAttributes):
    """The game of logistic regression (see the module's docstring).

    Parameters
    ----------
    x_train : float [n, d]
        Features of the training samples, the players. The penalty is the same for all features: standardise them.
    y_train : [n]
        Their labels, numbers or strings, of two classes or more.
    x_validation, y_validation : float [v, d], [v]
        Samples that utilities are measured on.
    l2 : float
        Penalty, positive: 1 / C of scikit-learn.
    utility : {"loss", "accuracy"}
        Minus the mean cross-entropy in nats, or the share of samples classified correctly, of several classes with the
        same probability the first one being chosen.
    renormalised : bool
        Whether a coalition's loss is the mean over its members in place of the sum: `l2` times its size in place of
        `l2`.
    dtype : torch.dtype
        float64, or float32: half the memory, and utilities good to some five digits where the penalty is not small.
    device : str or torch.device
        Where to compute.
    tolerance : float
        Largest error of the utility ``"loss"`` that comes from stopping short of the optimum, in nats.
    max_factors : int
        Most Hessians factorised for a fit, not counting those in single precision. Two are the rule with standardised
        features and ``l2=1``, ten where the penalty is negligible.

    Attributes
    ----------
    n_players : int
        Number of training samples.
    utility : str
        As given.
    measures : tuple of str
        All utilities, in the order of the columns of `measure`.

    Raises
    ------
    TypeError
        If features are no real numbers, or `max_factors` is no integer.
    ValueError
        If shapes do not match, a feature or label is NaN or infinite, there is only one class, a validation label
        never occurs in training, `l2` or `tolerance` is not positive, or `utility` or `dtype` is unknown. When called:
        if `coalitions` is not bool [m, n_players].
    RuntimeError
        When called: if a fit does not reach the tolerance; the message names the coalition.

    Examples
    --------
    >>> import numpy as np
    >>> game = LogisticGame([[-1.0], [1.0]], ["no", "yes"], [[2.0]], ["yes"])
    >>> game(np.array([[False, False], [True, False], [True, True]])).round(3)
    array([-0.693, -0.539, -0.231])
    """

    measures: tuple[LogisticUtility, ...] = get_args(LogisticUtility)
    fixed = ("l2", "max_factors", "n_players", "renormalised", "tolerance", "utility")

    def __init__(
        self,
        x_train: ArrayLike,
        y_train: ArrayLike,
        x_validation: ArrayLike,
        y_validation: ArrayLike,
        *,
        l2: float = 1.0,
        utility: LogisticUtility = "loss",
        renormalised: bool = False,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
        tolerance: float = 1e-9,
        max_factors: int = 100,
    ) -> None:
        x, xv = features(x_train, x_validation)
        y, yv, classes = class_codes(y_train, y_validation, len(x), len(xv))
        self.utility: LogisticUtility = one_of("utility", utility, self.measures)
        self.n_players = len(x)
        self.l2 = positive("l2", l2)
        self.renormalised = bool(renormalised)
        self.tolerance = positive("tolerance", tolerance)
        self.max_factors = whole_number("max_factors", max_factors)
        one_of("dtype", dtype, (torch.float64, torch.float32))
        parameters = {name: getattr(self, name) for name in ("l2", "renormalised", "tolerance")}
        self._identity = identity_of(type(self).__name__, {**parameters, "dtype": str(dtype)}, x, y, xv, yv)

        x, xv = span_of_samples(with_intercept(x), with_intercept(xv))
        slope = np.linalg.norm(xv, axis=1).mean() * (1.0 if len(classes) == 2 else np.sqrt(2))
        self._distance = self.tolerance / float(slope)
        self._design = DesignMatrix(torch.from_numpy(x).to(device, dtype))
        self._rough_design = DesignMatrix(self._design.x.float()) if dtype == torch.float64 else None
        # two classes have one margin a sample, that of the second
        margins_of = np.arange(len(classes))[1 if len(classes) == 2 else 0 :, None]
        self._targets, self._validation_targets = (
            torch.from_numpy(margins_of == codes).to(device, dtype) for codes in (y, yv)
        )  # [C, n], [C, v]
        self._x_validation = torch.from_numpy(xv).to(device, dtype)
        self._y_validation = torch.from_numpy(yv).to(device)

    def __call__(self, coalitions: NDArray[np.bool_], /) -> NDArray[np.float64]:
        """Return the utility, float64 [m], of each coalition of bool [m, n_players]."""
        return self.measure(coalitions)[:, self.measures.index(self.utility)]

    def measure(self, coalitions: NDArray[np.bool_], /) -> NDArray[np.float64]:
        """Return all utilities (`measures`), float64 [m, 2], of each coalition of bool [m, n_players] from one fit."""
        coalitions = checked_coalitions(coalitions, self.n_players)
        if len(coalitions) == 0:
            return np.empty((0, len(self.measures)))
        starts = self._starts  # before there are threads
        members = torch.from_numpy(coalitions).to(self._targets.device)
        measured = in_chunks(lambda chunk: self._measure(chunk, starts), members, self._bytes_a_fit()).cpu().numpy()
        failed = np.isnan(measured[:, 0])
        if failed.any():
            raise RuntimeError(
                f"the fit to {described(coalitions[np.argmax(failed)])} did not come within tolerance="
                f"{self.tolerance} of the optimum in {self.max_factors} factorisations in {self._targets.dtype}; not "
                f"within it in this batch: {np.count_nonzero(failed)} of {len(failed)}. Raise l2={self.l2}, "
                f"standardise the features, or raise tolerance or max_factors"
            )
        return measured

    def identity(self) -> str:
        """Return a digest of all that `measure` follows from; see `tasks.learners.identity.identity_of`."""
        return self._identity

    @cached_property
    def _starts(self) -> torch.Tensor:
        """Where coalitions of each size start, [n + 1, C, d]: at the optimum of everyone with the weight size / n.

        Optima of up to `_STARTS` sizes stand for the larger ones up to the next; that of no size is 0.
        """
        n, n_margins, d = self.n_players, len(self._targets), self._design.x.shape[1]
        sizes = np.unique(np.geomspace(1, n, _STARTS).round().astype(np.int64))
        weights = (torch.from_numpy(sizes).to(self._targets) / n)[:, None].expand(-1, n)
        zeros = weights.new_zeros(len(sizes), n_margins, d)
        # one that is not reached is no worse a start than 0
        optima = in_chunks(lambda chunk: self._fit(chunk, zeros[: len(chunk)])[0], weights, self._bytes_a_fit())
        nearest = torch.from_numpy(np.searchsorted(sizes, np.arange(1, n + 1))).to(optima.device)
        return torch.cat([zeros[:1], optima[nearest]])

    def _measure(self, members: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Return loss utility and accuracy, float64 [k, 2], of coalitions bool [k, n]; NaN for fits that failed."""
        coefficients, bounds = self._fit(members.to(self._targets.dtype), starts[members.sum(1)])
        margins = (coefficients.flatten(0, 1) @ self._x_validation.T).unflatten(0, coefficients.shape[:2])
        loss = cross_entropies(margins, self._validation_targets).double().mean(1)
        chosen = (margins[:, 0] > 0).long() if margins.shape[1] == 1 else margins.argmax(1)
        accuracy = (chosen == self._y_validation).double().mean(1)
        return torch.stack([-loss, accuracy], 1).where(bounds.isfinite()[:, None], torch.nan)

    def _fit(self, weights: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = weights.sum(1)
        penalties = self.l2 * (sizes.where(sizes > 0, 1.0) if self.renormalised else torch.ones_like(sizes))
        fit = (self._targets, weights, penalties)
        if self._rough_design is not None:
            rough = (part.float() for part in (*fit, start))
            start = fit_logistic(self._rough_design, *rough, tolerance=_ROUGH_DISTANCE, max_factors=_ROUGH_FACTORS)[
                0
            ].double()
        return fit_logistic(self._design, *fit, start, tolerance=self._distance, max_factors=self.max_factors)

    def _bytes_a_fit(self) -> int:
        n_margins, n = self._targets.shape
        d, blocks = self._design.x.shape[1], n_margins * (n_margins + 1) // 2
        hessian = 2 * (n_margins * d) ** 2 + blocks * (n + d * d + (0 if self._design.has_table else n * d))
        samples = n_margins * (10 * n + 3 * len(self._y_validation))
        return self._targets.element_size() * (hessian + samples)
