"""Packages whose names are imported at their first use have all that they list, and nothing else."""

import importlib

import pytest


@pytest.mark.parametrize("package", ["tasks", "tasks.learners"])
def test_all_names_are_there_and_no_other(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is module.__getattr__(name)
        assert getattr(getattr(module, name), "__name__", name) == name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
