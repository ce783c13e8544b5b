"""One backward pass of training and of validation rows: values, and training itself, are those of two."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from inrun_bench import InRunShapley
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N_VAL, N, perceptron, problem, tokens
from tests.attribution.test_models import CASES, DYNAMO, VOCABULARY, classified, gpt2, llama, vit

OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "rates": lambda m: torch.optim.SGD([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(m.parameters())]),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01),
}
MODELS = {**CASES, "perceptron": {}}
TRANSFORMERS = {
    "llama": (llama, {"shape": (6,), "ids": VOCABULARY, "loss": tokens}),
    "vit": (vit, {"shape": (1, 8, 8), "loss": classified}),
}


def joint_step(p, engine, rows=N_VAL, scale=1.0, **more):
    """Take a step whose forward pass holds all of a problem's rows; the first N are for training."""
    with engine.step(range(N), validation_rows=rows, **more) as step:
        each = p.loss(p._callable(), p.x, p.y, "none")
        (step.loss(each[:N].mean(), each[N:]) * scale).backward()
        p.between(p.model)
        p.optimizer.step()
        p.optimizer.zero_grad()
    return engine


def plain(engine_of, order="first", **options):
    return InRunShapley(engine_of.model, engine_of.optimizer, N, order, **options)


def check(p, *, steps=3, tolerance=1e-9, engine=None, **more):
    """Hold joint steps against brute force, and training against a loop that nobody watches."""
    twin = copy.deepcopy(p)
    twin.optimizer = twin.build_optimizer(twin.model)
    engine = engine or plain(p)
    for _ in range(steps):
        expected = p.brute_force().scores("first")
        joint_step(p, engine, **more)
        twin.take_step()
        engine.values()
        assert relative_error(engine.ledger.steps[-1].scores, expected) < tolerance
        for mine, own in zip(p.model.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(mine, own, rtol=tolerance, atol=tolerance)
    return engine


@pytest.mark.parametrize(
    ("name", "optimizer"), [(name, list(OPTIMIZERS)[i % len(OPTIMIZERS)]) for i, name in enumerate(MODELS)]
)
def test_one_pass_equals_two(name, optimizer):
    check(problem(optimizer=OPTIMIZERS[optimizer], **MODELS[name]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rules", ["auto", "project", "weight-gradient", "gram"])
def test_with_every_optimiser_and_rule(optimizer, rules):
    p = problem(gpt2, OPTIMIZERS[optimizer], (6,), VOCABULARY, loss=tokens)
    check(p, engine=plain(p, rules=rules))


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_models_from_transformers(name, optimizer):
    transformers = pytest.importorskip("transformers")
    build, more = TRANSFORMERS[name]
    check(problem(lambda: build(transformers), OPTIMIZERS[optimizer], **more))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_several_validation_sets_in_any_order(optimizer):
    names = ["near", "far", "near", "far"]
    p = problem(gpt2, OPTIMIZERS[optimizer], (6,), VOCABULARY, loss=tokens)
    engine = plain(p)
    for _ in range(3):
        expected = {}
        for name in dict.fromkeys(names):
            rows = [N + row for row, of in enumerate(names) if of == name]
            brute = copy.copy(p)
            brute.validation = lambda model=None, rows=rows: p.loss(model or p.model, p.x[rows], p.y[rows])
            expected[name] = brute.brute_force().scores("first")
        joint_step(p, engine, rows=names)
        for name in names:
            engine.values(name)
            assert relative_error(engine.ledgers[name].steps[-1].scores, expected[name]) < 1e-9


@pytest.mark.parametrize("name", ["gpt2", "bare", "convolutions", "perceptron"])
def test_training_does_not_notice_what_validation_rows_hold(name):
    """To the last bit: nothing of them is in what the optimiser receives."""
    weights = []
    for shift in (0, 1):
        p = problem(optimizer=OPTIMIZERS["momentum"], **MODELS[name])
        rows = p.x[N:].roll(1, 0) if shift else p.x[N:]
        p.x = torch.cat([p.x[:N], rows])
        engine = plain(p)
        for _ in range(3):
            joint_step(p, engine)
        weights.append([w.detach().clone() for w in p.model.parameters()])
    for one, two in zip(*weights, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("tolerance", [0.05, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_lagged_slopes_are_those_of_two_passes(optimizer, tolerance):
    p, twin = (problem(optimizer=OPTIMIZERS[optimizer]) for _ in range(2))
    joint, apart = plain(p, tolerance=tolerance), twin.engine("first", tolerance=tolerance)
    for _ in range(12):
        joint_step(p, joint)
        with apart.step(range(N)):
            twin.take_step()
        joint.values()
        apart.values()
    assert joint.choices["slopes"] == apart.choices["slopes"]
    assert tolerance == 0.05 or joint.choices["slopes"]["lagged"]
    np.testing.assert_allclose(joint.values(), apart.values(), rtol=1e-9)
    np.testing.assert_allclose(joint.ledger.slope_errors, apart.ledger.slope_errors, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(
        joint.ledger.by_step["optimizer"][4:], apart.ledger.by_step["optimizer"][4:], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("scale", [1.0, 2.0**10])
def test_clipping_and_a_loss_scale(optimizer, scale):
    def between(model):
        for p in model.parameters():
            p.grad /= scale
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    def received(g):
        return g * min(1.0, 0.01 / (float(g.norm()) + 1e-6))

    p = problem(optimizer=OPTIMIZERS[optimizer], between=between, received=received)
    engine = plain(p)
    for _ in range(4):
        expected = p.brute_force().scores("first")
        joint_step(p, engine, scale=scale)
        engine.values()
        assert relative_error(engine.ledger.steps[-1].scores, expected) < 1e-6


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_checkpoints_of_the_present_form(optimizer):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = perceptron()[:3], perceptron()[3]

        def forward(self, x):
            return self.head(checkpoint(self.inner, x, use_reentrant=False))

    check(problem(Checkpointed, OPTIMIZERS[optimizer]))


@pytest.mark.filterwarnings(DYNAMO)
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_compiled_models(optimizer):
    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Embedding(VOCABULARY, 8), nn.Embedding(6, 8)
            self.norm, self.inner, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, VOCABULARY)

        def forward(self, x):
            h = self.token(x) + self.position(torch.arange(x.shape[1]))
            return self.head(torch.tanh(self.inner(self.norm(h))))

    p = problem(Gpt, OPTIMIZERS[optimizer], (6,), VOCABULARY, loss=tokens)
    twin = copy.deepcopy(p)
    twin.optimizer = twin.build_optimizer(twin.model)
    p.run = torch.compile(p.model, backend="aot_eager")
    try:
        engine, apart = plain(p), plain(twin)
        for _ in range(4):
            joint_step(p, engine)
            joint_step(twin, apart)
        assert relative_error(engine.values(), apart.values()) < 1e-9
        for mine, own in zip(p.model.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(mine, own, rtol=1e-9, atol=1e-12)
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("name", ["gpt2", "perceptron"])
def test_half_precision(name):
    """Scores under autocast are as near to exact ones as those of two passes."""
    errors = []
    for joint in (True, False):
        p = problem(optimizer=OPTIMIZERS["sgd"], **MODELS[name])
        exact = p.brute_force().scores("first")
        p.model.float()
        p.x = p.x.float() if p.x.is_floating_point() else p.x
        p.optimizer = p.build_optimizer(p.model)
        engine = plain(p) if joint else p.engine("first")
        with torch.autocast("cpu", torch.bfloat16):
            if joint:
                joint_step(p, engine)
            else:
                with engine.step(range(N)):
                    p.take_step()
        errors.append(relative_error(engine.values(), exact))
    assert errors[0] < max(2 * errors[1], 0.02)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_books(optimizer):
    """Where the rows' loss is given as a function, the books are those of two passes, to first order in u(0)."""
    p, twin, alone = (problem(optimizer=OPTIMIZERS[optimizer]) for _ in range(3))
    joint, apart, unmeasured = plain(p), twin.engine("first"), plain(alone)
    for _ in range(5):
        brute = p.brute_force()
        before, base = brute.validation(brute.w), brute.gradient_of(brute.validation, brute.w)
        joint_step(p, joint, validation=p.validation)
        joint_step(alone, unmeasured)
        with apart.step(range(N)):
            twin.take_step()
        entry, other = joint.ledger.steps[-1], apart.ledger.steps[-1]
        assert abs(entry.drop - other.drop) < 1e-12
        assert abs(entry.optimizer - float(base @ (brute.w - brute.base))) < 1e-12
        assert before > 0
        assert abs(entry.scores.sum() + entry.optimizer + entry.residual - entry.drop) < 1e-14
    np.testing.assert_allclose(joint.values(), unmeasured.values(), rtol=1e-12)
    assert np.isnan(unmeasured.ledger.by_step["drop"]).all()
    assert np.isnan(unmeasured.ledger.accounts["residual"])
    np.testing.assert_array_equal(unmeasured.ledger.by_step["samples"], joint.ledger.by_step["samples"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_parameters_that_make_no_scores(optimizer):
    p, twin = (problem(optimizer=OPTIMIZERS[optimizer]) for _ in range(2))
    joint, apart = plain(p, score="0.*"), twin.engine("first", score="0.*")
    for _ in range(3):
        joint_step(p, joint)
        with apart.step(range(N)):
            twin.take_step()
    np.testing.assert_allclose(joint.values(), apart.values(), rtol=1e-9)
    assert joint.ledger.accounts["unscored"] == pytest.approx(apart.ledger.accounts["unscored"], rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_scores_before_the_step(optimizer):
    p = problem(optimizer=OPTIMIZERS[optimizer])
    engine = plain(p)
    for _ in range(4):
        expected = p.brute_force().scores("first")
        with engine.step(range(N), validation_rows=N_VAL) as step:
            each = p.loss(p.model, p.x, p.y, "none")
            step.loss(each[:N], each[N:]).backward()
            scores = step.scores()
            with pytest.raises(RuntimeError, match="keep"):
                step.keep([True] * N)
            p.optimizer.step()
            p.optimizer.zero_grad()
        assert relative_error(scores.numpy(), expected) < 1e-9
        engine.values()
        np.testing.assert_allclose(engine.ledger.steps[-1].scores, scores, rtol=1e-12)


def test_steps_of_both_kinds_in_one_run():
    p, twin = problem(), problem()
    mixed, apart = p.engine("first"), twin.engine("first")
    for number in range(6):
        if number % 2:
            joint_step(p, mixed)
        else:
            with mixed.step(range(N)):
                p.take_step()
        with apart.step(range(N)):
            twin.take_step()
    np.testing.assert_allclose(mixed.values(), apart.values(), rtol=1e-9)
    measured = apart.ledger.by_step["drop"]
    np.testing.assert_allclose(mixed.ledger.by_step["drop"][::2], measured[::2], rtol=1e-9)
    assert np.isnan(mixed.ledger.by_step["drop"][1::2]).all()


@pytest.mark.parametrize("begin", [0, 4])
def test_a_gradient_that_is_not_the_rows_is_refused(begin):
    """What was there before is taken for a part of it; so is what a hook on a parameter makes of it."""
    for way in ("left over", "hook"):
        p = problem(build=lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)))
        engine = plain(p)
        for _ in range(begin):
            joint_step(p, engine)
        if way == "left over":
            p.model[1].weight.grad = torch.ones(4, dtype=torch.float64)
        else:
            p.model[1].weight.register_hook(lambda g: 2 * g)
        with pytest.raises(ValueError, match="is not the sum of what was seen of"):
            joint_step(p, engine)
            engine.values()


def refused(p, engine, error, match, rows=N_VAL, index=range(N), **more):
    weights = copy.deepcopy(p.model.state_dict())
    with pytest.raises(error, match=match), engine.step(index, validation_rows=rows, **more) as step:
        each = p.loss(p.model, p.x, p.y, "none")
        step.loss(each[:N], each[N:]).backward()
        p.optimizer.step()
    for name, w in p.model.state_dict().items():
        assert torch.equal(w, weights[name])
    assert len(engine.values()) == N
    assert not engine.values().any()
    p.optimizer.zero_grad()


def test_bad_input():
    p = problem()
    for order in ("second", "midpoint", "trapezoid", "integrated"):
        refused(p, plain(p, order), ValueError, "is for order='first'")
    for late in ("split", "jvp"):
        refused(p, plain(p, late=late), ValueError, "choose 'auto' or 'keep'")
    engine = plain(p)
    for rows in (0, -1, [], "both", True, 2.5):
        refused(p, engine, ValueError, "validation_rows must", rows=rows)
    refused(p, engine, ValueError, "by strings", rows=[1, 2, 3, 4])
    refused(p, engine, ValueError, "index names 8 samples", rows=3)
    refused(p, engine, ValueError, "needs the index", index=None)
    refused(p, engine, ValueError, "and not both", losses=p.losses)
    refused(p, engine, ValueError, "closure for each set", validation={"other": p.validation})
    with pytest.raises(ValueError, match="must stay the same"):
        q = problem()
        mixed = plain(q)
        joint_step(q, mixed, rows=["a", "a", "b", "b"])
        joint_step(q, mixed)


def with_loss(p, engine, make, **more):
    with engine.step(range(N), validation_rows=N_VAL, **more) as step:
        each = p.loss(p.model, p.x, p.y, "none")
        make(step, each)
        p.optimizer.step()


def forgotten(step, each):
    each[:N].mean().backward()


def never_differentiated(step, each):
    step.loss(each[:N], each[N:])
    each[:N].mean().backward()


def all_rows_are_trained(step, each):
    step.loss(each.mean(), each[N:]).backward()


def training_rows_validate(step, each):
    step.loss(each[:N], each[:N_VAL]).backward()


def twice(step, each):
    step.loss(each[:N], each[N:]).backward(retain_graph=True)
    step.loss(each[:N], each[N:]).backward()


def detached(step, each):
    step.loss(each[:N], each[N:].detach()).backward()


def summed(step, each):
    step.loss(each[:N], each[N:].sum()).backward()


def apart(step, each):
    total = step.loss(each[:N], each[N:])
    each[:N].mean().backward(retain_graph=True)
    total.backward()


def more(step, each):
    (step.loss(each[:N], each[N:]) + each[:N].square().mean()).backward()


def validation_once_more(step, each):
    (step.loss(each[:N], each[N:]) + each[N:].sum()).backward()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (forgotten, RuntimeError, "their loss is not in what was differentiated"),
        (never_differentiated, RuntimeError, "was not differentiated"),
        (all_rows_are_trained, ValueError, "training loss is made of validation rows as well"),
        (training_rows_validate, ValueError, "validation loss is made of training rows as well"),
        (twice, RuntimeError, "called twice"),
        (detached, ValueError, "validation has no graph"),
        (summed, ValueError, "the loss of each of the 4 validation rows"),
        (apart, RuntimeError, "several backward passes"),
        (more, ValueError, "not what step.loss"),
        (validation_once_more, ValueError, "not what step.loss"),
    ],
)
@pytest.mark.parametrize("begin", [0, 1, 4])
def test_losses_that_are_not_what_they_should_be(make, error, match, begin):
    p = problem()
    engine = plain(p)
    for _ in range(begin):
        joint_step(p, engine)
    before = engine.values()
    with pytest.raises(error, match=match):
        with_loss(p, engine, make)
        engine.values()
    np.testing.assert_array_equal(engine.values(), before)


class Parts(nn.Module):
    """A model whose loop calls its parts."""

    def __init__(self):
        super().__init__()
        self.inner, self.head, self.other = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)))


def test_a_training_loss_of_all_rows_is_refused_where_a_loop_calls_parts():
    p = problem(Parts)
    engine = plain(p)
    with (
        pytest.raises(ValueError, match="made of validation rows as well"),
        engine.step(range(N), validation_rows=N_VAL) as step,
    ):
        each = p.loss(lambda x: p.model.head(torch.tanh(p.model.inner(x))), p.x, p.y, "none")
        step.loss(each.mean(), each[N:]).backward()


def test_a_head_of_validation_alone_is_refused():
    """The optimiser would take it for trained, with a gradient of zeros, and decay it."""
    p = problem(Parts, lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.1))
    engine = plain(p)
    with (
        pytest.raises(ValueError, match=r"'other\.bias', and the training loss is not"),
        engine.step(range(N), validation_rows=N_VAL) as step,
    ):
        hidden = torch.tanh(p.model.inner(p.x))
        one, two = p.model.head(hidden), p.model.other(hidden)
        losses = nn.functional.cross_entropy(one, p.y, reduction="none")
        other = nn.functional.cross_entropy(two, p.y, reduction="none")
        step.loss(losses[:N], other[N:]).backward()


@pytest.mark.parametrize("folded_first", [False, True])
def test_a_layer_that_is_called_in_two_forms(folded_first):
    class TwoForms(nn.Module):
        def __init__(self):
            super().__init__()
            self.each, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            if folded_first:
                x = self.each(x.flatten(0, 1)).view(x.shape)
            x = self.each(torch.tanh(x))
            if not folded_first:
                x = self.each(torch.tanh(x).flatten(0, 1)).view(x.shape)
            return self.head(torch.tanh(x).mean(1))

    check(problem(TwoForms, OPTIMIZERS["momentum"], (3, 4)), steps=5)


def test_statistics_of_validation_rows_are_refused():
    build = lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True, track_running_stats=True))  # noqa: E731
    p = problem(lambda: nn.Sequential(*build(), nn.Flatten(), nn.Linear(16, 3)), shape=(2, 6))
    with pytest.raises(TypeError, match="track_running_stats=False"):
        joint_step(p, plain(p))


def test_frequencies_are_refused():
    build = lambda: nn.Sequential(nn.Embedding(7, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(12, 3))  # noqa: E731
    p = problem(build, shape=(3,), ids=7)
    with pytest.raises(TypeError, match="scale_grad_by_freq"):
        joint_step(p, plain(p))


def test_gradients_stay_where_they_are():
    """A loop may hold them: a flat buffer, an optimiser of its own."""
    p = problem()
    engine = plain(p)
    held = {}
    with engine.step(range(N), validation_rows=N_VAL) as step:
        for name, w in p.model.named_parameters():
            held[name] = w.grad = torch.zeros_like(w)
        each = p.loss(p.model, p.x, p.y, "none")
        step.loss(each[:N], each[N:]).backward()
        for name, w in p.model.named_parameters():
            assert w.grad is held[name]
        p.optimizer.step()


def test_a_hook_that_sees_gradients_first_is_refused():
    p = problem()
    seen = []
    p.model[2].weight.register_post_accumulate_grad_hook(lambda w: seen.append(w.grad.clone()))
    with pytest.raises(RuntimeError, match="put it on afterwards"):
        joint_step(p, plain(p))


def test_a_closure_of_another_loss_is_refused():
    p = problem()
    engine = plain(p)
    with pytest.raises(ValueError, match="at the same weights"):
        joint_step(p, engine, validation=lambda: 2 * p.validation())
        engine.values()


def test_loss_is_for_steps_with_validation_rows():
    p = problem()
    engine = p.engine("first")
    with pytest.raises(RuntimeError, match="validation_rows"), engine.step(range(N)) as step:
        step.loss(p.batch_loss(), p.losses())


def test_parts_are_refused():
    p = problem()
    engine = plain(p)
    with pytest.raises(RuntimeError, match="has no parts"), engine.step(range(N), validation_rows=N_VAL) as step:
        step.batch(range(N))


def test_noise_of_dropout_is_told():
    p = problem(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    with pytest.warns(RuntimeWarning, match="dropout"):
        joint_step(p, plain(p))


def test_sparse_gradients_are_refused():
    build = lambda: nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3))  # noqa: E731
    p = problem(build, shape=(3,), ids=7)
    with pytest.raises(ValueError, match="sparse"):
        joint_step(p, plain(p))


def test_a_reentrant_checkpoint_is_exact_or_refused():
    shared = perceptron()[:3]

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = shared, nn.Linear(8, 3)
            self.back = nn.Linear(8, 4)

        def forward(self, x):
            h = self.back(checkpoint(self.inner, x, use_reentrant=True))
            return self.head(checkpoint(self.inner, h, use_reentrant=True))

    p = problem(Checkpointed)
    p.x.requires_grad_()
    with pytest.raises(RuntimeError, match="use_reentrant"):
        joint_step(p, plain(p))
