"""Fingerprints follow a change of whatever rows follow from, and of nothing else."""

import dataclasses
import functools
import importlib
import sys

import numpy as np
import pytest
import torch
from torch import nn

import tasks
import tasks.code_identity as code_identity_module
from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.methods import METHODS
from inrun_bench.runs import fingerprint
from inrun_bench.runs.fingerprint import Fingerprints, changes, code_of, code_parts, outdated
from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.unit import REFERENCE, Unit, measure_of
from tests.inrun_bench.tiny import TASK

SPEC = tasks.CATALOG[TASK]
UNIT = Unit("values", TASK, "random", 0)


def now(unit=UNIT):
    return dict(Fingerprints(EXPERIMENTS).of(unit))


@pytest.fixture
def before():
    return now()


def parts_that_changed(before, unit=UNIT):
    after = now(unit)
    return {part for part in {*before, *after} if before.get(part) != after.get(part)}


def test_nothing_changes_by_itself(before):
    assert set(before) == {"task", "method", "experiment", "libraries"}
    assert parts_that_changed(before) == set()
    assert changes(UNIT, before, now()) == []


def test_what_units_share_is_of_their_experiment_and_method_alone():
    units = [
        Unit(experiment, TASK, method, 0)
        for experiment in ("values", "detection", "fidelity", "retraining")
        for method in ("random", "knn", REFERENCE)
    ]
    together = Fingerprints(EXPERIMENTS)
    assert [together.of(unit) for unit in units] == [now(unit) for unit in units]
    assert len({together.of(unit)["experiment"] for unit in units if unit.method == "knn"}) == 4


# --- tasks ---


def test_a_task_that_is_not_known_here_is_said_to_be_so_and_not_to_have_changed(before, monkeypatch):
    monkeypatch.setattr(fingerprint, "CATALOG", {})
    assert changes(UNIT, before, now()) == [f"task {TASK!r}, which is not known here"]


def changed_csv():
    x, y = SPEC.dataset()
    x = x.copy()
    x[3, 1] = np.nextafter(x[3, 1], 1e9)
    return x, y


class Wider(nn.Linear):
    """The same weights, but another function."""

    def forward(self, x):
        return 2 * super().forward(x)


def bias_filled():
    model = SPEC.architecture()
    with torch.no_grad():
        next(iter(model.parameters())).mul_(1.01)
    return model


SGD = SPEC.recipes["sgd"]
CHANGES = {
    "a number of the data": {"dataset": changed_csv},
    "a recipe": {"recipes": {**SPEC.recipes, "sgd": dataclasses.replace(SGD, learning_rate=SGD.learning_rate * 2)}},
    "the sizes": {"n_validation": SPEC.n_validation - 1},
    "the scaling": {"scaling": None},
    "the architecture": {"architecture": lambda: nn.Sequential(SPEC.architecture(), nn.Identity())},
    "the initial weights": {"architecture": bias_filled},
    "the class of a layer": {"architecture": lambda: Wider(30, 2)},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_task_is_noticed(before, monkeypatch, what):
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, dataclasses.replace(SPEC, **CHANGES[what]))
    assert parts_that_changed(before) == {"task"}
    assert changes(UNIT, before, now()) == [f"the content of task {TASK!r}"]


def test_of_recipes_the_units_own_counts_and_the_summary_does_not(before, monkeypatch):
    recipes = {**SPEC.recipes, "adamw": dataclasses.replace(SPEC.recipes["adamw"], learning_rate=1.0)}
    other = dataclasses.replace(UNIT, settings={"recipe": "adamw"})
    before_other = now(other)
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, dataclasses.replace(SPEC, recipes=recipes, summary="another"))
    assert parts_that_changed(before) == set()
    assert parts_that_changed(before_other, other) == {"task"}


