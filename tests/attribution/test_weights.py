"""Numbers that tell weights from others, whatever they lie on."""

import math

import pytest
import torch
from torch import nn

from inrun_bench import InRunShapley
from inrun_bench.attribution.weights import Traits, _norms_and_largest, _weighted_sums, compared, differ, traits, unlike

CHANGES = {
    "one number": lambda w: w[-1].mul_(1.1),
    "every sign": lambda w: w.neg_(),
    "halves exchanged": lambda w: w.copy_(w.roll(len(w) // 2)),
    "turned around": lambda w: w.copy_(w.flip(0).clone()),
    "all set to zero": lambda w: w.zero_(),
}


def differing(now, noted):
    return differ(compared(now, noted).numpy())


@pytest.mark.parametrize("traits", [_norms_and_largest, _weighted_sums])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2,), (5,), (100,), (4099,), (20000,), (100, 200), (2, 10000), (5000, 2, 2)])
@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_have_other_numbers(change, shape, kind, traits):
    torch.manual_seed(0)
    count = math.prod(shape)
    weights = [torch.randn(3, dtype=kind), torch.linspace(0.1, 1.0, count).exp().to(kind)]
    before = traits(weights)
    assert not differing(traits([w.clone() for w in weights]), before).any()
    CHANGES[change](weights[1].view(-1))
    after = traits(weights)
    assert differing(after, before).sum() == 1
    assert differing(Traits(after.numbers[:0], after.rounding[:0]), before).any()  # fewer parts than were noted


@pytest.mark.parametrize("traits", [_norms_and_largest, _weighted_sums])
@pytest.mark.parametrize("small", [[], [1, 0, 3]])
def test_tensors_of_one_number_or_none_are_told_as_well(small, traits):
    numbers, size = traits([*map(torch.ones, small), torch.ones(20_000), torch.ones(0)])
    assert numbers.shape == size.shape
    assert torch.isfinite(numbers).all()


def test_no_change_of_a_tiny_tensor_is_lost_beside_large_ones():
    """As of a gradient beside its weight, or of what an adapter begins with."""
    tiny = torch.full((3,), 1e-6)
    others = [100 * torch.randn(10_000), torch.randn(20_000)]
    noted = _weighted_sums([tiny, *others])
    tiny[1] *= 1.001
    assert differing(_weighted_sums([tiny, *others]), noted).sum() == 1


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_a_matrix_is_not_its_transpose(kind):
    w = torch.randn(200, 200, dtype=kind)
    noted = _weighted_sums([w])
    assert differing(_weighted_sums([w.t().clone()]), noted).all()


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_hides_no_change_of_others(odd):
    weights = [torch.randn(100), torch.full((3,), odd)]
    noted = _weighted_sums(weights)
    assert not differing(_weighted_sums(weights), noted).any()
    weights[0][7] += 1e-3
    assert differing(_weighted_sums(weights), noted).sum() == 1


@pytest.mark.parametrize("part", [torch.real, torch.imag])
def test_either_part_of_a_complex_number_counts(part):
    w = torch.randn(7, 5, dtype=torch.complex64)
    before = traits([w])
    assert not unlike(traits([w.clone()]), before).any()
    part(w)[3, 2] += 1
    assert unlike(traits([w]), before).all()


def test_weights_beyond_all_numbers_are_what_they_were():
    w = torch.full((40000,), torch.finfo(torch.float32).max)
    assert not unlike(_norms_and_largest([w]), _norms_and_largest([w.clone()])).any()


def watched(model):
    return InRunShapley(model, torch.optim.SGD(model.parameters(), lr=0.1), 4, validation=lambda: None)


@pytest.mark.parametrize("frozen", [None, "first", "second"])
@pytest.mark.parametrize("part", [lambda w: w, lambda w: w[:3], lambda w: w.t()])
def test_two_parameters_in_one_memory_are_refused_and_one_parameter_of_two_modules_is_not(part, frozen):
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
    model["second"].weight = nn.Parameter(part(model["first"].weight.data))
    if frozen:
        model[frozen].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'first.weight' and 'second.weight' of the model lie in the same memory"):
        watched(model)
    model["second"].weight = model["first"].weight
    watched(model)


def test_parameters_that_are_parts_of_one_memory_side_by_side_are_several():
    flat = torch.randn(20)
    model = nn.ParameterList([nn.Parameter(flat[:8].view(2, 4)), nn.Parameter(flat[8:])])
    watched(model)
