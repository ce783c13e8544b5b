"""Slopes that are foreseen: how far scores with them are off, and that it is said."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from inrun_bench import InRunShapley
from tests.attribution.brute_force import BruteForce, relative_error
from tests.attribution.problem import perceptron, problem

BATCH, SAMPLES = 8, 32


class Gradual:
    """A run whose slopes move slowly: many steps on batches of one distribution."""

    def __init__(self, optimizer, tolerance=0.3, seed=0, **options):
        torch.manual_seed(seed)
        self.model = perceptron().double()
        self.x, self.y = torch.randn(SAMPLES + 8, 4).double(), torch.randint(3, (SAMPLES + 8,))
        self.optimizer = optimizer(self.model.parameters())
        self.engine = InRunShapley(
            self.model,
            self.optimizer,
            SAMPLES,
            "first",
            validation=options.pop("validation", self.validation),
            tolerance=tolerance,
            **options,
        )
        self.order = torch.Generator().manual_seed(seed)

    def validation(self, model=None):
        model = self.model if model is None else model
        return F.cross_entropy(model(self.x[SAMPLES:]), self.y[SAMPLES:])

    def index(self):
        return torch.randperm(SAMPLES, generator=self.order)[:BATCH]

    def step(self, index=None, *, scale=1.0, between=lambda _model: None):
        index = self.index() if index is None else index
        with self.engine.step(index):
            (scale * F.cross_entropy(self.model(self.x[index]), self.y[index])).backward()
            between(self.model)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def jump(self):
        """Take a step that nobody could foresee, and look at its numbers."""
        self.step(torch.zeros(BATCH, dtype=torch.int64), scale=-1e3)
        self.engine.values()

    def brute(self, index, received=lambda g: g):
        def sample(model, i):
            return F.cross_entropy(model(self.x[index[i]][None]), self.y[index[i]][None]) / BATCH

        return BruteForce(self.model, self.optimizer, BATCH, sample, self.validation, received)

    @property
    def last(self):
        self.engine.values()
        return self.engine.ledger.steps[-1], self.engine.ledger.slope_errors[-1]


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)


def adam_with_coupled_decay(parameters):
    return torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-3, betas=(0.8, 0.99))


def nadam(parameters):
    return torch.optim.NAdam(parameters, lr=1e-3)


def rmsprop(parameters):
    return torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.5, weight_decay=0.01)


class Affine(torch.optim.SGD):
    """Plain SGD by another name, whose slopes nobody knows before, and which never move."""


@pytest.mark.parametrize("optimizer", [adamw, adam_with_coupled_decay, nadam, rmsprop])
def test_lagged_scores_are_off_by_what_their_certificate_says(optimizer):
    run = Gradual(optimizer)
    errors, certificates = [], []
    for _ in range(40):
        index = run.index()
        brute = run.brute(index)
        expected = brute.scores("first")
        run.step(index)
        entry, certificate = run.last
        error = relative_error(entry.scores, expected)
        if certificate == 0:
            assert error < 1e-7  # optimisers without a closed form are tried out
        else:
            errors.append(error)
            certificates.append(certificate)
    assert len(errors) > 15
    assert run.engine.choices["slopes"]["lagged"] == len(errors)
    ratio = np.array(errors) / np.array(certificates)
    assert 0.2 < np.median(ratio) < 1.2
    assert np.quantile(ratio, 0.9) < 2
    assert np.median(errors) < 0.25


@pytest.mark.parametrize("optimizer", [adamw, adam_with_coupled_decay, nadam, rmsprop])
def test_what_a_step_does_without_samples_is_of_first_order(optimizer):
    run = Gradual(optimizer, tolerance=0.9)
    kinds = set()
    for _ in range(12):
        index = run.index()
        brute = run.brute(index)
        v = brute.gradient_of(brute.validation, brute.w)
        expected, drop = float(v @ (brute.w - brute.base)), brute.drop()
        run.step(index)
        entry, certificate = run.last
        kinds.add(certificate > 0)
        assert entry.optimizer == pytest.approx(expected, rel=1e-4, abs=1e-12)
        assert entry.drop == pytest.approx(drop, abs=1e-12)
    assert kinds == {False, True}


def test_slopes_that_do_not_move_are_exact_and_certified_to_be():
    run = Gradual(lambda parameters: Affine(parameters, lr=0.1, momentum=0.9, weight_decay=0.01), tolerance=1e-3)
    for _ in range(8):
        index = run.index()
        expected = run.brute(index).scores("first")
        run.step(index)
        entry, certificate = run.last
        assert relative_error(entry.scores, expected) < 1e-8
        assert certificate < 1e-7
    assert run.engine.choices["slopes"] == {"exact": 3, "lagged": 5, "beyond": 0}


def test_without_a_tolerance_no_slope_is_lagged_and_values_are_what_they_were():
    with_tolerance, without = Gradual(adamw, tolerance=1e-9), Gradual(adamw, tolerance=0.0)
    for _ in range(10):
        with_tolerance.step()
        without.step()
    np.testing.assert_array_equal(with_tolerance.engine.values(), without.engine.values())
    assert with_tolerance.engine.choices["slopes"] == {"exact": 10, "lagged": 0, "beyond": 0}
    assert "slopes" not in without.engine.choices


def test_training_is_untouched():
    watched, plain = Gradual(adamw, tolerance=0.9), Gradual(adamw, tolerance=0.9)
    for _ in range(8):
        index = watched.index()
        watched.step(index)
        F.cross_entropy(plain.model(plain.x[index]), plain.y[index]).backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    assert watched.engine.choices["slopes"]["lagged"] > 0
    for p, q in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_a_slope_that_jumps_is_told_counted_and_in_the_ledger():
    run = Gradual(lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, betas=(0.5, 0.6)), tolerance=0.9)
    while run.engine.choices["slopes"]["lagged"] == 0:
        run.step()
    steps = len(run.engine.ledger.steps)
    with pytest.warns(RuntimeWarning, match=rf"step {steps}: slopes of the optimiser moved .* beyond tolerance=0.9"):
        run.jump()
    assert run.engine.choices["slopes"]["beyond"] == 1
    assert run.engine.ledger.slope_errors[-1] > 0.9


def test_a_common_change_of_rates_inside_of_the_step_is_followed():
    run = Gradual(adamw, tolerance=0.9)
    for _ in range(30):
        run.step()
    index = run.index()
    brute = run.brute(index)
    expected = 3 * brute.scores("first")

    def faster(_model):
        run.optimizer.param_groups[0]["lr"] *= 3

    run.step(index, between=faster)
    entry, certificate = run.last
    assert 0 < certificate < 0.3
    assert relative_error(entry.scores, expected) < 2 * certificate


def test_clipping_by_norm_is_followed_and_clipping_by_value_takes_exact_slopes():
    def by_norm(model):
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)

    def by_value(model):
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)

    run = Gradual(adamw, tolerance=0.9)
    for _ in range(30):
        run.step(between=by_norm)
    index = run.index()
    expected = run.brute(index, lambda g: g * min(1.0, float(0.05 / (g.norm() + 1e-6)))).scores("first")
    run.step(index, between=by_norm)
    entry, certificate = run.last
    assert 0 < certificate < 0.3
    assert relative_error(entry.scores, expected) < 2 * certificate
    run = Gradual(adamw, tolerance=0.9)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(10):
            run.step(between=by_value)
    assert 1 <= len(told) <= 2  # each of a lagged step, of which the second was in the queue
    assert all("gradients were changed between the backward pass" in str(one.message) for one in told)
    assert run.engine.choices["slopes"]["lagged"] == len(told)


def test_parts_of_a_batch_and_several_validation_sets():
    def run(tolerance):
        made = Gradual(adamw, tolerance)
        half = {
            "one": lambda: F.cross_entropy(made.model(made.x[SAMPLES:-4]), made.y[SAMPLES:-4]),
            "other": lambda: F.cross_entropy(made.model(made.x[-4:]), made.y[-4:]),
        }
        made.engine.detach()
        made.engine = InRunShapley(made.model, made.optimizer, SAMPLES, "first", validation=half, tolerance=tolerance)
        for _ in range(30):
            index = made.index()
            with made.engine.step() as step:
                for part in index.split(BATCH // 2):
                    step.batch(part)
                    (F.cross_entropy(made.model(made.x[part]), made.y[part]) / 2).backward()
                made.optimizer.step()
                made.optimizer.zero_grad()
        return made.engine

    lagged, exact = run(0.9), run(0.0)
    assert lagged.choices["slopes"]["lagged"] > 20
    for name in ("one", "other"):
        pairs = zip(lagged.ledgers[name].steps, exact.ledgers[name].steps, strict=True)
        errors = [relative_error(one.scores, other.scores) for one, other in pairs]
        certified = lagged.ledgers[name].slope_errors
        assert np.median(errors[10:] / certified[10:]) < 1.2


def test_a_word_that_has_not_occurred_yet_is_noticed():
    """Its slope is that of a first gradient, whatever the optimiser's state says of others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 8), nn.Flatten(), nn.Linear(16, 3)).double()
    x, y = torch.randint(5, (24, 2)), torch.randint(3, (24,))
    x[20:] = 5  # of which the validation loss depends
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = InRunShapley(
        model, optimizer, 24, "first", validation=lambda: F.cross_entropy(model(x[16:]), y[16:]), tolerance=0.9
    )
    for step in range(40):
        index = torch.arange(16) if step < 39 else torch.arange(8, 24)
        with engine.step(index):
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            optimizer.zero_grad()
    errors = engine.ledger.slope_errors
    assert errors[-1] > 3 * errors[-2] > 0


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_bad_tolerances(tolerance):
    p = problem()
    with pytest.raises(ValueError, match="tolerance must be at least 0 and less than 1, got"):
        p.engine("first", tolerance=tolerance)


