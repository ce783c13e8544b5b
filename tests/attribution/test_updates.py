"""What an optimiser makes of a gradient: the reading against the step that the optimiser then takes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from inrun_bench.attribution.updates import check_optimizer, is_linear, read_update
from inrun_bench.attribution.updates.probed import double, probed_updates

F64 = torch.float64


class Lion(Optimizer):
    """Sign of an interpolated momentum, with decoupled decay (arXiv 2302.06675); smoothed by tanh where asked."""

    def __init__(self, params, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, smooth=False):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "smooth": smooth})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                direction = m * beta1 + p.grad * (1 - beta1)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * (torch.tanh(direction) if group["smooth"] else direction.sign()))
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class Buffered(Optimizer):
    """Momentum that lives outside of ``state``, and noise."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.buffers = [torch.zeros_like(p) for group in self.param_groups for p in group["params"]]
        self.taken = [0]

    @torch.no_grad()
    def step(self):
        self.taken[0] += 1
        parameters = [(p, group["lr"]) for group in self.param_groups for p in group["params"]]
        for (p, lr), buffer in zip(parameters, self.buffers, strict=True):
            if p.grad is not None:
                buffer.mul_(0.9).add_(p.grad.atan())
                p.sub_(buffer + torch.randn_like(p), alpha=lr / self.taken[0])


class Lars(Optimizer):
    """Steps whose length is the norm of the weights (arXiv 1708.03888)."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"] * float(p.norm() / p.grad.norm()))


class Large(Optimizer):
    """Mixes elements of large parameters only."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] / (float(p.grad.norm()) if p.numel() >= 100 else 1.0))


class Shampoo(Optimizer):
    """Matrices are preconditioned by an accumulated product (arXiv 1802.09568), vectors left as they are."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim == 2:
                    self.state[p]["rows"] = torch.eye(len(p), dtype=p.dtype)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad
                if g is not None and p.ndim == 2:
                    self.state[p]["rows"] += g @ g.T
                    g = torch.linalg.solve(self.state[p]["rows"], g)
                if g is not None:
                    p.sub_(g, alpha=group["lr"])


class Lookahead(Optimizer):
    """A wrapper: every other step goes half the way back to where the one before began (arXiv 1907.08610)."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner, self.param_groups = inner, inner.param_groups
        self.slow = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}
        self.taken = [0]

    @torch.no_grad()
    def step(self):
        self.inner.step()
        self.taken[0] += 1
        if self.taken[0] % 2 == 0:
            for p, slow in self.slow.items():
                p.copy_(slow.lerp_(p, 0.5))


class Clipped(torch.optim.SGD):
    """SGD that bounds the norm of the whole gradient."""

    @torch.no_grad()
    def step(self):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        length = torch.stack([g.norm() for g in grads]).norm()
        for g in grads:
            g.div_(length.clamp_min(1.0))
        super().step()


