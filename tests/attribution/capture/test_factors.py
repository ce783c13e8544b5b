"""Which validation gradients are worth leaving in factors."""

import torch
from torch import nn

from inrun_bench.attribution.capture.factors import ValidationFactors
from inrun_bench.attribution.capture.layers import find_sites
from inrun_bench.attribution.families.costs import LINEAR_PRICE, CallSizes

WIDTH = 1024


def test_what_counts_is_positions_of_validation_samples_and_not_samples():
    """Few rows are cheaper in factors; the same samples with many positions each are not."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    sites = find_sites(model, {p: name for name, p in model.named_parameters()}, "auto")
    factors = ValidationFactors(sites, "auto")
    factors.calls["0"] = CallSizes(64, 16, WIDTH, WIDTH, LINEAR_PRICE)
    samples = torch.empty(300, WIDTH)
    factors.note(sites[0], samples, samples)
    assert factors.worth_collecting(()) == {"0.weight"}
    positions = samples[:, None].expand(300, 64, WIDTH)
    factors.note(sites[0], positions, positions)
    assert factors.worth_collecting(()) == set()