@pytest.mark.parametrize("order", ["second", "integrated"])
def test_other_orders_have_no_use_for_it(order):
    p = problem(optimizer=lambda m: adamw(m.parameters()))
    with pytest.raises(ValueError, match=r"tolerance=0\.5 is for order='first'"):
        p.engine(order, tolerance=0.5)


class Branched(nn.Module):
    """A layer that takes part where `on`."""

    def __init__(self):
        super().__init__()
        self.a, self.late, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.on = True

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(h + 0.1 * self.late(h) if self.on else h)


@pytest.mark.parametrize("optimizer", [adamw, rmsprop])
def test_a_layer_that_moves_for_the_first_time_is_noticed_and_what_rests_is_not_booked(optimizer):
    run = Gradual(optimizer, tolerance=0.9)
    run.engine.detach()
    run.model = Branched().double()

    def validation(model=None):  # which the layer always takes part in, so that its momentum would count
        on, run.model.on = run.model.on, True
        try:
            return Gradual.validation(run, model)
        finally:
            run.model.on = on

    run.validation = validation
    run.optimizer = optimizer(run.model.parameters())
    run.engine = InRunShapley(run.model, run.optimizer, SAMPLES, "first", validation=run.validation, tolerance=0.9)
    beyond = []
    for number in range(24):
        index = run.index()
        run.model.on = number in (12, 13, 14, 20, 21)
        brute = run.brute(index)
        v = brute.gradient_of(brute.validation, brute.w)
        before = [p.detach().clone() for p in run.model.parameters()]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.step(index)
            entry, certificate = run.last
        beyond += [number for one in caught if "beyond tolerance" in str(one.message)]
        if not run.model.on and number > 14:  # the layer's momentum is carried over by nobody
            moved = [bool((p != q).any()) for p, q in zip(before, run.model.parameters(), strict=True)]
            assert moved == [True, True, False, False, True, True]
            late = torch.cat([torch.full((p.numel(),), "late" in n) for n, p in run.model.named_parameters()])
            expected = float((v * (brute.w - brute.base))[~late].sum())
            assert entry.optimizer == pytest.approx(expected, rel=1e-3, abs=1e-12)
        if number == 12:
            assert certificate >= 1
        elif run.model.on and certificate:
            assert relative_error(entry.scores, brute.scores("first")) < 2.5 * certificate
    assert beyond[:1] == [12]


