r"""Logistic regressions on many weightings of the same samples, by Newton's method on all of them at once.

For weights :math:`v_i \ge 0` of the samples and a penalty :math:`\rho > 0` the objective is

.. math:: f(W) = \sum_i v_i \, \ell(W x_i, y_i) + \frac{\rho}{2} \|W\|^2,

with the cross-entropy :math:`\ell` of the sigmoid of one margin (two classes) or of the softmax of one margin a class.
It is strongly convex, so there is exactly one minimiser :math:`W^*`, whatever the weights.

**Steps.** Along a direction s let :math:`\delta = \max_i |x_i^\top s|` over the samples present (of several classes:
the largest difference between two classes' margins). Since the third cumulant of a bounded variable is at most its
range times its variance, curvature changes by at most a factor :math:`e^{t \delta}` within a step of length t: the
loss is self-concordant in the generalised sense (Bach: *Self-concordant analysis for logistic regression*, EJS 4, 2010,
arXiv 0910.4627; Sun, Tran-Dinh: *Generalized self-concordant functions*, Mathematical Programming 178, 2019, arXiv
1703.04599). For a factor of the Hessian taken D before (D being the sum of all :math:`t \delta` since), the direction
:math:`s = -H^{-1} g` with :math:`\lambda^2 = g^\top H^{-1} g` satisfies

.. math:: f(W + t s) \le f(W) - t \lambda^2 + e^D \lambda^2 (e^{t\delta} - 1 - t\delta) / \delta^2,

least at :math:`t = \log(1 + \delta e^{-D}) / \delta`. That length is taken, from a distance, wherever the full step
does not lower the objective by :math:`\lambda^2 / 4`; so every step lowers it, and the iteration converges from
anywhere. Near the minimiser, :math:`D + \delta \le 1/2`, steps are full ones.

**Factors are used twice.** A Cholesky factor costs ten times what a gradient does. Two steps with each give convergence
of order three in place of two (Traub: *Iterative Methods for the Solution of Equations*, 1964, section 8.4).

**When to stop.** After a full step :math:`\|g\|_{H^{-1}} \le (e^D - 1) \lambda`, D including that step, and
:math:`H \ge \rho`. Hence, up to a factor 1 + O(D),

.. math:: \|W - W^*\| \le (e^D - 1) \, \lambda / \sqrt\rho,

a bound that needs no further gradient and is not at the mercy of its rounding. Fits that reach the tolerance leave the
batch.

**Cost**, for n samples, d features and C margins a sample (1 for two classes): :math:`2 n d^2` operations for each of
the C (C + 1) / 2 blocks of the Hessian, all in one matrix product, and :math:`(C d)^3 / 3` for its factor.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from tasks.learners.design import DesignMatrix

__all__ = ["cross_entropies", "fit_logistic"]

_STEPS_A_FACTOR = 2
_NEAR = 0.5  # of D + delta: there the gradient's norm falls by a factor of e^(1/2) - 1 at least
_EXACT_SOFTPLUS = 37.0  # log(1 + e^z) = z beyond, in float64


def fit_logistic(
    design: DesignMatrix,
    targets: torch.Tensor,
    weights: torch.Tensor,
    penalties: torch.Tensor,
    start: torch.Tensor,
    *,
    tolerance: float,
    max_factors: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise the objective (see the module's docstring) for each weighting of the samples.

    Parameters
    ----------
    design : DesignMatrix
        Features, float [n, d].
    targets : float [C, n]
        One row a class, 1 for its samples and 0 for the others; with two classes only the row of the second.
    weights : float [m, n]
        Weight of each sample, 0 or more, in each of the m fits.
    penalties : float [m]
        Positive penalty of each fit.
    start : float [m, C, d]
        Coefficients to start from.
    tolerance : float
        Largest distance of the coefficients from the minimiser (Euclidean norm).
    max_factors : int
        Most factorisations of a Hessian for one fit.

    Returns
    -------
    coefficients : float [m, C, d]
        The minimisers.
    bounds : float [m]
        Bound on the distance of each from the exact one; infinite where the fit did not reach the tolerance, or its
        Hessian is singular to working precision. The coefficients are then merely a start for another try.
    """
    minimisers, bounds = start.clone(), torch.full_like(penalties, math.inf)
    fits, coefficients, margins = torch.arange(len(start), device=start.device), start, _margins(start, design.x)
    for _ in range(max_factors):
        factor, singular = torch.linalg.cholesky_ex(_hessians(design, margins, weights, penalties))
        travelled = torch.zeros_like(penalties)  # D
        for _ in range(_STEPS_A_FACTOR):
            residuals = weights[:, None] * (_probabilities(margins) - targets)
            gradient = _margins(residuals, design.x.T) + penalties[:, None, None] * coefficients
            step = -torch.cholesky_solve(gradient.flatten(1)[:, :, None], factor).view_as(gradient)
            margin_step = _margins(step, design.x)
            decrement = -(gradient * step).sum((1, 2))  # lambda^2
            reach = _reach(margin_step, weights)  # delta
            near = reach + travelled <= _NEAR
            if near.all():
                length = torch.ones_like(reach)
            else:
                before = _objective(coefficients, margins, targets, weights, penalties)
                after = _objective(coefficients + step, margins + margin_step, targets, weights, penalties)
                reach = reach.clamp(min=torch.finfo(reach.dtype).tiny)
                safe = torch.log1p(reach * torch.exp(-travelled)) / reach
                length = torch.where(near | (after <= before - decrement / 4), 1.0, safe)
            coefficients = coefficients + length[:, None, None] * step
            margins = margins + length[:, None, None] * margin_step
            travelled += length * reach
        bound = torch.expm1(travelled) * (decrement.clamp(min=0) / penalties).sqrt()
        reached = (bound <= tolerance) & (length == 1) & (singular == 0)
        done = reached | (singular != 0)
        if done.any():
            minimisers[fits[reached]], bounds[fits[reached]] = coefficients[reached], bound[reached]
            if done.all():
                break
            fits, weights, penalties, coefficients, margins = (
                rows[~done] for rows in (fits, weights, penalties, coefficients, margins)
            )
    else:
        minimisers[fits] = coefficients
    return minimisers, bounds


