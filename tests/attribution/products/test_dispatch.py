"""The engine with kernels: forced under the interpreter, refused without, and never on the CPU by itself."""

import pytest
import torch
from torch import nn

from inrun_bench.attribution.products import backend
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N, problem, tokens

pytest.importorskip("triton")


class Model(nn.Module):
    """A layer of each kind that has a kernel."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(11, 8, padding_idx=0), nn.Embedding(6, 8)
        self.norm, self.root = nn.LayerNorm(8), nn.RMSNorm(8)
        self.inner, self.head = nn.Linear(8, 12), nn.Linear(12, 11, bias=False)

    def forward(self, x):
        h = self.token(x) + self.position(torch.arange(x.shape[1]))
        return self.head(torch.tanh(self.inner(self.root(self.norm(h)))))


def single(**options):
    p = problem(Model, shape=(6,), ids=11, loss=tokens, options=options)
    p.model.float()
    p.optimizer = p.build_optimizer(p.model)
    return p


@pytest.mark.parametrize("order", ["first", "midpoint"])
@pytest.mark.parametrize("rules", ["project", "weight-gradient", "gram"])
def test_scores_and_weights_are_those_of_plain_torch(rules, order):
    kernels, plain = single(rules=rules, kernels="triton"), single(rules="project")
    values, expected = kernels.train(kernels.engine(order)), plain.train(plain.engine(order))
    assert relative_error(values, expected) < 1e-5
    for w, u in zip(kernels.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(w, u, rtol=1e-5, atol=1e-7)


def test_forcing_kernels_where_they_cannot_run_is_an_error_that_says_how(monkeypatch):
    p = single(kernels="triton", rules="project")
    engine = p.engine("first")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"project_dot: .*TRITON_INTERPRET=1"), engine.step(range(N)):
        p.take_step()
    with pytest.raises(ValueError, match="kernels must be one of 'auto', 'triton', 'torch', got 'cuda'"):
        p.engine("first", kernels="cuda")


def test_on_the_cpu_nothing_is_run_by_itself(monkeypatch):
    def fail(*_):
        raise AssertionError("asked whether Triton can run")

    monkeypatch.setattr(backend, "_obstacle", fail)
    p = single()
    engine = p.engine("first")
    with engine.step(range(N)):
        p.take_step()
