"""Rows whose code has changed are noted anew only where those that are drawn are what they were."""

import json
import shutil

import numpy as np
import pytest

from inrun_bench.cli import main
from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.runs import fingerprint, runner
from inrun_bench.runs.fingerprint import outdated
from inrun_bench.runs.renew import renew
from inrun_bench.runs.store import Store
from tests.inrun_bench.tiny import run, units_of

PARTS = fingerprint.code_parts


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    made = Store(tmp_path_factory.mktemp("measured") / "rows")
    run(units_of("values"), made)
    made.pack()
    return made


@pytest.fixture
def store(tmp_path, measured):
    """Rows of code that is another now, as far as fingerprints tell."""
    shutil.copytree(measured.root, tmp_path / "rows")
    return Store(tmp_path / "rows")


@pytest.fixture
def other_code(monkeypatch, store):
    for module in (fingerprint, runner):
        monkeypatch.setattr(module, "code_parts", lambda *of: {**PARTS(*of), "experiment": "another"})


def rows(store):
    return store.read_all("values")


def test_what_is_equal_is_noted_and_keeps_its_rows_and_times(store, other_code):
    before, told = rows(store), {unit: noted.seconds for unit, noted in store.units().items()}
    assert outdated(store.units(), EXPERIMENTS)[0] == len(told)
    renewal = renew(store, EXPERIMENTS, draw=3, seed=0)
    assert len(renewal.changed) == len(told)
    assert {unit.method for unit in renewal.drawn} == {unit.method for unit in told}
    assert renewal.differing == ()
    assert outdated(store.units(), EXPERIMENTS)[0] == 0
    assert {unit: noted.seconds for unit, noted in store.units().items()} == told
    assert rows(store).equals(before)
    assert json.loads((store.root / "manifest.json").read_text())[-1]["measured_again"] == len(renewal.drawn)
    assert renew(store, EXPERIMENTS, draw=3, seed=0).changed == ()


def test_nothing_is_noted_where_one_number_is_another(store, other_code):
    unit = units_of("values")[0]
    table = store.read(unit)
    noted = store.units()[unit]
    metrics = table[["metric", "stderr"]].assign(value=np.nextafter(table["value"], np.inf))
    store.write(unit, metrics.to_dict("records"), noted)
    renewal = renew(store, EXPERIMENTS, draw=len(store.units()), seed=0)
    assert renewal.differing == ((unit, "value"),)
    assert outdated(store.units(), EXPERIMENTS)[0] == len(store.units())


def test_what_changed_by_more_than_code_is_left(store, other_code, monkeypatch):
    monkeypatch.setattr(fingerprint, "content_identity", lambda *_of: "another task")
    renewal = renew(store, EXPERIMENTS, draw=3, seed=0)
    assert renewal.changed == ()
    assert renewal.left == len(store.units())


def test_the_command_says_what_it_did(store, other_code, capsys):
    assert main(["renew", "--out", str(store.root), "--draw", "2", "--jobs", "1", "--quiet"]) == 0
    assert "equal to the last bit; all of them were noted anew, 0 others left" in capsys.readouterr().out
    assert main(["renew", "--out", str(store.root), "--draw", "0"]) == 2
