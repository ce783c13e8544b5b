"""What holds for every Monte Carlo estimator, whatever its formula."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from baselines import (
    Valuation,
    banzhaf,
    banzhaf_sizes,
    beta_shapley,
    beta_sizes,
    complementary_shapley,
    exact_semivalue,
    group_testing_shapley,
    kernel_shapley,
    owen_shapley,
    permutation_shapley,
    shapley_sizes,
    tmc_shapley,
)
from baselines.monte_carlo import UndeterminedError
from tests.baselines.known_games import Quadratic, Recorded, Saturating, Table, WeightedVoting


@dataclass(frozen=True)
class Estimator:
    """An estimator, as a function of a game and `budget`, `stop`, `rng`, `batch_size` and `progress`."""

    name: str
    run: Callable[..., Valuation]
    sizes: Callable[[int], np.ndarray] = shapley_sizes  # of the semivalue that it estimates
    unbiased: bool = True
    efficient: bool = True
    exact_null_player: bool = True  # rather than in the mean
    exact_if_additive: bool = True
    least_players: int = 1

    def __str__(self):
        return self.name


def beta_4_1(n):
    return beta_sizes(n, 4, 1)


ESTIMATORS = [
    Estimator("permutations", permutation_shapley),
    Estimator("antithetic", partial(permutation_shapley, antithetic=True)),
    Estimator("shifts", partial(permutation_shapley, shifts=3)),
    Estimator("antithetic shifts", partial(permutation_shapley, antithetic=True, shifts=2)),
    Estimator("tmc", partial(tmc_shapley, tolerance=0)),
    Estimator("owen", owen_shapley, efficient=False),
    Estimator("owen plain", partial(owen_shapley, levels=3, antithetic=False), efficient=False),
    Estimator(
        "complementary", complementary_shapley, exact_null_player=False, exact_if_additive=False, least_players=2
    ),
    Estimator("leverage", kernel_shapley, unbiased=False, exact_null_player=False, least_players=2),
    Estimator(
        "kernel", partial(kernel_shapley, sampling="kernel"), unbiased=False, exact_null_player=False, least_players=2
    ),
    Estimator(
        "group testing", group_testing_shapley, exact_null_player=False, exact_if_additive=False, least_players=2
    ),
    Estimator("banzhaf", banzhaf, banzhaf_sizes, efficient=False, exact_null_player=False, exact_if_additive=False),
    Estimator("beta", beta_shapley, beta_4_1, efficient=False, exact_if_additive=False),
    Estimator("beta shifts", partial(beta_shapley, shifts=6), beta_4_1, efficient=False, exact_if_additive=False),
]
ANY_GAME = Table(np.random.default_rng(0).normal(size=2**6))
BUDGET = 260
RUNS = 200

every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)


def where(**flags):
    chosen = [one for one in ESTIMATORS if all(getattr(one, flag) == value for flag, value in flags.items())]
    return pytest.mark.parametrize("estimator", chosen, ids=str)


def assert_same_bits(one, other):
    for attribute in ("values", "stderr", "halves"):
        np.testing.assert_array_equal(getattr(one, attribute), getattr(other, attribute))
    assert one.evaluations == other.evaluations


GAMES = {
    "any game": ANY_GAME,
    "voting, with twins and a null player": WeightedVoting([4, 3, 3, 2, 0, 1, 1], quota=8),
}


@cache
def many_runs(estimator, game):
    return [estimator.run(GAMES[game], budget=BUDGET, rng=seed) for seed in range(RUNS)]


@every_estimator
@pytest.mark.parametrize("game", GAMES)
def test_the_mean_of_many_runs_is_the_exact_value(estimator, game):
    values = np.array([run.values for run in many_runs(estimator, game)])
    errors = values.mean(axis=0) - exact_semivalue(GAMES[game], estimator.sizes).values
    noise = values.std(axis=0, ddof=1)
    # a fit is biased, by less than a tenth of what a single run is off anyway
    allowed = 4.5 * noise / np.sqrt(RUNS) + (0 if estimator.unbiased else 0.1 * noise)
    assert np.all(np.abs(errors) <= allowed + 1e-12)


@every_estimator
@pytest.mark.parametrize("game", GAMES)
def test_standard_errors_are_calibrated(estimator, game):
    """Their mean square is the variance of the estimates over many runs."""
    runs = many_runs(estimator, game)
    variances = np.var([run.values for run in runs], axis=0, ddof=1)
    claimed = np.mean([run.stderr**2 for run in runs], axis=0)
    assert np.sqrt(claimed.sum() / variances.sum()) == pytest.approx(1, abs=0.15)
    ratios = np.sqrt(claimed / np.where(variances > 0, variances, 1))[variances > 0]
    assert np.all(claimed[variances == 0] == 0)
    assert np.all((ratios > 0.75) & (ratios < 1.25))


@every_estimator
def test_halves_are_independent_estimates(estimator):
    runs = [run for run in many_runs(estimator, "any game") if run.halves is not None]
    errors = np.array([run.halves for run in runs]) - exact_semivalue(ANY_GAME, estimator.sizes).values
    assert len(runs) > 0.95 * RUNS
    correlation = [np.corrcoef(errors[:, 0, player], errors[:, 1, player])[0, 1] for player in range(6)]
    np.testing.assert_allclose(correlation, 0, atol=4.5 / np.sqrt(len(runs)))
    # and the whole is about as good as their mean; a fit makes more of twice the draws
    gain = errors.mean(axis=1).var(axis=0).sum() / np.var([run.values for run in runs], axis=0).sum()
    assert 0.85 < gain < (1.15 if estimator.unbiased else 1.3)


@settings(max_examples=300)
@given(st.data())
def test_whatever_the_game_and_the_budget_there_are_values_or_a_clear_refusal(data):
    estimator = data.draw(st.sampled_from(ESTIMATORS))
    n = data.draw(st.integers(2, 6))
    game = Recorded(Table(data.draw(arrays(np.float64, 2**n, elements=st.integers(-3, 3)))))
    budget, batch_size = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 60))
    refusal = None
    try:
        valuation = estimator.run(game, budget=budget, batch_size=batch_size, rng=data.draw(st.integers(0, 9)))
    except ValueError as error:
        refusal = error
    if isinstance(refusal, UndeterminedError):
        assert str(refusal).endswith("give a larger budget, or another rng")
    elif refusal:
        assert str(refusal).startswith(("budget must be at least", "shifts must be at most"))
        assert not game.calls
    else:
        assert game.evaluations() == valuation.evaluations <= budget
        assert np.isfinite(valuation.values).all()
        assert valuation.stderr is None or np.isfinite(valuation.stderr).all()
        assert valuation.halves is None or np.isfinite(valuation.halves).all()


@where(efficient=True)
@pytest.mark.parametrize("budget", [60, 101])
def test_efficiency(estimator, budget):
    values = estimator.run(ANY_GAME, budget=budget, rng=1).values
    assert values.sum() == pytest.approx(ANY_GAME.utilities[-1] - ANY_GAME.utilities[0], abs=1e-12)


@where(efficient=False)
def test_others_are_not_efficient(estimator):
    values = estimator.run(ANY_GAME, budget=60, rng=1).values
    assert abs(values.sum() - (ANY_GAME.utilities[-1] - ANY_GAME.utilities[0])) > 0.01


@every_estimator
def test_null_player(estimator):
    player, of_five = 2, Table(ANY_GAME.utilities[:32])
    game = Table(of_five.utilities.reshape(-1, 1, 2**player).repeat(2, axis=1).ravel())
    valuation = estimator.run(game, budget=BUDGET, rng=0)
    if estimator.exact_null_player:
        assert valuation.values[player] == valuation.stderr[player] == 0
    else:
        assert 0 < abs(valuation.values[player]) <= 4.5 * valuation.stderr[player]


@every_estimator
def test_linearity(estimator):
    """For the same draws an estimate is linear in the game."""
    other = Table(np.random.default_rng(1).normal(size=2**6))
    mixture, a, b = (
        estimator.run(game, budget=BUDGET, rng=3).values
        for game in (Table(2 * ANY_GAME.utilities - 3 * other.utilities), ANY_GAME, other)
    )
    np.testing.assert_allclose(mixture, 2 * a - 3 * b, atol=1e-12)


@every_estimator
def test_the_level_of_utilities_changes_nothing(estimator):
    """A large constant in all utilities is not lost precision: squares are those of deviations."""
    valuation = estimator.run(ANY_GAME, budget=BUDGET, rng=3)
    lifted = estimator.run(Table(ANY_GAME.utilities + 1e7), budget=BUDGET, rng=3)
    np.testing.assert_allclose(lifted.values, valuation.values, atol=1e-6)
    np.testing.assert_allclose(lifted.stderr, valuation.stderr, atol=1e-6)
    np.testing.assert_allclose(lifted.halves, valuation.halves, atol=1e-6)


@where(exact_if_additive=True)
def test_exact_on_additive_games(estimator):
    game = Quadratic(np.random.default_rng(2).normal(size=7), np.zeros((7, 7)), constant=3.0)
    valuation = estimator.run(game, budget=100, rng=0)
    np.testing.assert_allclose(valuation.values, game.linear, atol=1e-12)
    np.testing.assert_allclose(valuation.stderr, 0, atol=1e-9)


@every_estimator
@pytest.mark.parametrize("batch_size", [1, 2, 7, 50, 10**6])
def test_batch_size_changes_nothing(estimator, batch_size):
    game = Recorded(ANY_GAME)
    valuation = estimator.run(game, budget=BUDGET, rng=5, batch_size=batch_size)
    assert_same_bits(valuation, estimator.run(ANY_GAME, budget=BUDGET, rng=5))
    assert max(game.batch_sizes()[1:], default=0) <= batch_size  # the empty and the grand one come as a pair
    fewest = np.ceil(BUDGET / batch_size)
    assert len(game.calls) <= 2 * fewest + 5


@every_estimator
@pytest.mark.parametrize("budget", [80, 81, 83, 100, 131, 200])
def test_a_budget_is_used_up_and_never_exceeded(estimator, budget):
    game = Recorded(ANY_GAME)
    valuation = estimator.run(game, budget=budget, rng=0)
    assert game.evaluations() == valuation.evaluations <= budget
    assert estimator.run(ANY_GAME, budget=valuation.evaluations, rng=0).evaluations == valuation.evaluations
    assert valuation.parameters["budget"] == budget
    if valuation.evaluations < budget:  # one draw more would be too much
        path = []
        estimator.run(ANY_GAME, budget=500, rng=0, stop=path.append)
        cost = (path[1].evaluations - path[0].evaluations) / (path[1].draws - path[0].draws)
        assert valuation.evaluations + cost > budget


@every_estimator
def test_the_smallest_budget_is_told(estimator):
    with pytest.raises(ValueError, match=r"budget must be at least \d+ evaluated coalitions .*, got 1$") as refusal:
        estimator.run(ANY_GAME, budget=1, rng=0)
    least = int(str(refusal.value).split("at least ")[1].split()[0])
    assert estimator.run(ANY_GAME, budget=least, rng=0).evaluations == least
    game = Recorded(ANY_GAME)
    with pytest.raises(ValueError, match=f"at least {least} evaluated coalitions .* got {least - 1}$"):
        estimator.run(game, budget=least - 1, rng=0)
    assert game.calls == []


@every_estimator
def test_the_same_seed_gives_the_same_bits_and_another_one_others(estimator):
    one, same, other = (estimator.run(ANY_GAME, budget=BUDGET, rng=seed) for seed in (4, np.random.SeedSequence(4), 5))
    assert_same_bits(one, same)
    assert not np.array_equal(one.values, other.values)


@every_estimator
@pytest.mark.parametrize("draws", [10, 27, 40])
def test_stopping_is_the_same_as_having_asked_for_as_many_draws(estimator, draws):
    valuation = estimator.run(ANY_GAME, stop=lambda estimate: estimate.draws >= draws, rng=6, batch_size=9)
    assert_same_bits(valuation, estimator.run(ANY_GAME, budget=valuation.evaluations, rng=6))


@every_estimator
def test_a_rule_that_never_holds_sees_all_and_changes_nothing(estimator):
    path = []
    valuation = estimator.run(ANY_GAME, budget=700, stop=path.append, rng=7, batch_size=13)
    expected = estimator.run(ANY_GAME, budget=700, rng=7)
    assert_same_bits(valuation, expected)
    assert {**valuation.parameters, "stop": None} == expected.parameters
    draws, evaluations = ([getattr(estimate, name) for estimate in path] for name in ("draws", "evaluations"))
    assert len(path) > 1
    assert draws == sorted(set(draws))
    assert max(evaluations) == evaluations[-1] == valuation.evaluations <= 700
    assert np.all(np.array(draws[1:]) <= 1.25 * np.array(draws[:-1]) + 1)
    assert_same_bits(path[-1], valuation)
    assert_same_bits(path[1], estimator.run(ANY_GAME, budget=evaluations[1], rng=7))


@every_estimator
def test_a_game_may_do_as_it_likes_with_the_coalitions_it_is_given(estimator):
    class Scribbles(Table):
        def __call__(self, coalitions):
            utilities = super().__call__(coalitions)
            coalitions[:] = ~coalitions
            return utilities

    valuation = estimator.run(Scribbles(ANY_GAME.utilities), budget=BUDGET, rng=0, batch_size=20)
    assert_same_bits(valuation, estimator.run(ANY_GAME, budget=BUDGET, rng=0, batch_size=20))


@every_estimator
def test_a_nan_is_named_with_its_coalition(estimator):
    class Diverges(Table):
        def __call__(self, coalitions):
            return np.where(coalitions.sum(axis=1) == 3, np.nan, super().__call__(coalitions))

    with pytest.raises(ValueError, match=r"got nan from Diverges .* of size 3 with members \[\d, \d, \d\]"):
        estimator.run(Diverges(ANY_GAME.utilities), budget=BUDGET, rng=0)


@every_estimator
def test_one_player(estimator):
    game = Table([1.0, 4.0])
    if estimator.least_players == 2:
        with pytest.raises(ValueError, match=r"^n_players of a game .* must be at least 2, got 1$"):
            estimator.run(game, budget=30, rng=0)
    elif "shifts" in estimator.name:
        with pytest.raises(ValueError, match=r"shifts must be at most the number of players, 1, got \d"):
            estimator.run(game, budget=30, rng=0)
    else:
        assert estimator.run(game, budget=30, rng=0).values.tolist() == [3]


@pytest.mark.parametrize("estimator", [one for one in ESTIMATORS if "shifts" not in one.name], ids=str)
@pytest.mark.parametrize("n_players", [2, 3])
def test_few_players(estimator, n_players):
    game = Table(np.random.default_rng(n_players).normal(size=2**n_players))
    valuation = estimator.run(game, budget=400, rng=0)
    errors = valuation.values - exact_semivalue(game, estimator.sizes).values
    assert np.all(np.abs(errors) <= 4.5 * valuation.stderr + 1e-12)


@where(sizes=shapley_sizes)
def test_many_players(estimator):
    game = Saturating(np.linspace(0.0, 0.1, 90))
    valuation = estimator.run(game, budget=8000, rng=0)
    assert np.all(np.abs(valuation.values - game.shapley()) <= 5.5 * valuation.stderr + 1e-12)


@every_estimator
def test_what_it_reports(estimator, capsys):
    valuation = estimator.run(ANY_GAME, budget=BUDGET, rng=0)
    function = estimator.run.func if isinstance(estimator.run, partial) else estimator.run
    assert valuation.method == function.__name__
    assert valuation.parameters["stop"] is None
    assert valuation.seconds > 0
    assert -1 <= valuation.reliability() <= 1
    assert capsys.readouterr().err == ""
    estimator.run(ANY_GAME, budget=BUDGET, rng=0, progress=True)
    shown = capsys.readouterr().err
    assert f"{valuation.method}: " in shown
    assert f"{valuation.evaluations}/{BUDGET}" in shown


@every_estimator
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, r"a stopping rule \(stop=\)"),
        ({"budget": 50.0}, TypeError, r"budget must be an integer of at least 1, got 50.0 \(float\)"),
        ({"budget": 0}, ValueError, "budget must be at least 1, got 0"),
        ({"budget": 200, "batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"budget": 200, "batch_size": 2.0}, TypeError, "batch_size must be an integer"),
        ({"budget": 200, "stop": 3}, TypeError, "stop must be a rule such as .*, got 3"),
        ({"budget": 200, "rng": "0"}, TypeError, "rng must be an int, a SeedSequence, a Generator or None, got str"),
        ({"budget": 200, "rng": -1}, ValueError, "rng must not be negative, got -1"),
    ],
)
def test_bad_arguments(estimator, arguments, error, message):
    game = Recorded(ANY_GAME)
    with pytest.raises(error, match=message):
        estimator.run(game, **arguments)
    assert game.calls == []