def test_the_code_of_a_layer_counts(before, monkeypatch, tmp_path):
    source = "from torch import nn\nclass Layer(nn.Linear):\n    def forward(self, x):\n        return {} * x\n"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    for constant in (1, 2, 1):
        (tmp_path / "acme_layers.py").write_text(source.format(constant))
        importlib.invalidate_caches()
        sys.modules.pop("acme_layers", None)
        layers = importlib.import_module("acme_layers")
        spec = dataclasses.replace(SPEC, architecture=lambda layers=layers: layers.Layer(30, 2))
        monkeypatch.setitem(tasks.CATALOG._all(), TASK, spec)
        found.append(now()["task"])
    sys.modules.pop("acme_layers")
    assert found[0] == found[2] != found[1]


def test_a_dataset_that_cannot_be_read_leaves_its_units_never_up_to_date(monkeypatch):
    def fails():
        raise OSError("no such file")

    monkeypatch.setitem(tasks.CATALOG._all(), TASK, dataclasses.replace(SPEC, dataset=fails))
    assert "no such file" in now()["task"]
    assert changes(UNIT, now(), now()) == [f"the content of task {TASK!r}"]


# --- code and libraries ---


@pytest.fixture
def plug_in(monkeypatch, tmp_path):
    """A method in a file of its own, which a test may write anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(helper):
        (tmp_path / "acme_helper.py").write_text(f"FACTOR = {helper}\n")
        (tmp_path / "acme_method.py").write_text(
            "import acme_helper\ndef method(task, seed):\n    return acme_helper\n"
        )
        for name in ("acme_helper", "acme_method"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        monkeypatch.setitem(METHODS._all(), "acme", importlib.import_module("acme_method").method)

    yield write
    for name in ("acme_helper", "acme_method"):
        sys.modules.pop(name, None)


def test_the_code_of_a_method_and_what_it_imports_count_for_its_units_alone(before, plug_in):
    unit = dataclasses.replace(UNIT, method="acme")
    plug_in(1)
    first = now(unit)
    plug_in(2)
    assert parts_that_changed(first, unit) == {"method"}
    assert changes(unit, first, now(unit)) == ["the code of method 'acme'"]
    plug_in(1)
    assert now(unit) == first
    assert parts_that_changed(before) == set()


def test_what_a_unit_is_computed_from_counts(plug_in):
    need = dataclasses.replace(UNIT, method="acme")
    unit = Unit("agreement", TASK, "random", 0, needs=(need,))
    plug_in(1)
    first = now(unit)
    plug_in(2)
    assert parts_that_changed(first, unit) == {"needs"}


def test_a_method_whose_code_cannot_be_seen_is_never_up_to_date(monkeypatch):
    namespace = {"__name__": "nowhere"}
    exec("def method(task, seed):\n    return None", namespace)  # noqa: S102 - as a notebook does
    monkeypatch.setitem(METHODS._all(), "acme", namespace["method"])
    unit = dataclasses.replace(UNIT, method="acme")
    assert changes(unit, now(unit), now(unit)) == ["the code of method 'acme'"]


def test_versions_of_libraries_count_but_not_how_they_were_built(before, monkeypatch):
    real = fingerprint.versions

    def versions(version):
        return lambda names: {**real(names), "torch": version}

    plain = torch.__version__.partition("+")[0]
    for build in ("", "+cpu", "+cu130"):
        monkeypatch.setattr(fingerprint, "versions", versions(plain + build))
        assert parts_that_changed(before) == set()
    monkeypatch.setattr(fingerprint, "versions", versions("99.1"))
    assert parts_that_changed(before) == {"libraries"}
    assert "torch 99.1" in changes(UNIT, before, now())[0]


def test_every_experiment_and_every_method_has_code_that_can_be_seen():
    for name, experiment in EXPERIMENTS.items():
        assert not code_parts(Unit(name, TASK, "", 0), experiment.measure)["experiment"].startswith(fingerprint.UNKNOWN)
    for name in METHODS:
        parts = code_parts(Unit("values", TASK, name, 0), EXPERIMENTS["values"].measure)
        assert not parts["method"].startswith(fingerprint.UNKNOWN)


@dataclasses.dataclass
class Scaled:
    """A method with a state, of which no dataclass knows a hash."""

    factor: float

    def __call__(self, task, seed):
        raise NotImplementedError

    def value(self, task, seed):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Frozen:
    """One that is equal to others that are not the same."""

    factor: float = dataclasses.field(compare=False)

    def __call__(self, task, seed):
        raise NotImplementedError


@pytest.mark.parametrize(
    "method",
    [Scaled, Frozen, lambda factor: Scaled(factor).value, lambda factor: functools.partial(Scaled(1), factor)],
    ids=["an object", "one that is equal", "a bound method", "a partial"],
)
def test_the_state_of_what_is_called_counts(method):
    one, other = (code_of(method(factor)) for factor in (1.0, -2.0))
    assert one == code_of(method(1.0)) != other
    assert code_of(method(1)) != one
    assert not one.startswith(fingerprint.UNKNOWN)


def test_a_state_that_has_changed_since_is_seen():
    method = Scaled(1.0)
    before = code_of(method), code_of(method.value)
    method.factor = 2.0
    assert code_of(method) != before[0]
    assert code_of(method.value) != before[1]


@pytest.mark.parametrize("engine", ["inrun_bench.attribution", "inrun_bench.adjoint"])
def test_what_has_nothing_to_do_with_the_engine_does_not_follow_from_its_code(monkeypatch, engine):
    judged = [METHODS[name].run for name in ("knn", "mc-10", "random")]
    judges = [EXPERIMENTS[name].measure for name in ("retraining", "agreement", "removal", "scale", "reference")]
    assert [thing for thing in judged + judges if engine in code_behind(thing)] == []
    assert engine in code_behind(METHODS["few-run-4" if engine.endswith("adjoint") else "inrun-first"].run)


@pytest.mark.parametrize("experiment", ["values", "scale", "retraining"])
def test_a_reference_follows_from_no_method_and_from_no_list_of_experiments(experiment):
    measure = measure_of(EXPERIMENTS[experiment], Unit(experiment, TASK, REFERENCE, 0))
    ours = {
        name for name in code_behind(measure) if name.startswith(("inrun_bench.methods", "inrun_bench.experiments"))
    }
    assert ours == {"inrun_bench.experiments", f"inrun_bench.experiments.{experiment}"}
    judged = measure_of(EXPERIMENTS[experiment], Unit(experiment, TASK, "knn", 0))
    assert ("inrun_bench.methods.registry" in code_behind(judged)) is (experiment != "retraining")


def code_behind(thing):
    """Return the packages of this project that a function's code identity covers."""
    hasher = code_identity_module._StateHasher()
    hasher.hash(thing)
    found = code_identity_module._code_of(hasher.modules, (thing.__module__, getattr(thing, "__name__", "")))[0]
    return set(found)


