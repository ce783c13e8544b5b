"""What the public functions have in common."""

import inspect
import re
from typing import get_type_hints

import pytest

import baselines
from baselines import Valuation

PUBLIC = {name: getattr(baselines, name) for name in baselines.__all__}
FUNCTIONS = {name: one for name, one in PUBLIC.items() if inspect.isfunction(one)}
ESTIMATORS = [name for name, function in FUNCTIONS.items() if get_type_hints(function).get("return") is Valuation]


def functions_and_methods():
    yield from FUNCTIONS.values()
    for kind in filter(inspect.isclass, PUBLIC.values()):
        yield from (method for _, method in inspect.getmembers(kind, inspect.isfunction))


def parameters(name):
    return inspect.signature(FUNCTIONS[name]).parameters


def documented(name):
    """Names of the parameters in the docstring, each with its description."""
    section = re.search(r"Parameters\n-+\n(.*?)(?=\n\n\w|\Z)", inspect.getdoc(FUNCTIONS[name]), re.DOTALL)
    entries = re.findall(r"^([\w, ]+) : .*\n((?:    .*\n?)+)", section[1], re.MULTILINE)
    return {one: text for names, text in entries for one in names.split(", ")}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_has_a_progress_bar_by_keyword(name):
    progress = parameters(name)["progress"]
    assert progress.kind is inspect.Parameter.KEYWORD_ONLY
    assert progress.default is False
    assert re.match(r"\s+Whether to show a progress bar, in [\w ]+, on stderr\.", documented(name)["progress"])


@pytest.mark.parametrize("argument", ["progress", "budget", "stop", "rng", "batch_size", "n_jobs"])
def test_what_is_not_the_game_goes_by_keyword_everywhere(argument):
    kinds = {
        inspect.signature(function).parameters[argument].kind
        for function in functions_and_methods()
        if argument in inspect.signature(function).parameters
    }
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if "budget" in parameters(name)])
def test_a_budget_is_in_evaluated_coalitions_everywhere(name):
    budget = parameters(name)["budget"]
    assert budget.kind is inspect.Parameter.KEYWORD_ONLY
    assert budget.default is None
    assert documented(name)["budget"].lstrip().startswith("Most coalitions to evaluate")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_argument_is_documented(name):
    assert set(documented(name)) == set(parameters(name))
