"""How good values are: against a reference, by retraining without some samples, and at finding wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.integrate import trapezoid
from sklearn.metrics import average_precision_score, roc_auc_score

from baselines import Game
from baselines.arguments import whole_number
from tasks import Task

__all__ = [
    "RemovalCurve",
    "agreement",
    "agreement_stderr",
    "bottom_overlap",
    "ceiling",
    "detection",
    "foretelling",
    "kept_along",
    "linear_datamodelling_score",
    "random_subsets",
    "removal_curve",
    "root_mean_square",
    "scaled_rmse",
]

TOP_SHARE = 0.1
FRACTIONS = tuple(np.linspace(0, 0.5, 11).tolist())


def agreement(values: ArrayLike, reference: ArrayLike) -> dict[str, float]:
    """Return how alike two valuations of the same samples are.

    Parameters
    ----------
    values, reference : float [n]
        Finite, n at least 2.

    Returns
    -------
    dict
        ``spearman``, ``kendall`` and ``pearson`` correlations, and ``top10_overlap``, the share of the reference's top
        tenth that is in that of `values`. NaN where one of the two is constant.

    Examples
    --------
    >>> import numpy as np
    >>> round(agreement(np.arange(10.0), np.arange(10.0) ** 2)["spearman"], 6)
    1.0
    """
    values = _finite("values", values)
    reference = _finite("reference", reference, len(values))
    if len(values) < 2:
        raise ValueError(f"values must be those of at least 2 samples, got {len(values)}")
    top = max(1, round(TOP_SHARE * len(reference)))
    best, best_reference = (set(np.argsort(v, kind="stable")[-top:].tolist()) for v in (values, reference))
    constant = np.ptp(values) == 0 or np.ptp(reference) == 0  # no ranks, no correlation
    correlations = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}
    return {
        **{
            name: float("nan") if constant else float(correlate(values, reference).statistic)
            for name, correlate in correlations.items()
        },
        "top10_overlap": float("nan") if constant else len(best & best_reference) / top,
    }


def agreement_stderr(
    values: ArrayLike,
    reference: ArrayLike,
    *,
    resamples: int = 200,
    rng: np.random.Generator | np.random.SeedSequence | int | None = None,
) -> dict[str, float]:
    """Return how much the correlations of :func:`agreement` vary with the choice of samples.

    Parameters
    ----------
    values, reference : float [n]
        As there.
    resamples : int
        How often samples are drawn anew, with replacement, at least 2.
    rng : Generator, SeedSequence or int, optional
        Which.

    Returns
    -------
    dict
        Standard errors of ``spearman`` and ``pearson``. They are taken on the scale of Fisher's z, where they do not
        depend on the size of a correlation, and brought back to that of the correlation; NaN where there is none.
    """
    values = _finite("values", values)
    reference = _finite("reference", reference, len(values))
    draws = np.random.default_rng(rng).integers(
        len(values), size=(whole_number("resamples", resamples, minimum=2), len(values))
    )
    found = {}
    for name, ranked in (("spearman", True), ("pearson", False)):
        whole = _correlations(values[None], reference[None], ranked)
        drawn = _correlations(values[draws], reference[draws], ranked)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.arctanh(drawn)
        z = z[np.isfinite(z)]
        found[name] = float(z.std(ddof=1) * (1 - whole[0] ** 2)) if len(z) > 1 else float("nan")
    return found


def _correlations(a: NDArray[np.float64], b: NDArray[np.float64], ranked: bool) -> NDArray[np.float64]:
    """Return the correlation of each row of a with that of b, [m]; NaN where one is constant."""
    if ranked:
        a, b = stats.rankdata(a, axis=1), stats.rankdata(b, axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def bottom_overlap(values: ArrayLike, reference: ArrayLike) -> float:
    """Return the share of the reference's lowest tenth that is in that of `values`; NaN where one is constant.

    Parameters
    ----------
    values, reference : float [n]
        As for :func:`agreement`, which tells of the highest tenth.
    """
    values = _finite("values", values)
    return agreement(-values, -_finite("reference", reference, len(values)))["top10_overlap"]


def scaled_rmse(values: ArrayLike, reference: ArrayLike) -> float:
    """Return the error that is left after the best scale, as a share of the reference.

    ``min over a >= 0 of ||a values - reference|| / ||reference||``: of 1 for values that tell nothing, and for those
    that tell the opposite. Values that follow one run need not be of the size of those of retraining; a correlation
    ignores an offset, too, and ranks ignore everything but the order.

    Parameters
    ----------
    values, reference : float [n]
        Finite, the reference not zero everywhere.

    Examples
    --------
    >>> scaled_rmse([2.0, 4.0], [1.0, 2.0])
    0.0
    """
    values = _finite("values", values)
    reference = _finite("reference", reference, len(values))
    if not reference.any():
        raise ValueError("reference must not be zero everywhere")
    size = float(values @ values)
    scale = max(float(values @ reference) / size, 0.0) if size else 0.0
    return float(np.linalg.norm(scale * values - reference) / np.linalg.norm(reference))


def detection(values: ArrayLike, wrong: ArrayLike) -> dict[str, float]:
    """Return how well low values point at wrong samples.

    Parameters
    ----------
    values : float [n]
        Finite.
    wrong : bool [n] or int [k]
        Which samples are wrong, as a mask or by their numbers: some, and not all.

    Returns
    -------
    dict
        ``auroc``, the chance that a wrong sample has a lower value than another one (0.5 for random values);
        ``average_precision`` of a search from the lowest value upwards, and ``share_wrong``, which it is for random
        values.

    Examples
    --------
    >>> detection([3.0, -1.0, 2.0], [1])["auroc"]
    1.0
    """
    values = _finite("values", values)
    mask = _mask(wrong, len(values))
    return {
        "auroc": float(roc_auc_score(mask, -values)),
        "average_precision": float(average_precision_score(mask, -values)),
        "share_wrong": float(mask.mean()),
    }


@dataclass(frozen=True)
class RemovalCurve:
    """Utilities as ever more samples are removed.

    Attributes
    ----------
    fractions : float64 [k]
        Share of the training samples that is removed.
    top, bottom : float64 [k]
        Utility (higher is better) where the most valuable ones are removed first, and the least valuable ones.
    """

    fractions: NDArray[np.float64]
    top: NDArray[np.float64]
    bottom: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Area between the two curves, positive where values tell good samples from bad; 0 for random ones."""
        return float(trapezoid(self.bottom - self.top, self.fractions))


