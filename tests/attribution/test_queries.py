"""Values of many queries: from one pass, and those of as many engines of one query each."""

import numpy as np
import pytest
import torch
from torch import nn

from inrun_bench import InRunShapley
from inrun_bench.attribution import ParquetPages
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N_VAL, N, perceptron, problem, tokens
from tests.attribution.scoring.test_joint import OPTIMIZERS, TRANSFORMERS
from tests.attribution.test_models import CASES, VOCABULARY, gpt2

MODELS = {**CASES, "perceptron": {}}


def queries(p, rows=range(N_VAL)):
    """Return the losses of queries, one a validation row."""
    own = [N + row for row in rows]
    return lambda: p.loss(p.model, p.x[own], p.y[own], "none")


def of_queries(p, **options):
    return InRunShapley(p.model, p.optimizer, N, "first", validation=queries(p), per_query=True, **options)


def check(make, *, steps=3, error=1e-9, **options):
    """Hold values against those of one engine a query, and books against theirs to first order in u(0)."""
    p = make()
    engine = of_queries(p, **options)
    p.train(engine, steps)
    assert engine.values().shape == (N, N_VAL)
    for query in range(N_VAL):
        twin = make()
        alone = InRunShapley(
            twin.model, twin.optimizer, N, "first", validation=lambda t=twin, q=query: queries(t, [q])()[0], **options
        )
        twin.train(alone, steps)
        assert relative_error(engine.values()[:, query], alone.values()) < error
        for name in ("samples", "drop", "unscored"):
            ours = engine.ledger.by_step[name][:, query]
            np.testing.assert_allclose(ours, alone.ledger.by_step[name], rtol=1e-8, atol=1e-11)
        for mine, own in zip(p.model.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(mine, own, rtol=error, atol=error)
    books = engine.ledger.by_step
    total = books["samples"] + books["unscored"] + books["optimizer"] + books["residual"]
    np.testing.assert_allclose(total, books["drop"], rtol=0, atol=1e-13)
    return engine


@pytest.mark.parametrize(
    ("name", "optimizer"), [(name, list(OPTIMIZERS)[(i + 1) % len(OPTIMIZERS)]) for i, name in enumerate(MODELS)]
)
def test_values_of_queries_are_those_of_one_engine_each(name, optimizer):
    check(lambda: problem(optimizer=OPTIMIZERS[optimizer], **MODELS[name]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rules", ["auto", "project", "weight-gradient", "gram"])
def test_with_every_optimiser_and_rule(optimizer, rules):
    check(lambda: problem(gpt2, OPTIMIZERS[optimizer], (6,), VOCABULARY, loss=tokens), rules=rules)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_models_from_transformers(name):
    transformers = pytest.importorskip("transformers")
    build, more = TRANSFORMERS[name]
    check(lambda: problem(lambda: build(transformers), OPTIMIZERS["adamw"], **more))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_parameters_that_make_no_scores(optimizer):
    check(lambda: problem(optimizer=OPTIMIZERS[optimizer]), score="0.*")


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_lagged_slopes_are_certified_for_each_query(optimizer):
    """The factor that brings scores near exact ones is a query's own: values equal those of an engine of its own."""
    p = problem(optimizer=OPTIMIZERS[optimizer])
    engine = of_queries(p, tolerance=0.9)
    p.train(engine, 12)
    assert engine.choices["slopes"]["lagged"] > 4
    compared = 0
    for query in range(N_VAL):
        twin = problem(optimizer=OPTIMIZERS[optimizer])
        alone = InRunShapley(
            twin.model,
            twin.optimizer,
            N,
            "first",
            validation=lambda t=twin, q=query: queries(t, [q])()[0],
            tolerance=0.9,
        )
        twin.train(alone, 12)
        if alone.choices["slopes"] == engine.choices["slopes"]:  # one query's certificate may ask for an exact step
            compared += 1
            np.testing.assert_allclose(engine.values()[:, query], alone.values(), rtol=1e-9)
    assert compared


def test_many_queries():
    """More of them than are scored one after the other, in layers of every kind."""
    p = problem(CASES["attention"]["build"], OPTIMIZERS["adamw"], (4, 8))
    x, y = torch.randn(11, 4, 8, dtype=torch.float64), torch.randint(3, (11,))
    engine = InRunShapley(
        p.model,
        p.optimizer,
        N,
        "first",
        validation=lambda: p.loss(p.model, x, y, "none"),
        per_query=True,
    )
    expected = []
    for query in range(11):
        brute = problem(CASES["attention"]["build"], OPTIMIZERS["adamw"], (4, 8))
        brute.validation = lambda model=None, q=query, b=brute: b.loss(model or b.model, x[q : q + 1], y[q : q + 1])
        expected.append(brute.brute_force().scores("first"))
    p.train(engine, 1)
    assert relative_error(engine.values(), np.stack(expected, 1)) < 1e-9


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_run_that_is_resumed_gives_the_same_values_to_the_bit(stream, optimizer, tmp_path):
    def pages(name):
        return ParquetPages(tmp_path / name, rows_per_part=2 * N) if stream else None

    labels = [0, 1, 0, 1, 1]
    whole = problem(optimizer=OPTIMIZERS[optimizer])
    engine = of_queries(whole, pages=pages("whole"), labels=labels)
    expected = whole.train(engine, 6)
    p = problem(optimizer=OPTIMIZERS[optimizer])
    first = of_queries(p, pages=pages("parts"), labels=labels)
    p.train(first, 3)
    torch.save({"m": p.model.state_dict(), "o": p.optimizer.state_dict(), "e": first.state_dict()}, tmp_path / "c.pt")
    p.train(first, 1)
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    q = problem(optimizer=OPTIMIZERS[optimizer])
    second = of_queries(q, pages=pages("parts"), labels=labels)
    q.model.load_state_dict(state["m"])
    q.optimizer.load_state_dict(state["o"])
    second.load_state_dict(state["e"])
    np.testing.assert_array_equal(q.train(second, 3), expected)
    for name, amounts in engine.ledger.by_step.items():
        np.testing.assert_array_equal(second.ledger.by_step[name], amounts)
    np.testing.assert_array_equal(second.values(steps=slice(1, 5)), engine.values(steps=slice(1, 5)))
    groups, own = engine.ledger.groups(), engine.ledger.groups(labels)
    for name, amounts in groups.items():
        assert amounts.shape == (6, N_VAL)
        np.testing.assert_allclose(second.ledger.groups()[name], amounts)
        np.testing.assert_allclose(own[name], amounts)
    np.testing.assert_allclose(sum(groups.values()), engine.ledger.by_step["samples"], atol=1e-14)
    if stream:
        pandas = pytest.importorskip("pandas")
        second.detach()
        table = pandas.read_parquet(tmp_path / "parts")
        assert len(table) == 6
        np.testing.assert_array_equal(np.stack(table["score"][0]), engine.ledger.steps[0].scores)


def test_scores_before_the_step():
    p = problem(optimizer=OPTIMIZERS["sgd"])
    engine = of_queries(p)
    with engine.step(range(N)) as step:
        p.batch_loss().backward()
        scores = [step.scores(str(query)) for query in range(N_VAL)]
        p.optimizer.step()
    np.testing.assert_allclose(torch.stack(scores, 1), engine.values(), rtol=1e-12)


def refused(error, match, losses=None, order="first", step=None, **options):
    p = problem()
    with pytest.raises(error, match=match):
        engine = InRunShapley(
            p.model, p.optimizer, N, order, validation=losses(p) if losses else queries(p), per_query=True, **options
        )
        with engine.step(range(N), **(step or {})):
            p.take_step()


def test_bad_input():
    for order in ("second", "midpoint", "integrated"):
        refused(ValueError, "order='first'", order=order)
    for late in ("split", "jvp"):
        refused(ValueError, "choose 'auto' or 'keep'", late=late)
    refused(ValueError, "one loss a query", losses=lambda p: p.validation)
    refused(ValueError, "one validation closure", losses=lambda p: {"a": queries(p)})
    refused(ValueError, "memory_budget", memory_budget=100)
    refused(ValueError, "takes queries from validation=", step={"validation_rows": 2})
    refused(ValueError, "takes no losses=", step={"losses": lambda: None})
    refused(ValueError, "depends on other queries|do not add up", losses=lambda p: lambda: coupled(queries(p)()))
    p = problem()
    with pytest.raises(ValueError, match="one loss a query, with per_query=True"):
        engine = InRunShapley(p.model, p.optimizer, N, "first", validation=queries(p))
        p.train(engine, 1)
    with pytest.raises(ValueError, match="no validation loss"):
        engine = InRunShapley(p.model, p.optimizer, N, "first", per_query=True)
        p.train(engine, 1)


def coupled(losses):
    return losses * losses.sum()


def test_queries_must_stay_the_same():
    p = problem()
    engine = InRunShapley(p.model, p.optimizer, N, "first", per_query=True)
    for rows in (range(N_VAL), range(N_VAL - 1)):
        if len(rows) == N_VAL:
            with engine.step(range(N), validation=queries(p, rows)):
                p.take_step()
            continue
        with pytest.raises(ValueError, match="must stay the same"), engine.step(range(N), validation=queries(p, rows)):
            p.take_step()
    assert engine.values().shape == (N, N_VAL)


def test_queries_of_a_step_are_those_of_the_engine():
    """Given to each step, closures bring what one that was given to the engine does."""
    p, twin = (problem(optimizer=OPTIMIZERS["momentum"]) for _ in range(2))
    engine = InRunShapley(p.model, p.optimizer, N, "first", per_query=True)
    for _ in range(3):
        with engine.step(range(N), validation=queries(p)):
            p.take_step()
    np.testing.assert_allclose(engine.values(), twin.train(of_queries(twin), 3), rtol=1e-12)


def test_layers_that_are_frozen_and_unfrozen_are_followed():
    def run(engine_of):
        p = problem(optimizer=OPTIMIZERS["sgd"])
        engine = engine_of(p)
        for step in range(4):
            p.model[0].requires_grad_(step != 1)
            with engine.step(range(N)):
                p.take_step()
        return engine.values()

    each = [
        run(lambda p, q=q: InRunShapley(p.model, p.optimizer, N, "first", validation=lambda: queries(p, [q])()[0]))
        for q in range(N_VAL)
    ]
    np.testing.assert_allclose(run(of_queries), np.stack(each, 1), rtol=1e-9, atol=1e-14)


def test_a_model_in_eval_mode_for_queries():
    """Dropout in training, none in the queries' pass, and the mode is left as it was."""
    p = problem(lambda: nn.Sequential(perceptron()[0], nn.Dropout(0.5), nn.Linear(8, 3)))
    losses = queries(p)

    def validation():
        p.model.eval()
        found = losses()
        p.model.train()
        return found

    engine = InRunShapley(p.model, p.optimizer, N, "first", validation=validation, per_query=True)
    p.train(engine, 3)
    assert p.model.training
    assert np.isfinite(engine.values()).all()


def test_gradients_are_those_of_the_present_weights():
    p = problem()
    engine = of_queries(p)
    p.train(engine, 1)
    losses = engine._queries
    first = {name: x.clone() for name, x in losses.gradients().tensors.items()}
    with torch.no_grad():
        for w in p.model.parameters():
            w.mul_(1.5)
    with engine._capture.watching():
        second = losses.gradients().tensors
    assert not torch.allclose(first["0.weight"], second["0.weight"])
    expected = torch.autograd.grad(queries(p)()[1], p.model[0].weight)[0]
    torch.testing.assert_close(second["0.weight"][1], expected)


def test_a_model_whose_first_layer_has_no_bias():
    """No parameter lies before it, so that its output is differentiated for the sake of its weight alone."""
    check(lambda: problem(lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3))), steps=6)


@pytest.mark.parametrize("padding", [None, 2])
def test_a_padding_row(padding):
    def build():
        return nn.Sequential(nn.Embedding(7, 4, padding_idx=padding), nn.Flatten(), nn.Linear(12, 3))

    check(lambda: problem(build, shape=(3,), ids=7))


class Shared(nn.Module):
    """A weight without a bias that is used twice, the second time with nothing but weights before it."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(4, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(torch.tanh(self.norm(self.inner(x))))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.tanh(self.embedding(x)).mean(1))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("case", [{"build": Shared}, {"build": Tied, "shape": (3,), "ids": 7}], ids=["shared", "tied"])
def test_weights_that_are_used_twice(case, optimizer):
    """In later steps, too, where gradients of weights are left away in the queries' pass."""
    check(lambda: problem(optimizer=OPTIMIZERS[optimizer], **case), steps=7)


@pytest.mark.parametrize("lasting", [True, False])
def test_queries_that_depend_on_each_other_from_some_step_on_are_looked_for(lasting):
    p = problem()
    own, coupling = queries(p), []

    def validation():
        return coupled(own()) if coupling else own()

    def train(steps):
        for _ in range(steps):
            with engine.step(range(N), validation=None if lasting else validation):
                p.take_step()

    given = validation if lasting else None
    engine = InRunShapley(p.model, p.optimizer, N, "first", validation=given, per_query=True)
    train(4)
    coupling.append(True)
    with pytest.raises(ValueError, match="do not add up"):
        train(12)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_a_step_may_have_queries_of_its_own_beside_the_engines(optimizer):
    """Each step is of its own, and those after it of the engine's again."""

    def losses(p, reverse):
        rows = slice(N, None)
        return p.loss(p.model, p.x[rows].flip(0) if reverse else p.x[rows], p.y[rows], "none")

    def run(engine_of, query=None):
        p = problem(optimizer=OPTIMIZERS[optimizer])
        engine = engine_of(p)
        for step in range(6):
            given = None
            if step in (1, 2, 4):
                given = lambda: losses(p, True) if query is None else losses(p, True)[query]  # noqa: E731
            with engine.step(range(N), validation=given):
                p.take_step()
        return engine.values(), engine.ledger.by_step["drop"]

    values, drops = run(
        lambda p: InRunShapley(p.model, p.optimizer, N, "first", validation=lambda: losses(p, False), per_query=True)
    )
    for query in range(N_VAL):
        alone, drop = run(
            lambda p, q=query: InRunShapley(p.model, p.optimizer, N, "first", validation=lambda: losses(p, False)[q]),
            query,
        )
        np.testing.assert_allclose(values[:, query], alone, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(drops[:, query], drop, rtol=1e-9, atol=1e-14)


def test_a_closure_that_asks_query_by_query_is_refused():
    refused(
        ValueError,
        "samples",
        losses=lambda p: lambda: torch.stack([queries(p, [q])()[0] for q in range(N_VAL)]),
    )