def cross_entropies(margins: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each sample in nats, [m, n], from margins [m, C, n] and targets [C, n]."""
    of_target = (margins * targets).sum(1)
    if margins.shape[1] == 1:
        return nn.functional.softplus(margins[:, 0], threshold=_EXACT_SOFTPLUS) - of_target
    return torch.logsumexp(margins, 1) - of_target


def _margins(coefficients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Multiply [m, C, d] by features [n, d] to [m, C, n], as one matrix product."""
    return (coefficients.flatten(0, 1) @ x.T).view(*coefficients.shape[:2], len(x))


def _probabilities(margins: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(margins) if margins.shape[1] == 1 else torch.softmax(margins, 1)


def _hessians(
    design: DesignMatrix, margins: torch.Tensor, weights: torch.Tensor, penalties: torch.Tensor
) -> torch.Tensor:
    """Return the Hessians, [m, C d, C d], at the given margins [m, C, n]."""
    p = _probabilities(margins)
    n_margins, d = p.shape[1], design.x.shape[1]
    if n_margins == 1:
        hessians = design.gram(weights * (p * (1 - p))[:, 0])
    else:  # block (k, l) weighs sample i by p_ik ((k = l) - p_il); those with k >= l are all there are
        row, column = torch.tril_indices(n_margins, n_margins, device=p.device)
        same = (row == column).to(p.dtype)[:, None]
        blocks = design.gram(weights[:, None] * p[:, row] * (same - p[:, column]))
        block_of = torch.empty(n_margins, n_margins, dtype=torch.long, device=p.device)
        block_of[row, column] = block_of[column, row] = torch.arange(len(row), device=p.device)
        hessians = blocks[:, block_of].transpose(2, 3).reshape(len(p), n_margins * d, n_margins * d)
    hessians.diagonal(dim1=1, dim2=2).add_(penalties[:, None])
    return hessians


def _reach(margin_step: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return by how much the margins of a sample present change at most, [m]; of several, relative to each other."""
    change = margin_step[:, 0].abs() if margin_step.shape[1] == 1 else margin_step.amax(1) - margin_step.amin(1)
    return (change * (weights > 0)).amax(1)


def _objective(
    coefficients: torch.Tensor,
    margins: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    penalties: torch.Tensor,
) -> torch.Tensor:
    return (weights * cross_entropies(margins, targets)).sum(1) + penalties / 2 * coefficients.square().sum((1, 2))
