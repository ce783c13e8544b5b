import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from inrun_bench.report.intervals import left_out, mean_interval, over_seeds

NUMBERS = st.integers(-(10**6), 10**6).map(lambda n: n / 100)
CORRELATIONS = st.floats(-1, 1)


@given(st.lists(NUMBERS, min_size=2, max_size=20, unique=True))
def test_interval_is_that_of_student(values):
    mean, low, high, n = mean_interval(values)
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert n == len(values)
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx(expected)


@given(st.lists(CORRELATIONS, min_size=2, max_size=20))
def test_interval_of_correlations_stays_among_correlations_and_holds_its_mean(values):
    mean, low, high, _ = mean_interval(values, correlation=True)
    assert -1 <= low <= mean <= high <= 1
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9


@given(st.lists(st.floats(-0.99, 0.99), min_size=2, max_size=20))
def test_interval_of_correlations_is_that_of_their_fisher_z(values):
    in_z = mean_interval(np.arctanh(values))
    assert mean_interval(values, correlation=True)[:3] == pytest.approx(tuple(np.tanh(in_z[:3])))


@given(st.lists(CORRELATIONS, min_size=1, max_size=10))
def test_interval_of_correlations_does_not_depend_on_the_sign_convention(values):
    mean, low, high, _ = mean_interval(values, correlation=True)
    mirrored = mean_interval([-v for v in values], correlation=True)
    assert mirrored[:3] == pytest.approx((-mean, -high, -low), nan_ok=True)


@given(st.lists(CORRELATIONS, max_size=10), st.integers(1, 4), st.booleans(), st.randoms())
def test_nan_are_left_out(values, n_missing, correlation, random):
    gappy = values + [math.nan] * n_missing
    random.shuffle(gappy)
    whole = mean_interval(values, correlation=correlation)
    assert mean_interval(gappy, correlation=correlation) == pytest.approx(whole, nan_ok=True)


@given(CORRELATIONS, st.booleans())
def test_one_value_gives_no_interval(value, correlation):
    mean, low, high, n = mean_interval([value], correlation=correlation)
    assert mean == pytest.approx(value)
    assert n == 1
    assert math.isnan(low)
    assert math.isnan(high)


def test_a_larger_sample_is_not_needed_where_there_is_no_spread():
    assert mean_interval([3.0, 3.0, 3.0]) == (3.0, 3.0, 3.0, 3)


def test_over_seeds_takes_each_group_alone_and_correlations_by_fisher():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        [
            {"task": task, "method": method, "metric": metric, "seed": seed, "value": rng.uniform(-0.9, 0.9)}
            for task in "ab"
            for method in "xy"
            for metric in ("spearman", "kendall", "pearson", "spearman_ceiling", "top10_overlap", "area_loss")
            for seed in range(4)
        ]
    ).sample(frac=1, random_state=0)
    table = over_seeds(rows)
    assert len(table) == 2 * 2 * 6
    for (task, method, metric), found in table.iterrows():
        own = rows[(rows["task"] == task) & (rows["method"] == method) & (rows["metric"] == metric)]["value"]
        share = metric == "top10_overlap"
        expected = mean_interval(own, correlation=not share and metric != "area_loss", share=share)
        assert tuple(found) == pytest.approx((*expected, 1))


def test_over_seeds_groups_as_told():
    rows = pd.DataFrame({"metric": ["m"] * 3, "fraction": [0.0, 0.5, 0.5], "value": [1.0, 2.0, 4.0]})
    table = over_seeds(rows, by=("fraction", "metric"))
    assert table["mean"].to_dict() == {(0.0, "m"): 1.0, (0.5, "m"): 3.0}


def test_several_values_of_a_seed_are_no_independent_ones_and_have_no_mean():
    rows = pd.DataFrame(
        {"task": "t", "method": list("aabb"), "metric": "auroc", "seed": [0, 1, 0, 0], "value": [0.5, 0.7, 0.5, 0.7]}
    )
    table = over_seeds(rows)
    assert table.loc[("t", "a", "auroc"), ["n", "definitions"]].tolist() == [2, 1]
    assert table.loc[("t", "b", "auroc"), ["n", "definitions"]].tolist() == [0, 2]
    assert table.loc[("t", "b", "auroc"), ["mean", "low", "high"]].isna().all()
    assert left_out(table).startswith("left out: 1 means of rows of several definitions")
    assert left_out(over_seeds(rows[:2])) == ""


