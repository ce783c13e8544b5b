"""Few-run Shapley values: exact on quadratic utilities, efficient, and near enumeration elsewhere."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from baselines import exact_shapley
from inrun_bench.adjoint import Storage, differentiate, few_run_shapley, unrolled_influence
from tests.inrun_bench.adjoint.small import quadratic_task, small_task


@dataclasses.dataclass
class GroupedGame:
    game: object
    groups: np.ndarray

    @property
    def n_players(self):
        return self.groups.max() + 1

    def __call__(self, coalitions):
        return self.game(coalitions[:, self.groups])


@pytest.mark.parametrize("points", [1, 3])
def test_values_of_a_quadratic_utility_are_its_shapley_values(points):
    task = quadratic_task()
    found = few_run_shapley(task, points)
    np.testing.assert_allclose(found.values, exact_shapley(task.trajectory_game()).values, rtol=1e-9, atol=1e-12)


def test_groups_are_players():
    task, groups = quadratic_task(), np.array([0, 2, 1, 1, 0, 2, 2, 2])
    expected = exact_shapley(GroupedGame(task.trajectory_game(), groups)).values
    np.testing.assert_allclose(few_run_shapley(task, 2, groups=groups).values, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [few_run_shapley, unrolled_influence])
def test_a_group_has_the_sum_of_its_samples_derivatives(method):
    task, groups = small_task(), np.array([0, 2, 1, 1, 0, 2, 2, 2])
    alone = method(task).values
    together = method(task, groups=groups.tolist()).values
    np.testing.assert_allclose(together, np.bincount(groups, alone), rtol=1e-12)


def smooth_network(**changes):
    """A network without kinks: where a ReLU switches, a gradient jumps, and so may the utility."""
    return dataclasses.replace(
        small_task(**changes), architecture=lambda: nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    )


@pytest.mark.parametrize(
    "task",
    [
        smooth_network(),
        smooth_network(momentum=0.5, weight_decay=0.1),
        small_task("wine-logreg", momentum=0.8),
        small_task("diabetes-ridge"),
    ],
)
def test_values_add_up_to_the_gain_where_the_run_is_smooth(task):
    few, many = (few_run_shapley(task, points).parameters for points in (2, 12))
    np.testing.assert_allclose(many["sum"], many["gain"], rtol=1e-6)
    assert abs(few["sum"] - few["gain"]) < 0.1 * few["gain"]


def test_values_come_near_those_of_enumeration():
    task = small_task("wine-logreg", n=10)
    exact = exact_shapley(task.trajectory_game()).values
    found = few_run_shapley(task).values
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


def test_equal_samples_of_a_batch_have_equal_values_and_samples_without_gradient_none():
    task = quadratic_task()
    x, y = task.train.x.clone(), task.train.y.clone()
    x[1], y[1] = x[0], y[0]
    x[2] = 0.0
    task = dataclasses.replace(
        task,
        train=dataclasses.replace(task.train, x=x, y=y),
        architecture=lambda: nn.Linear(x.shape[1], 1, bias=False),
        recipe=dataclasses.replace(task.recipe, epochs=4),
    )
    values = few_run_shapley(task).values
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)
    assert values[2] == 0.0
    assert values[3] != 0.0


def test_influence_is_the_derivative_at_full_weights():
    task = quadratic_task()
    full, half = differentiate(task, np.array([[1.0], [0.5]]).repeat(8, axis=1)).gradients
    np.testing.assert_allclose(unrolled_influence(task).values, full, rtol=1e-10)
    assert not np.allclose(full, half, rtol=0.01)


def test_roughness_is_zero_where_the_derivative_keeps_its_direction_and_grows_with_the_rate():
    rates = (1e-6, 0.1, 1.0)
    roughness = [few_run_shapley(smooth_network(learning_rate=rate)).parameters["roughness"] for rate in rates]
    assert 0 <= roughness[0] < 1e-6
    assert roughness[0] < roughness[1] < roughness[2] <= 2
    alone = few_run_shapley(small_task(), groups=np.zeros(8, int))  # one player keeps its proportions
    assert alone.parameters["roughness"] == few_run_shapley(small_task(), 1).parameters["roughness"] == 0.0


def test_costs_are_on_record(tmp_path):
    found = few_run_shapley(small_task(), 3, storage=Storage("disk", directory=tmp_path))
    assert found.evaluations == 5  # two of them plain
    assert found.parameters["states"] == "disk"
    weights = sum(p.nbytes for p in small_task().model().parameters())
    assert found.parameters["stored_bytes"] == 3 * len(small_task().batches()) * weights
    assert unrolled_influence(small_task()).evaluations == 1


def test_other_utilities_and_the_test_split():
    found = few_run_shapley(smooth_network(), 10, utility="expected-accuracy", split="test").parameters
    np.testing.assert_allclose(found["sum"], found["gain"], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 0}, "points must be at least 1"),
        ({"groups": [0] * 7}, r"groups must be integers of shape \[8\]"),
        ({"groups": [0.0] * 8}, "groups must be integers"),
        ({"groups": [0, 2] * 4}, "groups must use all numbers from 0 on, got 2 numbers, 0 to 2"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        few_run_shapley(small_task(), **options)


def test_float32_is_enough_for_values():
    task = small_task()
    data = {part: getattr(task, part) for part in ("train", "validation", "test")}
    single = dataclasses.replace(task, **{p: dataclasses.replace(s, x=s.x.to(torch.float32)) for p, s in data.items()})
    expected = few_run_shapley(task).values
    np.testing.assert_allclose(few_run_shapley(single).values, expected, atol=1e-4 * np.abs(expected).max())
