"""What the documentation says is supported is what the code supports."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

import baselines
from inrun_bench import InRunShapley
from inrun_bench.attribution import supported_layers
from inrun_bench.attribution.probes import PROBES
from inrun_bench.attribution.updates import is_linear
from tests.baselines.known_games import Saturating, Table
from tests.baselines.neighbour_games import FAMILY, dataset

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "engine.md").read_text()


def table(name):
    """Rows of the table between the marks of that name: first cell to words of the second."""
    body = PAGE.partition(f"<!-- {name}: begin -->")[2].partition(f"<!-- {name}: end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.strip().splitlines()[2:]]
    return {first: re.findall(r"[A-Z]\w+", re.sub(r"\(.*?\)", "", second)) for first, second in rows}


def test_the_table_of_layers_is_the_registry():
    named = [layer for layers in table("layers").values() for layer in layers]
    assert sorted(named) == supported_layers()


def torch_optimizers():
    found = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    return {name for name in found if issubclass(getattr(torch.optim, name), torch.optim.Optimizer)} - {"Optimizer"}


def test_the_table_of_optimisers_holds_every_one_of_torch():
    assert {name for names in table("optimizers").values() for name in names} == torch_optimizers()


@pytest.mark.parametrize("how", table("optimizers"))
def test_optimisers_are_served_as_the_table_says(how):
    for name in table("optimizers")[how]:
        model = nn.Linear(3, 2, bias=name != "Muon")  # which takes matrices alone
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
        if how.startswith("refused"):
            with pytest.raises(TypeError, match=name):
                InRunShapley(model, optimizer, 4)
            continue
        engine = InRunShapley(model, optimizer, 4, "first", validation=lambda m=model: m(torch.ones(1, 3)).sum())
        with engine.step(range(4)):
            model(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
        assert is_linear(optimizer) == how.startswith("the slope is known")
        assert engine.choices["late"] == (None if is_linear(optimizer) else "keep")


def test_the_table_of_orders_is_that_of_the_probes():
    assert set(re.findall(r'^\| `"(\w+)"` \|', PAGE, re.MULTILINE)) == set(PROBES)


def test_links_of_the_documentation_lead_somewhere():
    for page in (
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "results" / "README.md",
    ):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


PUBLIC = ("baselines", "inrun_bench", "inrun_bench.adjoint", "inrun_bench.attribution", "inrun_bench.methods")
PUBLIC += ("tasks", "tasks.learners")


def referred_to():
    """Yield what the pages of the reference show of a module, or of a name that a package offers."""
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for name, options in re.findall(r"^::: (\S+)\n((?: {4}.*\n)*)", page.read_text(), re.MULTILINE):
            members = re.search(r"members: \[(\w+)\]", options)
            if members or "members: false" not in options:
                yield f"{name}.{members[1]}" if members else name


def test_the_reference_shows_every_public_name_once_and_no_other():
    shown = [resolve_name(name) for name in referred_to()]
    offered = [(name, import_module(package)) for package in PUBLIC for name in import_module(package).__all__]
    public = {name: getattr(package, name) for name, package in offered}
    del public["__version__"]
    assert sorted(map(id, shown)) == sorted({id(thing) for thing in public.values()})


BASELINES = (ROOT / "docs" / "baselines.md").read_text()


def estimators_of_the_page():
    """Rows of the table of estimators, by name: cells under their headings."""
    body = BASELINES.partition("<!-- estimators: begin -->")[2].partition("<!-- estimators: end -->")[0]
    heading, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.strip().splitlines()]
    assert all(len(row) == len(heading) for row in rows)
    return {row[0].strip("`"): dict(zip(heading, row, strict=True)) for row in rows}


ESTIMATORS = estimators_of_the_page()
DRAWS = {  # what the page calls m, where parameters call it otherwise
    "permutation_shapley": "n_permutations",
    "tmc_shapley": "n_permutations",
    "beta_shapley": "n_permutations",
    "owen_shapley": "draws",
    "complementary_shapley": "pairs",
    "kernel_shapley": "pairs",
    "group_testing_shapley": "tests",
    "banzhaf": "coalitions",
}


def run_on_a_game(name, game):
    estimator = getattr(baselines, name)
    if name in DRAWS:
        return estimator(game, budget=150, rng=0, **({"tolerance": 0.0} if name == "tmc_shapley" else {}))
    return estimator(game, baselines.banzhaf_sizes) if name == "exact_semivalue" else estimator(game)


def run_on_neighbours(name):
    """The valuation of a nearest-neighbour estimator, and what its values should add up to."""
    case = next(case for case in FAMILY if case.__name__ == name)
    data = dataset(n=9, t=4, d=2, classes=2)
    return case.estimate(*data, case.arguments(3)), case.game(*data, k=3).grand_less_empty()


def test_the_table_of_estimators_has_every_one_and_no_other():
    functions = {name: getattr(baselines, name) for name in baselines.__all__}
    public = {
        name
        for name, function in functions.items()
        if inspect.isfunction(function) and get_type_hints(function).get("return") is baselines.Valuation
    }
    assert set(ESTIMATORS) == public


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_are_as_the_table_says(name):
    row = ESTIMATORS[name]
    expression, *rest = re.findall(r"`(.*?)`", row["cost"])
    assert not rest
    if "knn" in name:
        valuation, total = run_on_neighbours(name)
        letters = {}
    else:
        game = Table(np.random.default_rng(0).normal(size=2**6))
        valuation, total = run_on_a_game(name, game), game.utilities[-1] - game.utilities[0]
        letters = {"n": 6, "L": valuation.parameters.get("levels"), "m": valuation.parameters.get(DRAWS.get(name))}
    assert valuation.evaluations == eval(expression, letters)  # noqa: S307
    assert (valuation.stderr is not None) is {"yes": True, "no": False}[row["standard errors"]]
    adds_up = abs(valuation.values.sum() - total) < 1e-10
    assert adds_up == {"yes": True, "within τ": True, "no": False}[row["efficient"]]


def test_at_most_is_said_of_truncation_alone():
    assert [name for name, row in ESTIMATORS.items() if row["cost"].endswith("at most")] == ["tmc_shapley"]
    valuation = baselines.tmc_shapley(Saturating(np.ones(6)), 20, tolerance=0.1, rng=0)
    assert valuation.evaluations < 2 + 20 * 5


def test_each_arxiv_number_leads_to_itself():
    links = re.findall(r"\[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/([\d.]+)\)", BASELINES)
    assert len(links) > 10
    assert all(number == target for number, target in links)


PARTS = ("train", "validation", "test")


@pytest.mark.parametrize(("page", "least"), [("baselines", 6), ("adjoint", 3), ("tasks", 3)])
def test_the_snippets_of_the_page_run(page, least, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of them make a folder
    x = {part: torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) for part in PARTS}
    namespace = {f"x_{part}": samples for part, samples in x.items()}
    namespace |= {f"y_{part}": samples[:, :3].argmax(1) for part, samples in x.items()}
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    assert len(snippets) >= least
    for snippet in snippets:
        exec(snippet, namespace)  # noqa: S102