O = torch.optim  # noqa: E741
LINEAR = {
    "sgd": lambda p: O.SGD(p, 0.1),
    "sgd decay": lambda p: O.SGD(p, 0.1, weight_decay=0.3),
    "sgd heavy ball": lambda p: O.SGD(p, 0.1, momentum=0.9),
    "sgd dampened": lambda p: O.SGD(p, 0.1, momentum=0.9, dampening=0.4, weight_decay=0.2),
    "sgd nesterov": lambda p: O.SGD(p, 0.1, momentum=0.8, nesterov=True, weight_decay=0.2),
    "sgd maximize": lambda p: O.SGD(p, 0.1, momentum=0.8, maximize=True, weight_decay=0.2),
    "sgd tensor lr": lambda p: O.SGD(p, torch.tensor(0.1, dtype=F64), momentum=0.5, foreach=False),
    "sgd foreach": lambda p: O.SGD(p, 0.1, momentum=0.9, dampening=0.4, weight_decay=0.2, foreach=True),
    "sgd fused": lambda p: O.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.2, fused=True),
}
CLOSED = LINEAR | {
    "adam": lambda p: O.Adam(p, 0.01),
    "adam coupled": lambda p: O.Adam(p, 0.01, weight_decay=0.3, betas=(0.7, 0.9), eps=1e-3),
    "adam decoupled": lambda p: O.Adam(p, 0.01, weight_decay=0.3, decoupled_weight_decay=True),
    "adam no momentum": lambda p: O.Adam(p, 0.01, betas=(0.0, 0.9), weight_decay=0.3),
    "adamw": lambda p: O.AdamW(p, 0.01, weight_decay=0.1),
    "adamw eps": lambda p: O.AdamW(p, 0.01, weight_decay=0.0, eps=0.1),
    "adamw foreach": lambda p: O.AdamW(p, 0.01, foreach=True),
    "adamw fused": lambda p: O.AdamW(p, 0.01, fused=True),
    "adamw tensor lr": lambda p: O.AdamW(p, torch.tensor(0.01, dtype=F64), foreach=False),
    "adamw tensor betas": lambda p: O.AdamW(
        p, torch.tensor(0.01, dtype=F64), betas=tuple(torch.tensor([0.9, 0.99], dtype=F64)), foreach=False
    ),
}
SMOOTH = CLOSED | {
    "adam amsgrad": lambda p: O.Adam(p, 0.01, amsgrad=True, weight_decay=0.1),
    "adamw maximize": lambda p: O.AdamW(p, 0.01, maximize=True),
    "adamw amsgrad fused": lambda p: O.AdamW(p, 0.01, amsgrad=True, fused=True),
    "rmsprop": lambda p: O.RMSprop(p, 0.01),
    "rmsprop centered": lambda p: O.RMSprop(p, 0.01, alpha=0.9, centered=True, momentum=0.5, weight_decay=0.1),
    "adagrad": lambda p: O.Adagrad(p, 0.1, lr_decay=0.1, weight_decay=0.1),
    "adagrad fused": lambda p: O.Adagrad(p, 0.1, fused=True),
    "adadelta": lambda p: O.Adadelta(p, 1.0, weight_decay=0.1),
    "adamax": lambda p: O.Adamax(p, 0.01),
    "nadam": lambda p: O.NAdam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: O.RAdam(p, 0.01, foreach=True),
    "asgd": lambda p: O.ASGD(p, 0.1, t0=3),
    "lion smoothed": lambda p: Lion(p, smooth=True),
    "buffered": Buffered,
}
ALL = SMOOTH | {"rprop": lambda p: O.Rprop(p, 0.01), "lion": Lion}


def world(make, steps, dtype=F64):
    """An optimiser of two groups just before its step number `steps`, and the trained parameters by name.

    One of them, "strange", is not held by the optimiser; "missing" has no gradient at every other step.
    """
    torch.manual_seed(steps)
    shapes = {"matrix": (4, 3), "vector": (3,), "scalar": (), "missing": (2, 2), "strange": (3, 2)}
    parameters = {name: nn.Parameter(torch.randn(shape, dtype=dtype)) for name, shape in shapes.items()}
    frozen = nn.Parameter(torch.randn(3, dtype=dtype), requires_grad=False)
    optimizer = make(
        [
            {"params": [frozen, parameters["matrix"], parameters["missing"]]},
            {"params": [parameters["vector"], parameters["scalar"]]},
        ]
    )
    if not isinstance(optimizer.param_groups[0]["lr"], torch.Tensor):
        optimizer.param_groups[1]["lr"] *= 0.5
    if optimizer.param_groups[1].get("weight_decay"):
        optimizer.param_groups[1]["weight_decay"] *= 0.1
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    for number in range(steps):
        for name, p in parameters.items():
            absent = name == "missing" and number % 2 and not optimizer.defaults.get("fused")
            p.grad = None if absent else torch.randn_like(p)
        if number < steps - 1:
            optimizer.step()
            scheduler.step()
    return optimizer, parameters


