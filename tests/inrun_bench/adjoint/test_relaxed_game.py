"""The relaxed game is the trajectory game at its corners, and heeds what that is told."""

import numpy as np
import pytest

from inrun_bench.adjoint import Storage
from inrun_bench.adjoint.relaxed_game import relaxed_game
from tests.inrun_bench.adjoint.small import small_task, some_weights


@pytest.mark.parametrize("split", ["validation", "test"])
def test_at_its_corners_it_is_the_trajectory_game(split):
    task, coalitions = small_task(), some_weights(6, 8) < 0.5
    game = relaxed_game(task, "loss", split, None, Storage(), smoothing=0.0)
    expected = task.trajectory_game("loss", split)(coalitions)
    np.testing.assert_allclose(game(coalitions), expected, rtol=1e-12)
    np.testing.assert_allclose(game.differentiate(coalitions.astype(float)).utilities, expected, rtol=1e-12)


@pytest.mark.parametrize("utility", ["loss", "expected-accuracy"])
def test_trainings_take_no_more_memory_than_is_allowed(utility):
    game = relaxed_game(small_task(), utility, "validation", None, Storage(memory_bytes=1), smoothing=0.0)
    with pytest.raises(ValueError, match=r"memory_bytes must be at least \d+, .*, got 1"):
        game(np.ones((1, 8), bool))
