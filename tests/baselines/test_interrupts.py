"""Ctrl-C: an estimate that is interrupted after k draws is that of k draws, to the bit, or there is none."""

import gc
import os
import re
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import baselines
from baselines import (
    CachedGame,
    InterruptedEstimateWarning,
    UtilityStore,
    Valuation,
    exact_shapley,
    kernel_shapley,
    leave_one_out,
    permutation_shapley,
    tmc_shapley,
)
from tests.baselines.known_games import Recorded
from tests.baselines.test_laws import ANY_GAME, ESTIMATORS, assert_same_bits, every_estimator

PACKAGE = str(Path(baselines.__file__).parent)


class Interrupted(Recorded):
    """A game that is interrupted in its call number `last`, the first being 0."""

    def __init__(self, game, last):
        super().__init__(game)
        self.last = last

    def __call__(self, coalitions):
        super().__call__(coalitions)
        if len(self.calls) > self.last:
            raise KeyboardInterrupt
        return self.game(coalitions)


def interrupted(run, game, **arguments):
    """The valuation, with its warning; None where there is none."""
    with warnings.catch_warnings(record=True) as caught:  # pytest.warns (8.0) hides a KeyboardInterrupt
        warnings.simplefilter("always")
        try:
            valuation = run(game, **arguments)
        except KeyboardInterrupt:
            valuation = None
    assert [warning.category for warning in caught] == [InterruptedEstimateWarning] * (valuation is not None)
    return valuation


@every_estimator
def test_interrupted_in_a_call_of_the_game_it_has_the_draws_before(estimator):
    found = []
    for last in (0, 1, 2, 5, 12, 20):
        game = Interrupted(ANY_GAME, last)
        valuation = interrupted(estimator.run, game, budget=400, rng=1, batch_size=15)
        assert len(game.calls) == last + 1
        if valuation is not None:
            found.append(valuation)
            expected = estimator.run(ANY_GAME, budget=valuation.evaluations, rng=1)
            assert_same_bits(valuation, expected)
            assert valuation.evaluations <= game.evaluations()
            assert valuation.parameters["interrupted"]
            changed = {"budget": 400, "interrupted": True}
            assert valuation.parameters == {**expected.parameters, **changed}
    evaluations = [valuation.evaluations for valuation in found]
    assert len(set(evaluations)) > 1
    assert evaluations == sorted(evaluations)


class Breaker:
    """Raises KeyboardInterrupt at the instruction number `last` of the package, as a signal may.

    By `sys.monitoring` from Python 3.12 on: traces see only part of the instructions there (3.12.1, 3.13.0).
    """

    def __init__(self, last):
        self.last, self.seen = last, 0

    def run(self, call):
        gc.disable()  # generators of an earlier run would be finalized in this one, and counted
        try:
            return self._traced(call) if sys.version_info < (3, 12) else self._monitored(call)
        finally:
            gc.enable()

    def _count(self):
        self.seen += 1
        if self.seen == self.last:
            raise KeyboardInterrupt

    def _monitored(self, call):
        tools, event = sys.monitoring, sys.monitoring.events.INSTRUCTION

        def instruction(code, _offset):
            return self._count() if code.co_filename.startswith(PACKAGE) else tools.DISABLE

        tools.use_tool_id(tools.DEBUGGER_ID, "interrupts")
        try:
            tools.register_callback(tools.DEBUGGER_ID, event, instruction)
            tools.set_events(tools.DEBUGGER_ID, event)
            return call()
        finally:
            tools.set_events(tools.DEBUGGER_ID, tools.events.NO_EVENTS)
            tools.register_callback(tools.DEBUGGER_ID, event, None)
            tools.free_tool_id(tools.DEBUGGER_ID)

    def _traced(self, call):
        def trace(frame, event, _argument):
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            if event == "opcode":
                self._count()
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            return call()
        finally:
            sys.settrace(before)


WAYS_TO_ADD_A_DRAW = ("antithetic shifts", "tmc", "owen", "banzhaf")
INTERRUPTS = 200


@pytest.mark.filterwarnings("ignore::baselines.InterruptedEstimateWarning")
@pytest.mark.parametrize("estimator", [one for one in ESTIMATORS if one.name in WAYS_TO_ADD_A_DRAW], ids=str)
def test_interrupted_between_any_two_instructions_it_has_whole_draws(estimator, monkeypatch):
    call = partial(estimator.run, ANY_GAME, budget=90, rng=2, batch_size=25)
    undisturbed = Breaker(last=None)
    whole = undisturbed.run(call)
    found, lost = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: lost.append(unraisable.exc_type))
    for last in np.linspace(1, undisturbed.seen, INTERRUPTS).astype(int).tolist():
        lost.clear()
        breaker = Breaker(last)
        try:
            valuation = breaker.run(call)
        except KeyboardInterrupt:
            valuation = None
        assert breaker.seen >= last
        if lost:  # it came while a generator was finalized, where Python drops it
            assert lost == [KeyboardInterrupt]
            assert not valuation.parameters["interrupted"]
            assert_same_bits(valuation, whole)
        else:
            found.append(valuation)
    assert len(found) > 0.9 * INTERRUPTS
    returned = [number for number, valuation in enumerate(found) if valuation is not None]
    assert len(returned) > INTERRUPTS / 5
    assert returned == list(range(returned[0], returned[-1] + 1))  # from the first estimate on, until the driver ends
    evaluations = [found[number].evaluations for number in returned]
    assert evaluations == sorted(evaluations)
    assert evaluations[-1] == whole.evaluations > evaluations[0]
    for number in returned:
        assert found[number].parameters["interrupted"]
        assert_same_bits(found[number], estimator.run(ANY_GAME, budget=found[number].evaluations, rng=2))


