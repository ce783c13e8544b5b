"""All ways to walk a run backwards meet the same states."""

import tempfile
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrun_bench.adjoint.checkpoints import Storage, run_then_reverse, states_held

WAYS = ["memory", "disk", "recomputed"]


def logistic_map(number, state):
    level, memory = state
    return (3.7 + number / 1000) * level * (1 - level), memory + level


def first_state(dtype=torch.float64):
    level = torch.linspace(0.1, 0.9, 5, dtype=dtype)
    return level, torch.zeros_like(level)


@pytest.mark.parametrize("way", WAYS)
@given(n_steps=st.integers(1, 40))
def test_states_come_back_to_the_last_bit(way, n_steps):
    states = [first_state(torch.float32)]
    for number in range(n_steps):
        states.append(logistic_map(number, states[-1]))
    last, backwards = run_then_reverse(states[0], logistic_map, n_steps, way)
    assert all(map(torch.equal, last, states[-1]))
    visited = list(backwards)
    assert [number for number, _ in visited] == list(reversed(range(n_steps)))
    for number, state in visited:
        assert all(map(torch.equal, state, states[number]))


@given(n_steps=st.integers(1, 500))
def test_recomputing_takes_at_most_one_more_run_and_holds_the_root_of_the_states(n_steps):
    calls = []

    def step(number, state):
        calls.append(number)
        return state

    _, backwards = run_then_reverse(first_state(), step, n_steps, "recomputed")
    list(backwards)
    assert len(calls) <= 2 * n_steps
    assert states_held("recomputed", n_steps) <= 2 * n_steps**0.5 + 2
    assert states_held("memory", n_steps) == states_held("disk", n_steps) == n_steps


@pytest.mark.parametrize("way", ["memory", "recomputed"])
@given(n_steps=st.integers(1, 40))
def test_no_more_states_are_held_than_is_said_and_none_of_a_step_that_is_done(way, n_steps):
    alive = weakref.WeakSet()

    def step(number, state):
        after = (state[0] + 1,)
        alive.add(after[0])
        return after

    first = (torch.zeros(1, dtype=torch.float64),)
    alive.add(first[0])
    backwards = run_then_reverse(first, step, n_steps, way)[1]
    del first
    for number, _ in backwards:
        assert len(alive) <= min(number + 1, states_held(way, n_steps))


def test_a_full_disk_is_an_error_that_says_what_is_needed(monkeypatch):
    full = Path("/dev/full").open("w+b")  # noqa: SIM115 - to be closed by the code under test
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    with pytest.raises(OSError, match=r"this run, 400 bytes, could not be kept in .*: No space left"):
        run_then_reverse(first_state(), logistic_map, 5, "disk")
    assert full.closed


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(OSError, match="absent"):
        run_then_reverse(first_state(), logistic_map, 5, "disk", tmp_path / "absent")


def test_the_file_is_gone_after_a_run_that_failed(tmp_path):
    def failing(number, state):
        if number == 3:
            raise ValueError("diverged")
        return state

    with pytest.raises(ValueError, match="diverged"):
        run_then_reverse(first_state(), failing, 5, "disk", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match=r"way must be one of 'memory', 'disk', 'recomputed' or None, got 'tape'"):
        Storage("tape")