def removal_curve(
    task: Task | Game, values: ArrayLike, *, utility: str = "loss", fractions: Sequence[float] = FRACTIONS
) -> RemovalCurve:
    """Retrain without the samples that are valued most, or least.

    Parameters
    ----------
    task : Task or Game
        A task is retrained as in its own run, removed samples contributing nothing, and judged on its test set. A game
        says itself: ``task.conventional_game("loss", "test", seeds=4)`` trains on what is kept alone.
    values : float [n]
        Of the training samples.
    utility : str
        Of a task: ``"loss"`` (minus the loss, in nats) or one of the others of its objective.
    fractions : sequence of float
        Shares to remove, ascending, within [0, 1).

    Returns
    -------
    RemovalCurve
    """
    game = task.trajectory_game(utility, "test") if isinstance(task, Task) else task
    values = _finite("values", values, game.n_players)
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or (np.diff(shares) <= 0).any() or shares[0] < 0 or shares[-1] >= 1:
        raise ValueError(f"fractions must ascend within [0, 1), got {list(fractions)}")
    ascending = np.argsort(values, kind="stable")
    kept = np.concatenate([kept_along(ascending[::-1], shares), kept_along(ascending, shares)])
    top, bottom = game(kept).reshape(2, len(shares))
    return RemovalCurve(shares, top, bottom)


