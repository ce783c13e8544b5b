"""A watched run beside one that nobody watches: the same training to the bit, and scores that are those of one backward
pass a sample."""

import copy

import torch
from torch.nn.functional import cross_entropy

from inrun_bench import InRunShapley

RATE = 0.1


def score_error(
    model,
    x,
    y,
    batch,
    *,
    steps=2,
    dim=0,
    loss=cross_entropy,
    call=lambda model, x: model(x),
    last_digits=False,
    **options,
):
    """Return the relative error of first-order scores; x holds samples along `dim`, the last ones for validation.

    Training is stochastic gradient descent in both runs, with the same random numbers at each step; `call` says how the
    model is called. Training must be what it would have been, to the bit unless `last_digits` may be others.
    """
    model = model.double()
    plain, watched = copy.deepcopy(model), copy.deepcopy(model)
    weights, of_watched = (list(one.parameters()) for one in (plain, watched))
    optimizers = [torch.optim.SGD(one.parameters(), lr=RATE) for one in (plain, watched)]
    last = torch.arange(len(y) - batch, len(y))

    def validation(one):
        mode = one.training
        value = loss(call(one.eval(), x.index_select(dim, last)), y[last])
        one.train(mode)
        return value

    engine = InRunShapley(watched, optimizers[1], len(y), "first", validation=lambda: validation(watched), **options)
    expected = torch.zeros(len(y), dtype=torch.float64)
    for step in range(steps):
        index = torch.arange(batch) + batch * step

        def losses(one, index=index):
            return loss(call(one, x.index_select(dim, index)), y[index], reduction="none") / batch

        trained = [w for w in weights if w.requires_grad]
        probe = torch.autograd.grad(validation(plain), trained, allow_unused=True)
        torch.manual_seed(step)
        each = losses(plain)
        for sample, own in zip(index.tolist(), each, strict=True):
            gradient = torch.autograd.grad(own, trained, retain_graph=True, allow_unused=True)
            pairs = zip(gradient, probe, strict=True)
            expected[sample] += RATE * sum((g * v).sum() for g, v in pairs if g is not None and v is not None)
        each.sum().backward()
        torch.manual_seed(step)
        with engine.step(index):
            total = losses(watched).sum()
            total.backward()
            for optimizer in optimizers:
                optimizer.step()
        assert last_digits or total.item() == each.sum().item()
        for one, two in zip(weights, of_watched, strict=True):
            assert torch.equal(one, two) or options.get("rules") == "weight-gradient" or last_digits
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
            assert (one.grad is None) == (two.grad is None)
        for optimizer in optimizers:
            optimizer.zero_grad()
    return float((torch.from_numpy(engine.values()) - expected).norm() / expected.norm())