def test_the_warning_says_what_is_left_and_where():
    game = Interrupted(ANY_GAME, 3)
    with pytest.warns(InterruptedEstimateWarning) as caught:
        valuation = permutation_shapley(game, 100, rng=0, batch_size=20)
    assert str(caught[0].message) == (
        "permutation_shapley was interrupted: it returns the estimate of the draws made so far, 8, from 42 evaluated "
        "coalitions"
    )
    assert caught[0].filename == __file__
    assert valuation.parameters["n_permutations"] == 8


def test_where_the_warning_is_an_error_the_interrupt_is_raised():
    with warnings.catch_warnings():
        warnings.simplefilter("error", InterruptedEstimateWarning)
        with pytest.raises(KeyboardInterrupt):
            permutation_shapley(Interrupted(ANY_GAME, 3), 100, rng=0, batch_size=20)


def test_a_rule_may_be_interrupted_too():
    def rule(estimate):
        if estimate.draws > 10:
            raise KeyboardInterrupt
        return False

    valuation = interrupted(permutation_shapley, ANY_GAME, stop=rule, rng=0)
    assert_same_bits(valuation, permutation_shapley(ANY_GAME, valuation.parameters["n_permutations"], rng=0))


@pytest.mark.parametrize(
    ("run", "note"),
    [
        (
            partial(permutation_shapley, budget=400),
            "permutation_shapley .* there was an estimate: no draw was finished",
        ),
        (partial(tmc_shapley, budget=400), "tmc_shapley .* no draw was finished"),
        (partial(kernel_shapley, budget=400), "12 draws were finished, 20 are the fewest for an estimate"),
    ],
)
def test_before_there_is_an_estimate_the_interrupt_is_raised(run, note):
    batch_size = 12 if run.func is kernel_shapley else 5
    with pytest.raises(KeyboardInterrupt) as caught:
        run(Interrupted(ANY_GAME, 3 if run.func is kernel_shapley else 1), rng=0, batch_size=batch_size)
    keeping, reason = caught.value.__notes__
    assert "CachedGame(game, UtilityStore(path)) keeps" in keeping
    assert re.search(note, reason)


@pytest.mark.parametrize("run", [exact_shapley, leave_one_out])
def test_what_needs_every_coalition_raises_and_a_store_keeps_what_was_evaluated(run, tmp_path):
    game, store = Interrupted(ANY_GAME, 3), UtilityStore(tmp_path / "utilities.db")
    with pytest.raises(KeyboardInterrupt) as caught:
        run(CachedGame(game, store, identity="any"), batch_size=2)
    assert "CachedGame(game, UtilityStore(path)) keeps" in caught.value.__notes__[0]
    again = CachedGame(ANY_GAME, store, identity="any")
    np.testing.assert_array_equal(run(again, batch_size=2).values, run(ANY_GAME).values)
    assert again.hits == 6


SCRIPT = """
import signal
import sys
import time

import joblib
import numpy as np

from baselines import permutation_shapley
from tests.baselines.known_games import Table

ANY_GAME = Table(np.random.default_rng(0).normal(size=2**6))  # that of test_laws

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it


def utilities(game, coalitions):
    time.sleep(0.02)
    return game(coalitions)


class Parallel:
    n_players = ANY_GAME.n_players
    calls = 0

    def __call__(self, coalitions):
        print(self.calls, flush=True)
        self.calls += 1
        parts = np.array_split(coalitions, 2)
        return np.concatenate(joblib.Parallel(2)(joblib.delayed(utilities)(ANY_GAME, part) for part in parts))


permutation_shapley(Parallel(), 20_000, rng=0, batch_size=28).save(sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there Ctrl-C cannot be sent to a group of processes alone")
def test_ctrl_c_while_processes_evaluate(tmp_path):
    """A terminal sends the signal to the whole group: to this estimator and to its workers."""
    path = tmp_path / "interrupted.json"
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(PACKAGE).parent,
    ) as process:
        try:
            while process.stdout.readline().strip() != "4":
                assert process.poll() is None, process.stderr.read()
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=300)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, errors
    assert "InterruptedEstimateWarning: permutation_shapley was interrupted" in errors
    valuation = Valuation.load(path)
    draws = valuation.parameters["n_permutations"]
    assert 0 < draws < 20_000
    assert_same_bits(valuation, permutation_shapley(ANY_GAME, draws, rng=0))
