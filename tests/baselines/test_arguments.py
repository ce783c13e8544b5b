"""What is no number or no flag is refused by name, and never taken for what Python makes of it."""

import numpy as np
import pytest

import baselines
from tests.baselines.known_games import Airport

GAME = Airport([1.0, 2.0, 4.0])

NUMBERS = {
    "tolerance": lambda value: baselines.tmc_shapley(GAME, 4, tolerance=value),
    "alpha": lambda value: baselines.beta_shapley(GAME, 4, alpha=value),
    "beta": lambda value: baselines.beta_shapley(GAME, 4, beta=value),
    "limit": baselines.stderr_below,
    "share": lambda value: baselines.stderr_below(0.1, share=value),
    "level": baselines.rank_stability,
}
FLAGS = {
    "permutation": lambda value: baselines.permutation_shapley(GAME, 4, antithetic=value),
    "owen": lambda value: baselines.owen_shapley(GAME, budget=80, antithetic=value),
}


@pytest.mark.parametrize("value", [True, "0.5", None, np.array([0.5]), 0.5 + 0j], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a real number, got"):
        NUMBERS[name](value)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_are_numbers(name):
    NUMBERS[name](np.float32(0.5))


@pytest.mark.parametrize("value", ["no", 2, None, 1.0])
@pytest.mark.parametrize("name", FLAGS)
def test_what_is_no_flag_is_refused(name, value):
    with pytest.raises(TypeError, match=f"antithetic must be True or False, got {value!r}"):
        FLAGS[name](value)
    assert FLAGS[name](np.bool_(False)).parameters["antithetic"] is False