def test_an_interval_around_nearly_1_is_as_narrow_as_its_values():
    mean, low, high, _ = mean_interval([1.0, 0.9999], correlation=True)
    assert mean == pytest.approx(0.99995)
    assert low > 0.999
    assert high == 1.0
    assert mean_interval([1.0, 1.0, 1.0], correlation=True)[:3] == (1.0, 1.0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_interval_of_shares_stays_among_shares(values):
    plain, share = mean_interval(values), mean_interval(values, share=True)
    assert share.mean == plain.mean
    assert (share.low, share.high) == (max(plain.low, 0.0), min(plain.high, 1.0))
    rows = pd.DataFrame({"task": "a", "method": "b", "metric": "auroc", "seed": range(len(values)), "value": values})
    assert over_seeds(rows)[["low", "high"]].iloc[0].tolist() == [share.low, share.high]


# --- few seeds ---


def test_two_seeds_have_an_interval_of_use_where_it_is_known_how_samples_vary():
    mean, low, high, _ = mean_interval([0.80, 0.90], correlation=True, stderr=[0.04, 0.02])
    assert low < 0.80 < mean < 0.90 < high
    assert high - low < 0.3
    alone = mean_interval([0.80, 0.90], correlation=True)
    assert alone.mean == mean
    assert alone.high - alone.low > 1


@given(st.lists(st.floats(-0.99, 0.99), min_size=2, max_size=4), st.floats(1e-3, 0.5))
def test_an_interval_of_few_seeds_is_that_of_drawing_seeds_and_samples(values, error):
    z, errors = np.arctanh(values), error * (1 - np.square(values))
    half = stats.norm.ppf(0.975) * np.sqrt((z.var(ddof=1) + error**2) / len(z))
    found = mean_interval(values, correlation=True, stderr=errors)
    assert found[:3] == pytest.approx(tuple(np.tanh([z.mean(), z.mean() - half, z.mean() + half])), abs=1e-9)


@given(st.lists(st.floats(-0.99, 0.99), min_size=5, max_size=9))
def test_from_five_seeds_on_samples_have_no_say(values):
    assert mean_interval(values, correlation=True, stderr=np.full(len(values), 0.3)) == mean_interval(
        values, correlation=True
    )


@pytest.mark.parametrize("missing", [[np.nan, np.nan], [0.1, np.nan]])
def test_where_it_is_not_known_how_samples_vary_seeds_stand_alone(missing):
    assert mean_interval([0.3, 0.5], correlation=True, stderr=missing) == mean_interval([0.3, 0.5], correlation=True)


@pytest.mark.parametrize(("apart", "least"), [(0.0, 0.97), (1.0, 0.91), (3.0, 0.78)])
def test_an_interval_of_two_seeds_holds_the_truth_as_often_as_is_said(apart, least):
    """Seeds differ by so many times what samples make them differ."""
    rng, held = np.random.default_rng(0), 0
    for z in rng.normal(0.8, 0.1 * np.hypot(1, apart), size=(2000, 2)):
        values = np.tanh(z)
        _, low, high, _ = mean_interval(values, correlation=True, stderr=0.1 * (1 - values**2))
        held += low < np.tanh(0.8) < high
    assert held / 2000 >= least


def test_over_seeds_hands_the_errors_of_samples_on():
    rows = pd.DataFrame(
        {"task": "t", "method": "m", "metric": "spearman", "seed": [0, 1], "value": [0.5, 0.9], "stderr": [0.1, 0.05]}
    )
    found = over_seeds(rows).loc[("t", "m", "spearman")]
    expected = mean_interval([0.5, 0.9], correlation=True, stderr=[0.1, 0.05])
    assert tuple(found[["mean", "low", "high"]]) == expected[:3]
