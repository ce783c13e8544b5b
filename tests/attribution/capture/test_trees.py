"""Leaves of arguments are torch's, in its order, and trees that differ are told apart."""

import collections

import pytest
import torch
from torch.utils._pytree import tree_flatten

from inrun_bench.attribution.capture.trees import flattened, leaves_of, modules_of, parameters_of, tensors_of

X, Y = torch.zeros(2), torch.ones(2)
Pair = collections.namedtuple("Pair", "one other")
ARGUMENTS = {
    "tensors": ((X, Y), {}),
    "one": ((X,), {}),
    "by name": ((X,), {"z": Y, "a": None, "m": True}),
    "by other names": ((X,), {"z": Y, "a": None, "n": True}),
    "in another order": ((X,), {"a": None, "z": Y, "m": True}),
    "a list": (([X, Y],), {}),
    "a tuple": (((X, Y),), {}),
    "a named tuple": ((Pair(X, Y),), {}),
    "a dict": (({"z": X, "a": Y},), {"mask": 1}),
    "a subclass": ((torch.nn.Buffer(X),), {}),
    "an object": ((object(),), {"x": X}),
    "nothing": ((), {}),
}


@pytest.mark.parametrize("args", ARGUMENTS)
def test_leaves_are_those_of_torch(args):
    args, kwargs = ARGUMENTS[args]
    expected = tree_flatten((args, kwargs))[0]
    for found in (flattened(args, kwargs)[0], leaves_of(args, kwargs)):
        assert len(found) == len(expected)
        assert all(x is y for x, y in zip(found, expected, strict=True))
    assert len(tensors_of(args, kwargs)) == sum(isinstance(each, torch.Tensor) for each in expected)


class Hiding(torch.nn.Sequential):
    def named_modules(self, memo=None, prefix="", remove_duplicate=True):
        return iter([(prefix, self), (f"{prefix}.0".lstrip("."), self[0])])


def test_a_model_that_names_its_own_modules_is_believed():
    model = Hiding(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert modules_of(model) == list(model.modules()) == [model, model[0]]
    assert parameters_of(model) == set(model.parameters()) == set(model[0].parameters())


def test_a_module_below_that_names_its_own_modules_is_believed_too():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), Hiding(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))
    assert modules_of(model) == list(model.modules())
    assert parameters_of(model) == set(model.parameters())


def test_trees_that_differ_are_told_apart():
    trees = [flattened(*given)[1] for name, given in ARGUMENTS.items() if name != "a subclass"]
    assert len(set(trees)) == len(trees)
    assert flattened((X,), {})[1] == flattened((Y,), {})[1]
    assert hash(flattened(([X],), {})[1]) == hash(flattened(([Y],), {})[1])
