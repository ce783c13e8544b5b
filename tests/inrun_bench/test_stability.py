"""Stability: what two runs of the same data say of the same samples."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

import tasks
from inrun_bench.experiments import EXPERIMENTS, stability
from inrun_bench.methods import valued
from inrun_bench.metrics import agreement
from inrun_bench.report.figures import SETTINGS, mpl
from inrun_bench.runs.unit import Unit
from tests.inrun_bench.tiny import PLAN, TASK


def measured(method, runs=2, **settings):
    unit = Unit("stability", TASK, method, 0, {"runs": runs, **settings})
    how = stability.measure_reference if method == "reference" else stability.measure
    return pd.DataFrame(how(unit, {})).set_index("of")["value"]


def test_a_method_without_random_numbers_agrees_with_itself_within_a_run_alone():
    found = measured("inrun-first", runs=3)
    assert found["within a run"] == pytest.approx(1)
    task = tasks.load(TASK, 0)
    values = [valued("inrun-first", task.rerun(seed), np.random.SeedSequence(0)).values for seed in task.run_seeds(3)]
    pairs = [agreement(values[i], values[j])["spearman"] for i in range(3) for j in range(i)]
    assert found["between runs"] == pytest.approx(np.mean(pairs))
    assert found["between runs"] < 0.99


def test_what_looks_at_no_run_agrees_between_runs_as_within_one():
    assert measured("knn").to_dict() == pytest.approx({"between runs": 1, "within a run": 1})


def test_chance_agrees_with_itself_nowhere():
    assert (measured("random", runs=4).abs() < 0.25).all()


def test_retraining_is_noisier_between_runs_than_within_one():
    found = measured("reference", permutations=20)
    assert 0.3 < found["between runs"] < found["within a run"] < 1


def test_there_is_a_unit_for_each_method_but_those_that_are_means_over_runs():
    methods = ("knn", "few-run-4-seeds-20")
    found = stability.units(
        dataclasses.replace(PLAN, profile="quick", methods=methods, tasks=(TASK, "stdlib-gpt"), seeds=(0,))
    )
    assert [(unit.task, unit.method) for unit in found] == [(TASK, "reference"), (TASK, "knn")]


def test_figure_and_table_show_both_agreements():
    rows = pd.DataFrame(
        {"task": TASK, "method": method, "seed": seed, "metric": "spearman", "of": of, "value": value + 0.01 * seed}
        for seed in (0, 1)
        for method, values in {"reference": (0.6, 0.97), "inrun-first": (0.5, 0.98)}.items()
        for of, value in zip((stability.BETWEEN, stability.WITHIN), values, strict=True)
    )
    text = EXPERIMENTS["stability"].table(rows)
    assert re.findall(r"(0\.\d{3}) \[", text) == ["0.605", "0.975", "0.505", "0.986"]
    with mpl.rc_context(SETTINGS):
        (ax,) = EXPERIMENTS["stability"].draw(rows).axes
    drawn = {round(float(line.get_xdata()[0]), 2) for line in ax.lines if line.get_marker() not in ("None", "")}
    assert len(drawn) == 4
    assert min(drawn) in (0.5, 0.51)
    assert not EXPERIMENTS["stability"].draw(rows.iloc[:0]).axes
