"""Scores of some of the parameters, and what the others bring in an account of its own."""

import numpy as np
import pytest
import torch
from torch import nn

from inrun_bench.attribution.ledger import Entry, Ledger, ParquetPages
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N, problem

ORDERS = ("first", "second", "integrated")
OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
}


@pytest.mark.parametrize("rules", ["auto", "gram"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("order", ORDERS)
def test_scores_of_parts_add_up_to_those_of_the_whole(order, optimizer, rules):
    halves = (["0.*", "2.*"], "3.*")
    problems = [problem(optimizer=OPTIMIZERS[optimizer]) for _ in range(3)]
    engines = [p.engine(order, score=part, rules=rules) for p, part in zip(problems, (*halves, None), strict=True)]
    for p, engine in zip(problems, engines, strict=True):
        p.train(engine, 5)
    one, other, whole = (engine.ledger for engine in engines)
    np.testing.assert_allclose(one.values + other.values, whole.values, rtol=1e-9, atol=1e-14)
    for part, rest in ((one, other), (other, one)):
        np.testing.assert_allclose(part.by_step["unscored"], rest.by_step["samples"], rtol=1e-9)
        np.testing.assert_allclose(part.by_step["residual"], whole.by_step["residual"], rtol=1e-6, atol=1e-13)
        total = sum(part.by_step[name] for name in ("samples", "unscored", "optimizer", "residual"))
        np.testing.assert_allclose(total, part.by_step["drop"], atol=1e-14)
    assert not whole.by_step["unscored"].any()


def test_first_order_scores_of_parts_equal_brute_force():
    p = problem(optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    brute = p.brute_force()
    mask = torch.cat([torch.full((w.numel(),), float(name.startswith("3."))) for name, w in p.model.named_parameters()])
    v = brute.gradient_of(brute.validation, brute.w)
    expected = brute.contributions() @ (0.1 * v * mask.double())
    engine = p.engine("first", score="3.*")
    with engine.step(range(N)) as step:
        p.batch_loss().backward()
        before = step.scores()
        p.optimizer.step()
    assert relative_error(engine.values(), expected.numpy()) < 1e-10
    assert relative_error(before.numpy(), expected.numpy()) < 1e-10


@pytest.mark.parametrize("late", ["keep", "split"])
def test_late_routes_of_a_linear_update(late):
    p, q = (problem(optimizer=OPTIMIZERS["sgd"]) for _ in range(2))
    engine, other = p.engine("midpoint", score="3.*", late=late), q.engine("midpoint", score="3.*")
    p.train(engine, 3)
    q.train(other, 3)
    np.testing.assert_allclose(engine.values(), other.values(), rtol=1e-4)
    assert engine.ledger.by_step["unscored"] == pytest.approx(other.ledger.by_step["unscored"], rel=1e-4)


def test_lagged_and_chosen_and_in_parts():
    p = problem(optimizer=OPTIMIZERS["adamw"])
    engine = p.engine("first", score="3.*", tolerance=0.9)
    for _ in range(6):
        with engine.step(losses=p.losses) as step:
            for part in (slice(0, 2), slice(2, N)):
                step.batch(range(N)[part])
                (p.loss(p.model, p.x[part], p.y[part], "none").sum() / N).backward()
            step.keep([True, False, True, True, False])
            p.optimizer.step()
            p.optimizer.zero_grad()
    ledger = engine.ledger
    assert engine.choices["slopes"]["lagged"] > 0
    assert (ledger.values[[1, 4]] == 0).all()
    total = sum(ledger.accounts[name] for name in ("samples", "unscored", "optimizer", "residual"))
    assert total == pytest.approx(ledger.accounts["drop"], abs=1e-14)


def test_pages_of_older_versions_can_be_read(tmp_path):
    import pyarrow.parquet as pq

    from inrun_bench.attribution.ledger.parquet import sealed

    ledger = Ledger(3, pages=ParquetPages(tmp_path / "new", rows_per_part=2))
    for number in range(3):
        ledger.record(Entry(np.array([0, 1]), np.array([0.5, 0.25]), 0.0, 1.0, unscored=float(number)))
    ledger.steps.flush()
    assert [entry.unscored for entry in ParquetPages(tmp_path / "new")] == [0.0, 1.0, 2.0]
    assert [entry.residual for entry in ledger.steps] == [0.25, -0.75, -1.75]
    older = tmp_path / "old"
    older.mkdir()
    for path in (tmp_path / "new").glob("*.parquet"):
        (older / path.name).write_bytes(sealed(pq.read_table(path).drop_columns(["unscored"])))
    assert [entry.unscored for entry in ParquetPages(older)] == [0.0, 0.0, 0.0]


def test_checkpoints_of_older_versions_can_be_read():
    ledger = Ledger(3)
    ledger.record(Entry(np.array([0, 1]), np.array([0.5, 0.25]), 0.0, 1.0))
    state = ledger.state_dict()
    older = {name: part for name, part in state.items() if name != "slope_errors"}
    for name in ("by_step", "accounts", "pages"):
        older[name] = {key: part for key, part in state[name].items() if key != "unscored"}
    resumed = Ledger(3)
    resumed.load_state_dict(older)
    assert resumed.accounts == ledger.accounts
    assert resumed.slope_errors.tolist() == resumed.by_step["unscored"].tolist() == [0.0]
    assert resumed.steps[0].unscored == 0.0


def test_a_state_of_other_parts_is_refused():
    p, q = problem(), problem()
    with pytest.raises(ValueError, match="the same score= that the run began with"):
        q.engine("first").load_state_dict(p.engine("first", score="3.*").state_dict())
    q.engine("first", score="3.*").load_state_dict(p.engine("first", score="3.*").state_dict())


def test_bad_patterns():
    p = problem()
    with pytest.raises(
        ValueError, match=r"score names 'layers.\*', which matches none of the model's parameters, such as"
    ):
        p.engine("first", score="layers.*")
    with pytest.raises(ValueError, match="score must name at least one pattern"):
        p.engine("first", score=[])
    with pytest.raises(ValueError, match="late='jvp' differentiates losses by all parameters"):
        p.engine("first", score="3.*", late="jvp")
    engine = p.engine("first", score="3.weight")
    with (
        pytest.raises(
            ValueError, match=r"score= names '3.weight' and not '3.bias', which layer '3' \(Linear\) uses together"
        ),
        engine.step(range(N)),
    ):
        p.take_step()
    assert not len(engine.ledger.steps)


def test_a_parameter_of_several_layers_makes_scores_in_all_of_them():
    class Tied(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 7, bias=False))
            self[4].weight = self[0].weight

    problems = [problem(Tied, OPTIMIZERS["sgd"], (3,), 7) for _ in range(3)]
    engines = [p.engine("first", score=part) for p, part in zip(problems, ("0.*", "2.*", None), strict=True)]
    for p, engine in zip(problems, engines, strict=True):
        p.y %= 7
        p.train(engine, 3)
    one, other, whole = (engine.values() for engine in engines)
    np.testing.assert_allclose(one + other, whole, rtol=1e-9)
    alias = problem(Tied, OPTIMIZERS["sgd"], (3,), 7)
    alias.y %= 7
    np.testing.assert_allclose(alias.train(alias.engine("first", score="4.*"), 3), one, rtol=1e-12)