# --- folders ---


def test_a_note_counts_what_is_out_of_date_and_why(before):
    other, old = dataclasses.replace(UNIT, method="knn"), dataclasses.replace(UNIT, seed=1)
    stored = {
        UNIT: Provenance.of(UNIT, before),
        other: Provenance.of(other, {**now(other), "libraries": "torch 1.0", "method": "0"}),
        old: Provenance.of(old),
    }
    count, reasons = outdated(stored, EXPERIMENTS)
    assert count == 2
    assert sorted(reasons.values()) == [1, 1, 1]
    assert "nobody noted what they follow from" in reasons
    assert "the code of method 'knn'" in reasons


def test_what_a_folder_lacks_of_what_rows_were_computed_from_does_not_make_them_out_of_date():
    need = dataclasses.replace(UNIT, method="knn")
    unit = dataclasses.replace(UNIT, needs=(need,))
    noted = Provenance.of(unit, now(unit))
    alone = dataclasses.replace(unit, needs=())  # as the unit is read from a folder without rows of its need
    assert outdated({alone: noted}, EXPERIMENTS)[0] == 0
    assert outdated({unit: noted}, EXPERIMENTS)[0] == 0
    other = Provenance.of(unit, {**now(unit), "needs": "0"})
    assert outdated({unit: other}, EXPERIMENTS) == (1, {"what they were computed from": 1})
    changed = Provenance.of(unit, {**now(unit), "method": "0"})
    assert outdated({alone: changed}, EXPERIMENTS)[1] == {f"the code of method {unit.method!r}": 1}
