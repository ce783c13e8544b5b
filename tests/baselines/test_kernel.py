from math import comb

import numpy as np
import pytest

from baselines import exact_shapley, kernel_shapley
from baselines.kernel import _fit
from baselines.monte_carlo import UndeterminedError
from tests.baselines.known_games import Airport, Quadratic, Recorded, Saturating, Table

ANY_GAME = Table(np.random.default_rng(0).normal(size=2**6))
every_sampling = pytest.mark.parametrize("sampling", ["leverage", "kernel"])


def constrained_fit(coalitions, utilities, weights, strata, empty, grand):
    """Additive game that is closest to the utilities, with the right total, by its optimality conditions.

    The strata [m, k] are explained as well, by k coefficients of their own.
    """
    (m, n), k = coalitions.shape, strata.shape[1]
    x = np.hstack([coalitions, strata])
    assert len(utilities) == len(weights) == m
    system = np.zeros((n + k + 1, n + k + 1))
    system[:-1, :-1] = (x.T * weights) @ x
    system[:n, -1] = system[-1, :n] = 1  # the multiplier of the constraint
    return np.linalg.solve(system, [*(x.T @ (weights * (utilities - empty))), grand - empty])[:n]


@every_sampling
@pytest.mark.parametrize("n_players", [6, 7])
def test_it_is_the_constrained_fit_of_both_coalitions_of_each_pair(sampling, n_players):
    game = Recorded(Table(np.random.default_rng(n_players).normal(size=2**n_players)))
    valuation = kernel_shapley(game, budget=120, sampling=sampling, rng=0)
    (_, coalitions), (empty, grand) = game.calls, game.game(game.calls[0])
    np.testing.assert_array_equal(coalitions[::2], ~coalitions[1::2])
    sizes = coalitions.sum(axis=1)
    weights, strata = np.ones(len(sizes)), np.zeros((len(sizes), 0))
    if sampling == "leverage":  # kernel over frequency: (1 / binomial) / (s (n - s)) over (1 / binomial) for pairs
        weights = np.where(2 * sizes == n_players, 0.5, 1.0) / (sizes * (n_players - sizes))
        # an intercept for each size, with opposite signs for a coalition and its complement
        strata = (sizes[::2, None] == np.arange(1, n_players // 2 + 1)).repeat(2, axis=0).astype(float)
        strata[1::2] *= -1
    expected = constrained_fit(coalitions, game.game(coalitions), weights, strata, empty, grand)
    np.testing.assert_allclose(valuation.values, expected, atol=1e-10)


@every_sampling
@pytest.mark.parametrize("n_players", [6, 7])
def test_standard_errors_are_those_of_the_textbook(sampling, n_players):
    """HC2 from the hat matrix of the regression on n - 1 coordinates of the values, and intercepts of sizes."""
    game = Recorded(Table(np.random.default_rng(n_players).normal(size=2**n_players)))
    valuation = kernel_shapley(game, budget=120, sampling=sampling, rng=0)
    total = np.diff(game.game(game.calls[0]))[0]
    members = game.calls[1][::2]
    sizes = members.sum(axis=1)
    targets = (game.game(members) - game.game(~members)) / 2 + total * (0.5 - sizes / n_players)
    basis = np.linalg.svd(np.ones((1, n_players)))[2][1:].T  # [n, n - 1], of what adds up to zero
    design, weights = members @ basis, np.ones(len(members))
    if sampling == "leverage":
        design = np.hstack([design, sizes[:, None] == np.arange(1, n_players // 2 + 1)])
        weights = np.where(2 * sizes == n_players, 0.5, 1.0) / (sizes * (n_players - sizes))
    q, y = np.sqrt(weights)[:, None] * design, np.sqrt(weights) * targets
    inverse = np.linalg.inv(q.T @ q)
    hat = q @ inverse @ q.T
    errors = (y - hat @ y) ** 2 / (1 - np.diag(hat))
    covariance = (inverse @ (q.T * errors) @ q @ inverse)[: n_players - 1, : n_players - 1]
    np.testing.assert_allclose(valuation.values, total / n_players + basis @ (inverse @ q.T @ y)[: n_players - 1])
    np.testing.assert_allclose(valuation.stderr**2, np.diag(basis @ covariance @ basis.T))


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("n_players", [3, 6, 7])
def test_the_fit_of_all_coalitions_is_the_shapley_value(n_players, stratified):
    """With the weights of the Shapley kernel (Charnes et al. 1988); intercepts of sizes change nothing."""
    game = Table(np.random.default_rng(n_players).normal(size=2**n_players))
    codes = np.arange(1, 2**n_players - 1)
    members = (codes[:, None] >> np.arange(n_players) & 1).astype(bool)
    sizes = members.sum(axis=1)
    weights = 1 / np.array([comb(n_players, size) * size * (n_players - size) for size in sizes])
    total = game.utilities[-1] - game.utilities[0]
    targets = (game.utilities[codes] - game.utilities[::-1][codes]) / 2 + total * (0.5 - sizes / n_players)
    deviations, _ = _fit(members, sizes, targets, weights, stratified=stratified)
    np.testing.assert_allclose(total / n_players + deviations, exact_shapley(game).values, atol=1e-12)


def test_what_the_size_alone_explains_is_no_noise():
    """A utility of the size of the coalition may be added to a game: the fit has an intercept for each size."""
    by_size = np.random.default_rng(1).normal(size=7)[np.array([code.bit_count() for code in range(64)])]
    one, other = (
        kernel_shapley(game, budget=100, rng=0) for game in (ANY_GAME, Table(ANY_GAME.utilities + 10 * by_size))
    )
    share = 10 * (by_size[-1] - by_size[0]) / 6
    np.testing.assert_allclose(other.values, one.values + share, atol=1e-12)
    np.testing.assert_allclose(other.stderr, one.stderr, atol=1e-12)


@pytest.mark.parametrize("n_players", [2, 3])
def test_with_three_players_all_pairs_are_met_and_fitted(n_players):
    game = Table(np.random.default_rng(n_players).normal(size=2**n_players))
    valuation = kernel_shapley(game, budget=60, rng=0)
    np.testing.assert_allclose(valuation.values, exact_shapley(game).values, atol=1e-12)
    np.testing.assert_allclose(valuation.stderr, 0, atol=1e-12)


@every_sampling
@pytest.mark.parametrize("n_players", [3, 8, 11])
def test_exact_on_quadratic_games(sampling, n_players):
    """Interactions of pairs are even in complementation, but for what is additive."""
    game = Quadratic.random(n_players, seed=n_players)
    valuation = kernel_shapley(game, budget=42 + 8 * n_players, sampling=sampling, rng=0)
    np.testing.assert_allclose(valuation.values, game.shapley(), atol=1e-10)
    np.testing.assert_allclose(valuation.stderr, 0, atol=1e-9)


@every_sampling
def test_bias_shrinks_faster_than_noise(sampling):
    """A budget four times as large: errors halve, the bias goes to a quarter."""
    game, bias, noise = Airport([1, 2, 3, 5, 8, 20]), [], []
    for budget in (50, 200):
        values = np.array([kernel_shapley(game, budget=budget, sampling=sampling, rng=s).values for s in range(600)])
        bias.append(np.linalg.norm(values.mean(axis=0) - game.shapley()))
        noise.append(np.sqrt(values.var(axis=0).sum()))
    assert noise[1] < 0.6 * noise[0]
    assert bias[1] < 0.4 * bias[0] + 2 * noise[1] / np.sqrt(600)
    assert bias[1] < 0.1 * noise[1]


@every_sampling
def test_sizes_are_as_frequent_as_they_should_be(sampling):
    game = Recorded(Saturating(np.ones(8)))
    kernel_shapley(game, budget=2 + 2 * 4000, sampling=sampling, rng=0)
    smaller = np.concatenate(game.calls[1:])[::2].sum(axis=1)
    counts = np.bincount(smaller, minlength=5)[1:]
    if sampling == "leverage":
        assert counts.tolist() == [1000] * 4
    else:  # proportional to 1 / (s (n - s)), s and n - s together
        expected = 4000 * np.array([1 / 7, 1 / 12, 1 / 15, 0.5 / 16]) / (1 / 7 + 1 / 12 + 1 / 15 + 0.5 / 16)
        assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-squared, 3 degrees of freedom: 0.001


@pytest.mark.parametrize("stratified", [False, True])
def test_a_sample_that_does_not_determine_the_values(stratified):
    """Two players who are never told apart."""
    members = np.random.default_rng(0).random((40, 6)) < 0.5
    members[:, 1] = members[:, 0]
    members = members[(members.sum(axis=1) > 0) & (members.sum(axis=1) < 6)]
    with pytest.raises(UndeterminedError, match="pairs of coalitions do not determine the values of 6 players; give a"):
        _fit(members, members.sum(axis=1), np.ones(len(members)), np.ones(len(members)), stratified=stratified)


def test_unknown_sampling():
    with pytest.raises(ValueError, match="sampling must be one of 'leverage', 'kernel', got 'paired'"):
        kernel_shapley(ANY_GAME, budget=100, sampling="paired")
