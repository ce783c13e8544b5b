"""What looks at operations is among torch's function modes while there is something to see, and in nobody's way."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from inrun_bench.attribution.capture import operations
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N, problem


class Scaled(nn.Module):
    """A parameter that no rule covers, so that operations are looked at in every step."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, h):
        return self.head(h * self.scale)


class Model(nn.Module):
    """A layer, and that, in a checkpoint if there is to be one."""

    def __init__(self):
        super().__init__()
        self.inner, self.rest, self.reentrant = nn.Linear(3, 4), Scaled(), None

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return self.rest(h) if self.reentrant is None else checkpoint(self.rest, h, use_reentrant=self.reentrant)


class Users(TorchFunctionMode):
    """A mode of the user's, which must see what is done in its block."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


def scaled():
    return problem(Model, shape=(3,))


def depth():
    return torch._C._len_torch_function_stack()


@contextmanager
def asked(monkeypatch):
    """The functions that torch asks about."""
    seen, real = [], operations._Mode.__torch_function__

    def noted(self, func, types, args=(), kwargs=None):
        seen.append(func)
        return real(self, func, types, args, kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(operations._Mode, "__torch_function__", noted)
        yield seen


def test_nobody_is_asked_about_the_optimisers_work_or_the_engines(monkeypatch):
    case = scaled()
    engine = case.engine("first")
    case.train(engine, 2)
    outside, inside = depth(), []
    case.optimizer.register_step_pre_hook(lambda *_: inside.append(depth()))  # called before the engine's
    case.optimizer.register_step_post_hook(lambda *_: inside.append(depth()))
    with asked(monkeypatch) as seen, engine.step(range(N)):
        loss = case.batch_loss()
        of_forward = len(seen)
        loss.backward()
        assert seen[of_forward:] == [torch.Tensor.backward]
        case.optimizer.step()
        case.optimizer.zero_grad()
        assert not [func for func in seen[of_forward + 1 :] if "profiler" not in str(func)]
    assert 0 < of_forward < 40
    assert inside == [outside + 1, outside]
    assert depth() == outside


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("around", ["all", "forward", "backward", "optimizer", "announcement", "step", "two"])
def test_modes_of_the_users_stay_where_they_are(around, reentrant):
    case = scaled()
    engine, before, mode = case.engine("first"), depth(), Users()

    def within(*places):
        return mode if around in places else nullcontext()

    for _ in range(2):
        expected = case.brute_force().scores("first")
        announced = around != "announcement"
        with within("step"), engine.step(range(N) if announced else None) as step, within("all", "two"):
            entered = depth()
            with within("two") if around == "two" else nullcontext():
                with within("announcement"):
                    if not announced:
                        step.batch(range(N))
                with within("forward"):
                    case.model.reentrant = reentrant
                    loss = case.batch_loss()
                    case.model.reentrant = None
                with within("backward"):
                    loss.backward()
                with within("optimizer"):
                    case.optimizer.step()
            assert depth() in (entered, entered - 1)
            case.optimizer.zero_grad()
        assert depth() == before
        assert relative_error(engine.ledger.steps[-1].scores, expected) < 1e-10
    assert mode.seen > 0 or around == "announcement"


@pytest.mark.parametrize("place", ["forward", "backward", "optimizer", "afterwards"])
def test_nothing_is_left_behind_by_a_step_that_fails(place):
    case = scaled()
    engine, before = case.engine("first"), depth()
    for _ in range(2):
        with pytest.raises(ArithmeticError), engine.step(range(N)), torch.device("cpu"):
            if place == "forward":
                raise ArithmeticError
            loss = case.batch_loss()
            if place == "backward":
                raise ArithmeticError
            loss.backward()
            if place == "optimizer":
                raise ArithmeticError
            case.optimizer.step()
            raise ArithmeticError
        case.optimizer.zero_grad()
        assert depth() == before


@pytest.mark.parametrize("left", ["in the step", "after it"])
def test_a_mode_that_crosses_the_borders_of_a_step(left):
    """Left inside, torch takes ours off in its place, which is refused; still open, it stays, and ours goes."""
    case, mode, before = scaled(), Users(), depth()
    engine = case.engine("first")
    case.train(engine, 1)
    if left == "in the step":
        mode.__enter__()
        with pytest.raises(RuntimeError, match="entered before the step was left inside of it"), engine.step(range(N)):
            mode.__exit__(None, None, None)
            case.take_step()
        mode.__exit__(None, None, None)
    else:
        expected = case.brute_force().scores("first")
        with engine.step(range(N)):
            mode.__enter__()
            case.take_step()
        assert torch._C._get_function_stack_at(before) is mode
        mode.__exit__(None, None, None)
        assert relative_error(engine.ledger.steps[-1].scores, expected) < 1e-10
    assert depth() == before
