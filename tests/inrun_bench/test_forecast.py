"""Forecasts: by the nearest like, side by side where units may be, and nothing made up."""

from types import SimpleNamespace

import pytest

from inrun_bench.experiments import agreement
from inrun_bench.runs.forecast import forecast
from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Unit
from tests.inrun_bench.tiny import PLAN, run

EXPERIMENTS = {"plain": SimpleNamespace(EXCLUSIVE=False), "timed": SimpleNamespace(EXCLUSIVE=True)}


def told(experiment, task, method, seconds, seed=0):
    return Provenance.of(Unit(experiment, task, method, seed), seconds=seconds)


BEFORE = [
    *(told("plain", "iris", "knn", seconds, seed) for seed, seconds in enumerate((1.0, 2.0, 9.0))),
    told("plain", "wine", "knn", 20.0),
    told("plain", "wine", "slow", 100.0),
    told("plain", "iris", "unnoted", None),
    told("timed", "iris", "knn", 7.0),
]


@pytest.mark.parametrize(
    ("unit", "seconds"),
    [
        (Unit("plain", "iris", "knn", 5), 2.0),  # the median of its own kind
        (Unit("plain", "digits", "knn", 0), (2.0 + 9.0) / 2),  # of the method on other tasks
        (Unit("plain", "digits", "new", 0), 9.0),  # of the experiment
        (Unit("plain", "iris", "unnoted", 0), 9.0),  # nobody noted it
        (Unit("timed", "wine", "new", 0), 7.0),
    ],
)
def test_the_nearest_like_is_taken(unit, seconds):
    assert forecast([unit], BEFORE, EXPERIMENTS, 1).of_unit == {unit: seconds}


@pytest.mark.parametrize(("size", "seconds"), [(10, 1.0), (1000, 50.0), (500, (1.0 + 50.0) / 2)])
def test_a_unit_of_the_same_settings_is_the_nearest_like(size, seconds):
    before = [Provenance.of(Unit("plain", "iris", "knn", 0, {"n": n}), seconds=s) for n, s in ((10, 1.0), (1000, 50.0))]
    unit = Unit("plain", "iris", "knn", 1, {"n": size})
    assert forecast([unit], before, EXPERIMENTS, 1).of_unit == {unit: seconds}


def test_what_is_not_known_is_said_and_not_made_up():
    unit = Unit("plain", "iris", "knn", 0)
    found = forecast([unit], [told("plain", "iris", "knn", None)], EXPERIMENTS, 2)
    assert (found.seconds, found.of_unit, found.unknown) == (0.0, {}, (unit,))


@pytest.mark.parametrize("jobs", [1, 2, 100])
def test_units_go_side_by_side_but_for_those_that_measure_time(jobs):
    units = [Unit("plain", "iris", "knn", s) for s in range(10)] + [Unit("timed", "iris", "knn", s) for s in range(3)]
    assert forecast(units, BEFORE, EXPERIMENTS, jobs).seconds == 3 * 7.0 + max(10 * 2.0 / jobs, 2.0)


def test_a_run_notes_how_long_its_units_took(tmp_path):
    store = Store(tmp_path)
    (unit, *_) = agreement.units(PLAN)
    assert run([unit], store).failed == ()
    noted = {each.experiment: each.seconds for each in store.units().values()}
    assert set(noted) == {"values", "agreement"}
    assert all(seconds > 0 for seconds in noted.values())
    store.pack()
    assert {each.experiment: each.seconds for each in store.units().values()} == noted
