"""Means over runs of other seeds: equal to what the runs say one at a time, with the spread between them."""

import numpy as np
import pytest

from baselines import Valuation
from inrun_bench.adjoint import Storage, few_run_shapley
from inrun_bench.methods import METHODS
from inrun_bench.methods.mean_over_runs import drawn_seeds, mean_over_runs
from tests.inrun_bench.adjoint.small import small_task

SEED = np.random.SeedSequence(4)


def by_seed(task):
    """Value each sample by the seed of the run."""
    values = np.arange(3.0) * task.run_seed
    parameters = {"gain": 2.0 * task.run_seed, "points": 4, "way": f"by {task.run_seed}"}
    return Valuation(values, stderr=None, evaluations=5, seconds=0.0, method="mine", parameters=parameters)


def test_moments_costs_and_parameters_are_those_of_all_runs():
    found = mean_over_runs(small_task(), (1, 2, 6), by_seed)
    np.testing.assert_allclose(found.values, [0, 3, 6])
    np.testing.assert_allclose(found.stderr, np.arange(3) * np.std([1, 2, 6], ddof=1) / np.sqrt(3))
    np.testing.assert_allclose(found.halves, [[0, 3.5, 7], [0, 2, 4]])
    assert (found.evaluations, found.method) == (15, "mine")
    assert found.parameters == {"gain": 6.0, "points": 4, "seeds": (1, 2, 6)}


def test_one_run_has_no_spread():
    found = mean_over_runs(small_task(), (2,), by_seed)
    assert found.stderr is None
    assert found.halves is None


def test_drawn_seeds_follow_from_the_stream_and_are_none_of_those_counted_off():
    assert drawn_seeds(SEED, 4) == drawn_seeds(np.random.SeedSequence(4), 4)
    assert len(set(drawn_seeds(SEED, 20) + small_task().run_seeds(1000))) == 1020
    assert small_task().run_seeds(drawn_seeds(SEED, 20)) == drawn_seeds(SEED, 20)


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
def test_few_runs_over_seeds_are_the_mean_of_those_of_each(recipe):
    task = small_task(recipe=recipe)
    options = {"points": 2, "groups": [0, 1, 1, 2, 3, 3, 3, 2], "split": "test", "utility": "expected-accuracy"}
    single = [few_run_shapley(task.rerun(seed), **options) for seed in (7, 8, 9)]
    found = few_run_shapley(task, **options, seeds=(7, 8, 9))
    np.testing.assert_allclose(found.values, np.mean([one.values for one in single], 0), rtol=1e-12)
    assert found.evaluations == 3 * single[0].evaluations
    assert found.parameters["gain"] == pytest.approx(np.mean([one.parameters["gain"] for one in single]))
    spread = np.std([one.values for one in single], axis=0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found.stderr, spread, rtol=1e-9)


def test_how_many_seeds_are_other_ones_than_the_task_s_own():
    task = small_task()
    two = few_run_shapley(task, 2, seeds=2)
    np.testing.assert_array_equal(two.values, few_run_shapley(task, 2, seeds=task.run_seeds(2)).values)
    assert two.parameters["seeds"] == (1003, 2003)
    own, again = few_run_shapley(task, 2), few_run_shapley(task, 2, seeds=(task.seed,))
    np.testing.assert_array_equal(again.values, own.values)
    assert "seeds" not in own.parameters
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        few_run_shapley(task, seeds=0)


def test_kept_runs_are_those_of_their_seed(tmp_path):
    task, storage = small_task(), Storage(runs=tmp_path)
    expected = few_run_shapley(task, 2, seeds=3).values
    few_run_shapley(task, 2, seeds=2, storage=storage)
    made = len(list(tmp_path.glob("*.run")))
    np.testing.assert_allclose(few_run_shapley(task, 2, seeds=3, storage=storage).values, expected, rtol=1e-12)
    assert (made, len(list(tmp_path.glob("*.run")))) == (4, 6)


def test_the_method_counts_every_run():
    task = small_task(epochs=1)
    found = METHODS["few-run-4-seeds-20"](task, SEED)
    assert found.evaluations == 20 * METHODS["few-run-4"](task, None).evaluations
    assert found.parameters["seeds"] == drawn_seeds(SEED, 20)
