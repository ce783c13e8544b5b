"""Axioms: the game has what is claimed of it, exact values break nothing, and each fault shows in its own axiom."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from baselines import exact_shapley
from inrun_bench.experiments import axioms, units_of
from inrun_bench.experiments.axioms import ROUNDING, broken, task_with_symmetries
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.store import Store
from tests.inrun_bench.tiny import run

METHODS = ("inrun-first", "inrun-integrated", "knn", "mc-2", "random")
PLAN = Plan("quick", tasks=("iris-logreg",), methods=METHODS, seeds=(0,))


@pytest.fixture(scope="module")
def made():
    return task_with_symmetries(axioms.units(PLAN)[0])


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("axioms"))
    assert run(axioms.units(PLAN), store, jobs=1).failed == ()
    return store.read_all("axioms")


def test_copies_are_symmetric_and_the_null_player_does_nothing_in_the_game(made):
    rng = np.random.default_rng(0)
    game = made.task.trajectory_game()
    coalitions = rng.random((50, game.n_players)) < 0.5
    for sample in (*made.copies, *made.originals, made.null):
        coalitions[:, sample] = False
    for copy, original in zip(made.copies, made.originals, strict=True):
        one, other = coalitions.copy(), coalitions.copy()
        one[:, copy] = other[:, original] = True
        np.testing.assert_allclose(game(one), game(other), rtol=0, atol=1e-12)
    with_null = coalitions.copy()
    with_null[:, made.null] = True
    np.testing.assert_allclose(game(with_null), game(coalitions), rtol=0, atol=1e-12)


def test_exact_values_break_nothing(rows):
    errors = rows.query("method == 'reference'")["value"]
    assert len(errors) == len(axioms.AXIOMS)
    assert (errors < ROUNDING).all()


def test_what_is_known_of_methods(rows):
    worst = rows.groupby(["method", "metric"])["value"].max()
    for method in ("inrun-first", "inrun-integrated"):  # what follows one run is additive in its gradients
        assert (worst[method][["symmetry", "null_player", "linearity"]] < ROUNDING).all()
    assert worst["inrun-integrated", "efficiency"] < 0.01 < worst["inrun-first", "efficiency"]
    assert worst["mc-2", "efficiency"] < ROUNDING < worst["mc-2", "symmetry"]  # permutations telescope
    assert worst["knn", "null_player"] > 0.1  # another game
    assert worst["random"][["efficiency", "symmetry", "null_player"]].min() > 0.01


@pytest.mark.parametrize("axiom", axioms.AXIOMS)
def test_each_fault_shows_in_its_own_axiom_and_by_its_size(made, axiom):
    values = exact_shapley(made.task.trajectory_game()).values
    gain, of_halves, spread = values.sum(), values.copy(), values.std()
    assert max(broken(values, of_halves, made, gain).values()) < ROUNDING
    fault = 0.1 * spread
    if axiom == "efficiency":
        gain -= fault
    elif axiom == "linearity":
        of_halves = of_halves + fault
    else:
        changed = made.null if axiom == "null_player" else made.copies[0]
        balance = next(i for i in range(len(values)) if i not in (*made.copies, *made.originals, made.null))
        values = values.copy()
        values[changed] += fault
        values[balance] -= fault
        of_halves = values
    errors = broken(values, of_halves, made, gain)
    size = fault / abs(gain) if axiom == "efficiency" else fault / values.std()
    assert errors.pop(axiom) == pytest.approx(size, rel=1e-6)
    assert max(errors.values()) < ROUNDING


def test_values_that_are_all_the_same_have_no_spread_to_be_measured_by(made):
    errors = broken(np.ones(made.task.n_train), np.ones(made.task.n_train), made, 1.0)
    assert np.isnan([errors[axiom] for axiom in ("symmetry", "null_player", "linearity")]).all()
    assert errors["efficiency"] == made.task.n_train - 1


def test_all_is_told_and_drawn(rows):
    table = axioms.table(rows)
    assert "| retraining reference | holds" in " ".join(table.split())
    assert "1 task of logistic regression, 1 seed" in table
    assert [ax.get_title() for ax in axioms.draw(rows).axes] == list(axioms.AXIOMS.values())
    nothing = pd.DataFrame(columns=rows.columns)
    assert axioms.table(nothing) == ""
    assert axioms.draw(nothing).axes == []


def test_other_tasks_are_refused():
    with pytest.raises(ValueError, match="nothing to do on digits-mlp; it needs tasks of logistic regression"):
        units_of("axioms", axioms, dataclasses.replace(PLAN, tasks=("digits-mlp",)))
