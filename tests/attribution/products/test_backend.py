import logging

import numpy as np
import pytest
import torch

from inrun_bench.attribution.products import backend
from inrun_bench.attribution.products.backend import choose

X = torch.zeros(2)


def test_on_the_cpu_the_twin_runs_unless_the_interpreter_is_asked_for(monkeypatch):
    assert choose("wgrad_dot", "auto", X) == "torch"
    assert choose("wgrad_dot", "torch", X) == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "_installed", lambda: True)
    assert choose("wgrad_dot", "triton", X) == "triton"
    assert choose("wgrad_dot", "auto", X) == "torch"


def test_what_cannot_run_is_refused_with_the_way_to_get_it(monkeypatch):
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'triton', 'torch', got 'cuda'"):
        choose("wgrad_dot", "cuda", X)
    monkeypatch.setattr(backend, "_installed", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"wgrad_dot: .* cpu, and Triton needs a GPU; .*TRITON_INTERPRET=1"):
        choose("wgrad_dot", "triton", X)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match=r"dtype torch.float64 is not one of torch.float32"):
        choose("wgrad_dot", "triton", X, X.double())
    with pytest.raises(ValueError, match="tensors lie on several devices: cpu, meta"):
        choose("wgrad_dot", "triton", X, X.to("meta"))
    monkeypatch.setattr(backend, "_installed", lambda: False)
    with pytest.raises(ValueError, match=r"Triton is not installed \(pip install triton\)"):
        choose("wgrad_dot", "triton", X)


def test_an_interpreter_that_cannot_run_here_is_refused(monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    monkeypatch.setattr(backend, "interpreter_obstacle", backend.interpreter_obstacle.__wrapped__)
    monkeypatch.setattr(np, "__version__", "2.4.0")
    with pytest.raises(ValueError, match=r"interpreter of Triton 3.6.0 does not work with NumPy 2.4.0; .*numpy<2.4"):
        choose("wgrad_dot", "triton", X)
    monkeypatch.setattr(np, "__version__", "2.3.5")
    assert choose("wgrad_dot", "triton", X) == "triton"
    monkeypatch.setattr(np, "__version__", "2.5.0")
    monkeypatch.setattr(triton, "__version__", "3.10.0")
    assert choose("wgrad_dot", "triton", X) == "triton"


def test_a_reason_is_told_once(caplog):
    caplog.set_level(logging.DEBUG)
    backend._say_once("wgrad_dot", "of a reason")
    backend._say_once("wgrad_dot", "of a reason")
    assert [record.getMessage() for record in caplog.records] == ["wgrad_dot: the torch twin runs, since of a reason"]
