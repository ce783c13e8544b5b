"""Imports run one way: between the packages, and between the modules of each; those for the type checker count too."""

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"baselines": {"baselines"}, "tasks": {"baselines", "tasks"}, "inrun_bench/attribution": set()}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules(folder):
    return {name_of(path): path for path in sorted((ROOT / folder).rglob("*.py"))}


def imported(path):
    """Yield the names that a file imports from: of ``from a import b`` both a and a.b, of which one is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_package_knows_those_below_it_alone(folder):
    own = folder.replace("/", ".")
    for name, path in modules(folder).items():
        for target in imported(path):
            if target.partition(".")[0] in ("baselines", "tasks", "inrun_bench", "tests"):
                below = target.partition(".")[0] in ALLOWED[folder] or f"{target}.".startswith(f"{own}.")
                assert below, f"{name} imports {target}"


@pytest.mark.parametrize("folder", ["baselines", "tasks", "inrun_bench/adjoint", "inrun_bench"])
def test_no_modules_import_each_other_in_a_circle(folder):
    """Packages themselves are left out: they only say what is public."""
    own = {name: path for name, path in modules(folder).items() if path.name != "__init__.py"}
    TopologicalSorter({name: own.keys() & set(imported(path)) for name, path in own.items()}).prepare()


HANDED = ("runs", "reference", "report", "methods")  # the experiments, by whoever calls them


@pytest.mark.parametrize("room", HANDED)
def test_what_is_handed_the_experiments_imports_none(room):
    for name, path in modules(f"inrun_bench/{room}").items():
        for target in imported(path):
            assert not f"{target}.".startswith("inrun_bench.experiments."), f"{name} imports {target}"


def test_runs_know_neither_references_nor_reports():
    for name, path in modules("inrun_bench/runs").items():
        for target in imported(path):
            above = f"{target}.".startswith(("inrun_bench.reference.", "inrun_bench.report."))
            assert not above, f"{name} imports {target}"


@pytest.mark.parametrize("package", ["inrun_bench", "inrun_bench/experiments", "inrun_bench/methods"])
def test_a_package_imports_none_of_its_parts(package):
    """What it imports is part of the code behind every row: a change of the engine would make all of them stale."""
    taken = set(imported(ROOT / package / "__init__.py"))
    assert taken & set(modules("inrun_bench")) <= {"inrun_bench.version"}
    offered = importlib.import_module(package.replace("/", "."))
    stubs = ast.parse((ROOT / package / "__init__.pyi").read_text())
    names = [alias.asname for node in stubs.body for alias in node.names]
    assert sorted(names) == sorted(offered.__all__)
    assert all(hasattr(offered, name) for name in names)
