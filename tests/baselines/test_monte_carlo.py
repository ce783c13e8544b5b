"""The driver, on estimators made for the purpose."""

from itertools import repeat

import numpy as np
import pytest

from baselines.convergence import Estimate
from baselines.monte_carlo import Limits, SampledCoalitions, UndeterminedError, estimate_by_draws
from tests.baselines.known_games import Saturating


class Counts:
    """Values are the number of draws, each of which costs 3; it takes `needed` of them to determine anything."""

    def __init__(self, least_draws=1, needed=1, runs_dry=10**6):
        self.least_draws, self.needed, self.runs_dry, self.draws = least_draws, needed, runs_dry, 0

    def extend(self, n_draws):
        for _ in range(min(n_draws, self.runs_dry - self.draws)):
            self.draws += 1
            yield 3

    def estimate(self):
        if self.draws < self.needed:
            raise UndeterminedError(f"{self.draws} draws determine nothing")
        return Estimate(self.draws, 2 + 3 * self.draws, np.array([float(self.draws)]), None, None, None)


def run(estimator, draws, stop=None):
    limits = Limits(fixed_cost=2, draws=draws, evaluations=2 + 3 * draws)
    return estimate_by_draws(
        "count", estimator, started=0.0, limits=limits, stop=stop, progress=False, parameters=lambda m: {"m": m}
    )


def test_the_books():
    valuation = run(Counts(), 40)
    assert (valuation.method, valuation.values.tolist(), valuation.evaluations) == ("count", [40], 122)
    assert valuation.parameters == {"m": 40, "stop": None, "interrupted": False}


def test_looks_begin_with_the_fewest_draws_that_make_an_estimate():
    path = []
    run(Counts(least_draws=30), 100, stop=lambda estimate: path.append(estimate.draws))
    assert path == [30, 38, 48, 60, 75, 94, 100]


def test_a_look_at_what_is_not_determined_yet_is_put_off():
    path = []
    run(Counts(needed=20), 30, stop=lambda estimate: path.append(estimate.draws))
    assert path == [24, 30]


@pytest.mark.parametrize("stop", [None, lambda _estimate: True])
def test_what_is_not_determined_in_the_end_is_an_error(stop):
    with pytest.raises(UndeterminedError, match="15 draws determine nothing"):
        run(Counts(needed=20), 15, stop=stop)


def test_what_is_not_determined_when_the_budget_is_spent_is_an_error():
    with pytest.raises(UndeterminedError, match="15 draws determine nothing"):
        run(Counts(needed=20, runs_dry=15), 100, stop=lambda _estimate: False)


LOOKS = (1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 24)


@pytest.mark.parametrize("runs_dry", [10, 12, 13, 29])
def test_an_estimator_that_cannot_pay_for_all_draws(runs_dry):
    """The rule sees each state once, the last one included."""
    path = []
    valuation = run(Counts(runs_dry=runs_dry), 100, stop=lambda estimate: path.append(estimate.draws))
    assert path == [look for look in LOOKS if look < runs_dry] + [runs_dry]
    assert valuation.parameters["m"] == runs_dry
    assert valuation.evaluations == 2 + 3 * runs_dry


def sampled(needed):
    def formula(members, utilities):
        if len(members) < needed:
            raise UndeterminedError("too few")
        return members.mean(axis=0), None

    blocks = repeat(np.random.default_rng(0).random((5, 2, 4)) < 0.5)
    return SampledCoalitions(Saturating(np.ones(4)), blocks, formula, fixed_cost=2, least_draws=4, batch_size=3)


@pytest.mark.parametrize(("draws", "needed", "has_halves"), [(7, 1, False), (8, 1, True), (8, 5, False), (10, 5, True)])
def test_halves_are_there_if_both_are_estimates(draws, needed, has_halves):
    estimator = sampled(needed)
    assert sum(estimator.extend(draws)) == 2 * draws
    estimate = estimator.estimate()
    assert (estimate.halves is not None) is has_halves
    assert (estimate.draws, estimate.evaluations) == (draws, 2 + 2 * draws)


def test_the_halves_are_those_of_the_even_and_of_the_odd_draws_in_this_order():
    """Draw number k is worth k: the even ones of 0 to 7 are worth 3 on average, the odd ones 4."""

    class Numbered:
        n_players = 2
        asked = 0

        def __call__(self, coalitions):
            first, self.asked = self.asked, self.asked + len(coalitions)
            return np.arange(first, self.asked) // 2.0

    def formula(_members, utilities):
        return np.full(2, utilities.mean()), None

    blocks = repeat(np.array([[[True, False], [False, True]]] * 3))
    estimator = SampledCoalitions(Numbered(), blocks, formula, fixed_cost=0, least_draws=1, batch_size=4)
    assert list(estimator.extend(8)) == [2] * 8
    assert estimator.estimate().halves.tolist() == [[3, 3], [4, 4]]
    assert estimator.estimate().values.tolist() == [3.5, 3.5]
