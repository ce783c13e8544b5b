"""What the documentation says is supported is what the code supports."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from inrun_bench import InRunShapley
from inrun_bench.attribution import supported_layers
from inrun_bench.attribution.probes import PROBES
from inrun_bench.attribution.updates import is_linear

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
    for page in (ROOT / "docs" / "engine.md", ROOT / "README.md", ROOT / "results" / "README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