def read(optimizer, parameters):
    """D and u(0) as tensors, by name."""
    update = read_update(optimizer, parameters, [p.grad for p in parameters.values()])
    empty = update.empty or [torch.zeros_like(p) for p in parameters.values()]
    slope = [
        torch.as_tensor(d, dtype=p.dtype).expand(p.shape)
        for d, p in zip(update.slope, parameters.values(), strict=True)
    ]
    return dict(zip(parameters, slope, strict=True)), dict(zip(parameters, empty, strict=True))


def stepped(optimizer, parameters, gradients):
    """The weights after a real step with these gradients, by name."""
    others, other = copy.deepcopy((parameters, optimizer))
    for name in ("buffers", "taken"):  # what an optimiser's own deepcopy forgets
        if hasattr(optimizer, name):
            setattr(other, name, copy.deepcopy(getattr(optimizer, name)))
    for name, p in others.items():
        p.grad = None if gradients[name] is None else gradients[name].clone()
    with torch.random.fork_rng():
        other.step()
    return {name: p.detach() for name, p in others.items()}


def grads(parameters, change=lambda g: g):
    return {name: None if p.grad is None else change(p.grad) for name, p in parameters.items()}


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("name", ALL)
def test_the_reading_is_the_step_that_the_optimiser_takes(name, steps):
    optimizer, parameters = world(ALL[name], steps)
    slope, empty = read(optimizer, parameters)
    rest = stepped(optimizer, parameters, grads(parameters, torch.zeros_like))
    moved = stepped(optimizer, parameters, grads(parameters))
    tolerance = 1e-9 if name == "nadam" else 1e-12  # torch keeps a running product of NAdam in float32
    for key, p in parameters.items():
        w, g = p.detach(), torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(w - empty[key], rest[key], rtol=0, atol=tolerance)
        torch.testing.assert_close(w - empty[key] - slope[key] * g, moved[key], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_parameters_without_gradient_or_optimiser_stay(name):
    optimizer, parameters = world(ALL[name], 4)
    parameters["matrix"].grad = None
    slope, empty = read(optimizer, parameters)
    for key in ("matrix", "strange"):
        assert not slope[key].any()
        assert not empty[key].any()


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_what_probing_finds(name, steps):
    optimizer, parameters = world(CLOSED[name], steps)
    slope, empty = read(optimizer, parameters)
    held = [key for key, p in parameters.items() if key != "strange" and p.grad is not None]
    probed = probed_updates(optimizer, [parameters[key] for key in held], [parameters[key].grad for key in held])
    for key, (secant, rest) in zip(held, probed, strict=True):
        torch.testing.assert_close(slope[key], secant, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(empty[key], torch.zeros_like(secant) if rest is None else rest, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_slope_at_zero_is_the_derivative(name):
    optimizer, parameters = world(SMOOTH[name], 5)
    for p in parameters.values():
        p.grad.view(-1)[::2] = 0.0
    slope, _ = read(optimizer, parameters)
    h = 1e-6
    up, down = (stepped(optimizer, parameters, grads(parameters, lambda g, d=d: g + d)) for d in (h, -h))
    for key, p in parameters.items():
        if key != "scalar":  # whose gradient is zero altogether: no scale to measure a small value by
            at_zero = p.grad == 0
            derivative = (down[key] - up[key]) / (2 * h)
            torch.testing.assert_close(slope[key][at_zero], derivative[at_zero], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adam_at_zero_gradient_and_zero_state(decay):
    """The steepest place there is: slope lr / eps, and no 0 / 0."""
    p = nn.Parameter(torch.tensor([0.0, 2.0], dtype=F64))
    update = read_update(torch.optim.Adam([p], 0.01, weight_decay=decay, eps=1e-3), {"p": p}, [torch.zeros(2).double()])
    h0 = decay * p.detach()
    torch.testing.assert_close(update.slope[0], 0.01 * 1e-3 / (h0.abs() + 1e-3) ** 2)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_parameters_of_one_group_may_lie_on_several_devices(name):
    kind = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    near, far = (nn.Parameter(torch.rand(3, dtype=F64, device=where)) for where in ("cpu", "meta"))
    optimizer, alone = (kind(held, lr=0.1, weight_decay=0.1) for held in ([far, near], [near]))
    if name == "adam":
        for p in (near, far):
            moments = {key: torch.ones_like(p) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.ones((), device=p.device), **moments}
        alone.state[near] = optimizer.state[near]
    both = read_update(optimizer, {"near": near, "far": far}, [near.detach(), far.detach()])
    own = read_update(alone, {"near": near}, [near.detach()])
    torch.testing.assert_close(both.slope[0], own.slope[0])
    torch.testing.assert_close(both.empty[0], own.empty[0])
    assert both.empty[1].is_meta


def same(one, two):
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", ALL)
def test_reading_changes_nothing(name, steps):
    optimizer, parameters = world(ALL[name], steps)
    if steps == 1:
        for p in parameters.values():
            p.grad.view(-1)[0] = 0.0

    def everything():
        tensors = [(p.detach().clone(), p.grad.clone(), p._version) for p in parameters.values() if p.grad is not None]
        own = [copy.deepcopy(getattr(optimizer, name, None)) for name in ("buffers", "taken")]
        return copy.deepcopy(optimizer.state_dict()), len(optimizer.state), sorted(vars(optimizer)), own, tensors

    before, rng = everything(), torch.get_rng_state()
    check_optimizer(optimizer)
    read(optimizer, parameters)
    assert same(before, everything())
    assert torch.equal(rng, torch.get_rng_state())


def test_hooks_see_nothing_of_the_reading():
    optimizer, parameters = world(Lion, 3)
    seen = []
    handles = [
        register(lambda *_: seen.append(1))
        for register in (
            register_optimizer_step_pre_hook,
            register_optimizer_step_post_hook,
            optimizer.register_step_pre_hook,
            optimizer.register_step_post_hook,
        )
    ]
    check_optimizer(optimizer)
    read(optimizer, parameters)
    for handle in handles:
        handle.remove()
    assert not seen


def test_what_is_attached_to_an_optimiser_is_not_copied():
    """Hooks and replaced steps may be bound to a model, or to the very engine that reads."""

    class Attached:
        def __deepcopy__(self, memo):
            raise AssertionError("must not be copied")

        def __call__(self, *_):
            raise AssertionError("must not be called")

    class Inherited(torch.optim.SGD):
        def step(self):
            return super().step()

    optimizer, parameters = world(lambda p: Inherited(p, 0.1, momentum=0.9), 3)
    optimizer.register_step_pre_hook(Attached().__call__)
    optimizer.register_step_post_hook(Attached())
    optimizer.step = Attached()
    slope, _ = read(optimizer, parameters)
    torch.testing.assert_close(slope["matrix"], torch.full((4, 3), 0.081, dtype=F64))


def test_small_gradients_keep_their_side_of_a_kink():
    class Rectified(Optimizer):
        @torch.no_grad()
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.sub_(p.grad.relu(), alpha=0.1)

    p = nn.Parameter(torch.ones(4, dtype=F64))
    gradient = torch.tensor([1.0, 1e-20, -1e-20, -1.0], dtype=F64)
    (slope,) = read_update(Rectified([p], {}), {"p": p}, [gradient]).slope
    torch.testing.assert_close(slope, torch.tensor([0.1, 0.1, 0.0, 0.0], dtype=F64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["sgd fused", "adamw fused", "adamw amsgrad fused"])
def test_a_fused_optimiser_that_undoes_a_gradient_scaler_is_read_by_unscaled_gradients(name):
    optimizer, parameters = world(ALL[name], 3)
    slope, empty = read(optimizer, parameters)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    scaled_slope, scaled_empty = read(optimizer, parameters)
    for key, p in parameters.items():
        p.grad *= 8.0
        torch.testing.assert_close(scaled_slope[key], slope[key], rtol=0, atol=0)
        torch.testing.assert_close(scaled_empty[key], empty[key], rtol=0, atol=0)
    expected = {key: p - empty[key] - slope[key] * p.grad / 8.0 for key, p in parameters.items()}
    optimizer.step()
    for key, p in parameters.items():
        torch.testing.assert_close(p.detach(), expected[key].detach(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_float32_keeps_its_digits(name):
    """The slope read in float32 is that of the same weights, state and gradients in float64, to 1e-5 of the largest."""
    optimizer, parameters = world(ALL[name], 10, torch.float32)
    wide, copies = double(optimizer)
    wide_parameters = {key: copies.get(p, p.detach().double()) for key, p in parameters.items()}
    for key, p in parameters.items():
        wide_parameters[key].grad = None if p.grad is None else p.grad.double()
    slope, empty = read(optimizer, parameters)
    wide_slope, wide_empty = read(wide, wide_parameters)
    for key in parameters:
        for got, exact in ((slope[key], wide_slope[key]), (empty[key], wide_empty[key])):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sgd heavy ball", "adamw", "adam coupled", "rmsprop centered"])
def test_half_precision(name, dtype):
    optimizer, parameters = world(ALL[name], 3, dtype)
    update = read_update(optimizer, parameters, [p.grad for p in parameters.values()])
    moved = stepped(optimizer, parameters, grads(parameters))
    for p, d, u, after in zip(parameters.values(), update.slope, update.empty, moved.values(), strict=True):
        assert u.dtype == dtype
        assert isinstance(d, float) or d.dtype == torch.float32
        torch.testing.assert_close((p - u - d * p.grad).to(dtype), after, rtol=2e-2, atol=2e-3)


def test_linear_is_known_before_the_backward_pass():
    optimizer, parameters = world(LINEAR["sgd nesterov"], 3)
    known = read_update(optimizer, parameters)
    assert known.slope == read_update(optimizer, parameters, [p.grad for p in parameters.values()]).slope
    assert all(isinstance(d, float) for d in known.slope)
    assert [name for name, make in ALL.items() if is_linear(world(make, 1)[0])] == list(LINEAR)


def test_only_linear_optimisers_are_read_without_gradients():
    optimizer, parameters = world(ALL["adamw"], 1)
    with pytest.raises(ValueError, match=r"gradients must be given: the slope of AdamW depends on them"):
        read_update(optimizer, parameters)


@pytest.mark.parametrize("name", ["sgd", "adamw eps", "rmsprop", "adagrad fused"])
def test_an_empty_coalition_without_decay_or_momentum_costs_nothing(name):
    optimizer, parameters = world(ALL[name], 1)
    assert read_update(optimizer, parameters, [p.grad for p in parameters.values()]).empty is None


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", ALL)
def test_element_wise_optimisers_pass(name, steps):
    check_optimizer(world(ALL[name], steps)[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-12)])
def test_a_wrapper_is_read_through(dtype, tolerance):
    """Its inner optimiser is copied along, and neither is touched."""
    p = nn.Parameter(torch.randn(5, dtype=dtype))
    optimizer = Lookahead(torch.optim.AdamW([p], 0.1))
    check_optimizer(optimizer)
    check(optimizer, p, 6, tolerance)
    check_optimizer(optimizer)


class Delayed(Optimizer):
    """Steps whose length is the norm of the last gradient: the first one, and the second on its own, mix nothing."""

    def __init__(self, params):
        super().__init__(params, {})
        self.length = 1.0
        self.taken = 0

    @torch.no_grad()
    def step(self):
        weights = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        for p in weights:
            p.sub_(self.length * p.grad)
        self.taken += 1
        if self.taken == 2:
            self.length = float(torch.stack([p.grad.norm() for p in weights]).norm())


def closure_only(parameters):
    class Search(Optimizer):
        def step(self, closure):
            return closure()

    return Search(parameters, {})


P = lambda *shape: nn.Parameter(torch.ones(shape))  # noqa: E731
REFUSALS = {
    "lbfgs": (lambda: O.LBFGS([P(3)]), r"LBFGS is not element-wise: .* closure"),
    "muon": (lambda: O.Muon([P(3, 4)]), r"Muon is not element-wise: it orthogonalises"),
    "adafactor": (lambda: O.Adafactor([P(3, 4)]), r"Adafactor is not element-wise: it factors the second moments"),
    "sparse adam": (lambda: O.SparseAdam([P(3, 4)]), r"SparseAdam is not element-wise: it moves the elements that"),
    "lars": (lambda: Lars([P(3, 2), P(5)]), r"Lars is not element-wise: .* depends on the gradients of others"),
    "lars, one vector": (lambda: Lars([P(2)]), r"Lars is not element-wise"),
    "clipped, scalars": (lambda: Clipped([P(), P()]), r"Clipped is not element-wise"),
    "lars, double": (lambda: Lars([nn.Parameter(torch.ones(100, 20, dtype=F64)), P(5)]), r"Lars is not element-wise"),
    "large": (lambda: Large([P(5), P(60, 4)]), r"Large is not element-wise"),
    "clipped": (lambda: Clipped([P(3, 2), P(5)], lr=0.1), r"Clipped is not element-wise"),
    "mixing two steps later": (lambda: Delayed([P(3, 2), P(5)]), r"Delayed is not element-wise"),
    "closure": (lambda: closure_only([P(3)]), r"Search cannot be read: step\(\), tried out .* failed with TypeError"),
    "complex": (lambda: O.Adam([P(3).to(torch.complex64).detach()]), r"Adam holds complex parameters"),
    "no optimizer": (lambda: nn.Linear(2, 2), r"optimizer must be a torch.optim.Optimizer, got Linear"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    make, message = REFUSALS[name]
    with pytest.raises(TypeError, match=message):
        check_optimizer(make())


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("make", "shapes", "mixes"),
    [(Shampoo, [(6, 7), (5,)], True), (Shampoo, [(6,), (5,)], False), (Large, [(6, 7), (5,)], False)],
)
def test_what_counts_is_what_it_does_to_these_parameters(make, shapes, mixes, steps):
    """A preconditioner of matrices is element-wise on vectors; before and during a run."""
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = make(parameters)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer.step()
    if mixes:
        with pytest.raises(TypeError, match="Shampoo is not element-wise"):
            check_optimizer(optimizer)
    else:
        check_optimizer(optimizer)


def check(optimizer, p, steps, tolerance=1e-12):
    """The law of the reading at every step of a short run."""
    for _ in range(steps):
        p.grad = torch.randn_like(p)
        p.grad[0] = 0.0
        slope, empty = read(optimizer, {"p": p})
        before = p.detach().clone()
        optimizer.step()
        rounding = 64 * torch.finfo(F64).eps * empty["p"].abs().max().item()  # u(0) is m / eps where beta2 is 0
        wanted = before - empty["p"] - slope["p"] * p.grad
        torch.testing.assert_close(wanted, p.detach(), rtol=0, atol=max(tolerance, rounding))


rates = st.floats(0.0, 1.0)
fractions = st.floats(0.0, 0.99)


@settings(max_examples=60, deadline=None)
@given(rates, fractions, fractions, rates, st.booleans(), st.booleans(), st.integers(0, 5))
def test_sgd_whatever_its_settings(lr, momentum, dampening, decay, nesterov, maximize, seed):
    nesterov = nesterov and momentum > 0
    p = nn.Parameter(torch.randn(5, dtype=F64, generator=torch.Generator().manual_seed(seed)))
    optimizer = torch.optim.SGD(
        [p],
        lr,
        momentum=momentum,
        dampening=0.0 if nesterov else dampening,
        weight_decay=decay,
        nesterov=nesterov,
        maximize=maximize,
    )
    check(optimizer, p, steps=3)


@settings(max_examples=60, deadline=None)
@given(rates, fractions, fractions, st.floats(1e-10, 1.0), rates, st.booleans(), st.booleans())
def test_adam_whatever_its_settings(lr, beta1, beta2, eps, decay, coupled, amsgrad):
    p = nn.Parameter(torch.randn(5, dtype=F64, generator=torch.Generator().manual_seed(0)))
    kind = torch.optim.Adam if coupled else torch.optim.AdamW
    check(kind([p], lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, amsgrad=amsgrad), p, steps=3)
