"""Values are ranked as the numbers that they are, whatever their type; what has no standard error is refused."""

import warnings

import numpy as np
import pytest

from baselines import (
    Valuation,
    beta_shapley,
    complementary_shapley,
    group_testing_shapley,
    kernel_shapley,
    owen_shapley,
    permutation_shapley,
    tmc_shapley,
)


def valuation(values, **fields):
    return Valuation(values, fields.pop("stderr", None), evaluations=8, seconds=0.1, method="mine", **fields)


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, 2, 0], np.uint8),
        np.array([-127, 7, -128], np.int8),
        np.array([True, True, False]),
        [1.0, 2.0, 0.0],
        np.array([1.0, 2.0, 0.0], ">f8"),
        np.array([1, 2, 0], np.float16),
    ],
    ids=lambda values: str(getattr(values, "dtype", "list")),
)
def test_ranks_do_not_depend_on_the_type_of_the_numbers(values):
    as_floats = [float(value) for value in values]
    ours = valuation(values, stderr=[1, 2, 3], halves=[[1, 2, 3], [3, 2, 1]])
    assert ours.top(3).tolist() == sorted(range(3), key=lambda i: (-as_floats[i], i))
    assert ours.bottom(3).tolist() == sorted(range(3), key=lambda i: (as_floats[i], i))
    assert {each.dtype for each in (ours.values, ours.stderr, ours.halves)} == {np.dtype(np.float64)}
    assert ours.reliability() == pytest.approx(-1)


BAD = {
    "strings": (["a"], {}, TypeError, "values must be real numbers"),
    "complex": (np.array([1j]), {}, TypeError, "values must be real numbers"),
    "large integers": ([2**53 + 1], {}, ValueError, "values must be numbers that float64 holds exactly"),
    "masked": (np.ma.array([1.0], mask=True), {}, ValueError, "values must have no masked entries"),
    "errors of others": ([1.0], {"stderr": [1.0, 2.0]}, ValueError, "stderr must have the shape of values"),
    "a number": (1.0, {}, ValueError, r"values must have shape \(n,\), got \(\)"),
}


@pytest.mark.parametrize(("values", "fields", "error", "message"), BAD.values(), ids=BAD)
def test_what_is_no_value_is_refused(values, fields, error, message):
    with pytest.raises(error, match=message):
        valuation(values, **dict(fields))


def test_a_half_with_gaps_has_no_ranking():
    with pytest.raises(ValueError, match="NaN in one half"):
        valuation([1.0, 2.0], halves=[[1.0, np.nan], [1.0, 2.0]]).reliability()


ESTIMATORS = [
    permutation_shapley,
    owen_shapley,
    complementary_shapley,
    kernel_shapley,
    group_testing_shapley,
    beta_shapley,
    tmc_shapley,
]


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_standard_errors_that_squares_cannot_give_are_refused(estimator, scale):
    class Scaled:
        n_players = 4

        def __call__(self, coalitions):
            return scale * np.sqrt(coalitions @ [1.0, 2.0, 3.0, 4.0])

    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"utilities are too \w+ for standard errors"):
        warnings.simplefilter("ignore")
        estimator(Scaled(), budget=300, rng=0)