def kept_along(order: NDArray[np.intp], fractions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which samples are kept, bool [fractions, n], where shares are removed in an order, int [n]."""
    removed = np.round(fractions * len(order)).astype(int)
    places = np.argsort(order)
    return np.asarray(places[None, :] >= removed[:, None])


def linear_datamodelling_score(
    task: Task | Game,
    values: ArrayLike,
    *,
    subsets: int = 100,
    share: float = 0.5,
    utility: str = "loss",
    rng: np.random.Generator | np.random.SeedSequence | int | None = None,
) -> float:
    """Return how well sums of values foretell the utility of training on random subsets.

    The Spearman correlation between the two, as in *TRAK* (Park et al., ICML 2023, arXiv 2303.14186), whose scores are
    those of each validation sample; here, of the utility as a whole.

    Parameters
    ----------
    task : Task or Game
        As in :func:`removal_curve`, but judged on the validation set.
    values : float [n]
        Of the training samples.
    subsets : int
        How many are drawn and retrained, at least 3.
    share : float
        Of the training samples, in each of them; in (0, 1).
    utility : str
        Of a task.
    rng : Generator, SeedSequence or int, optional
        Which subsets.

    Returns
    -------
    float
        In [-1, 1]; NaN where values or utilities are constant.
    """
    game = task.trajectory_game(utility) if isinstance(task, Task) else task
    values = _finite("values", values, game.n_players)
    chosen = random_subsets(len(values), whole_number("subsets", subsets, minimum=3), share, rng)
    return foretelling(values, chosen, game(chosen))


def random_subsets(
    n: int, subsets: int, share: float, rng: np.random.Generator | np.random.SeedSequence | int | None
) -> NDArray[np.bool_]:
    """Return random subsets of a share of n samples, bool [subsets, n]."""
    size = round(share * n)
    if not 0 < size < n:
        raise ValueError(f"share must leave some of the {n} samples and take some, got {share}")
    draw = np.random.default_rng(rng)
    chosen = np.zeros((subsets, n), dtype=bool)
    for row in chosen:
        row[draw.choice(n, size, replace=False)] = True
    return chosen


def foretelling(values: NDArray[np.float64], chosen: NDArray[np.bool_], utilities: NDArray[np.float64]) -> float:
    """Return the rank correlation of sums of values [n] with utilities [m] of subsets, bool [m, n]."""
    foretold = chosen @ values
    if np.ptp(foretold) == 0 or np.ptp(utilities) == 0:
        return float("nan")
    return float(stats.spearmanr(foretold, utilities).statistic)


def ceiling(split_half: float) -> float:
    """Return the correlation with a reference that a perfect method would show, from that of the reference's halves."""
    r = max(split_half, 0.0)
    return float(np.sqrt(2 * r / (1 + r)))


def root_mean_square(numbers: NDArray[np.float64]) -> float:
    """Return the root of the mean of squares."""
    return float(np.sqrt(np.square(numbers).mean()))


def _finite(name: str, given: Any, n: int | None = None) -> NDArray[np.float64]:
    """Return float64 [n]; refuse other shapes and what is not finite."""
    array = np.asarray(getattr(given, "values", given), dtype=np.float64)  # of a Valuation or a pandas Series, too
    if array.ndim != 1 or (n is not None and len(array) != n):
        raise ValueError(f"{name} must have one number for each of {n or 'the'} samples, got shape {array.shape}")
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise ValueError(f"{name} must be finite, got {array[wrong[0]]} of sample {wrong[0]} ({len(wrong)} such)")
    return array


def _mask(wrong: Any, n: int) -> NDArray[np.bool_]:
    array = np.asarray(wrong)
    if array.dtype == bool and array.shape == (n,):
        mask = array
    elif array.ndim == 1 and array.dtype.kind in "iu" and (array >= 0).all() and (array < n).all():
        mask = np.zeros(n, dtype=bool)
        mask[array] = True
    else:
        raise ValueError(
            f"wrong must be a mask, bool [{n}], or numbers of samples within 0 .. {n - 1}, got {array.dtype} "
            f"{list(array.shape)}"
        )
    if mask.all() or not mask.any():
        raise ValueError(f"wrong must name some of the {n} samples, and not all, got {int(mask.sum())}")
    return mask