def test_freezing_begins_anew():
    run = Gradual(rmsprop, tolerance=0.9)
    for frozen in (False, True, False):
        for p in run.model[0].parameters():
            p.requires_grad_(not frozen)
        for _ in range(6):
            run.step()
    assert run.engine.choices["slopes"]["exact"] >= 9
    assert run.engine.choices["slopes"]["lagged"] >= 6


def test_keeping_terms_is_what_was_asked_for():
    run = Gradual(adamw, tolerance=0.9, late="keep")
    for _ in range(8):
        run.step()
    assert not run.engine.ledger.slope_errors.any()


def test_a_rate_that_is_set_inside_of_the_step_moves_the_optimisers_account_too():
    run = Gradual(adamw, tolerance=0.9)
    for _ in range(10):
        run.step()
    index = run.index()
    run.optimizer.param_groups[0]["lr"] *= 3
    brute = run.brute(index)
    run.optimizer.param_groups[0]["lr"] /= 3
    v = brute.gradient_of(brute.validation, brute.w)

    def faster(_model):
        run.optimizer.param_groups[0]["lr"] *= 3

    run.step(index, between=faster)
    entry, certificate = run.last
    assert certificate > 0
    assert entry.optimizer == pytest.approx(float(v @ (brute.w - brute.base)), rel=1e-4)


@pytest.mark.parametrize("optimizer", [torch.optim.Adagrad, torch.optim.AdamW])
def test_a_step_that_a_scaler_skips_teaches_nothing(optimizer):
    more = {"amsgrad": True} if optimizer is torch.optim.AdamW else {}
    run = Gradual(lambda parameters: optimizer(parameters, lr=1e-3, fused=True, **more), tolerance=0.9)
    run.engine.detach()
    run.model.float()
    run.x = run.x.float()
    run.optimizer = optimizer(run.model.parameters(), lr=1e-3, fused=True, **more)
    run.engine = InRunShapley(run.model, run.optimizer, SAMPLES, "first", validation=run.validation, tolerance=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in range(12):
        index = run.index()
        with run.engine.step(index):
            loss = F.cross_entropy(run.model(run.x[index]), run.y[index])
            scaler.scale(loss * float("inf") if number in (0, 6) else loss).backward()
            scaler.step(run.optimizer)
            scaler.update()
            run.optimizer.zero_grad()
    assert np.isfinite(run.engine.values()).all()
    assert len(run.engine.ledger.steps) == 10
