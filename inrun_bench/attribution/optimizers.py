"""The optimisers of a run, read and watched as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from inrun_bench.attribution.products.backend import Backend
from inrun_bench.attribution.transfer import Numbers
from inrun_bench.attribution.updates import (
    Update,
    check_optimizer,
    expected_slopes,
    is_in_closed_form,
    is_linear,
    read_update,
    sampled_slopes,
)
from inrun_bench.attribution.updates.expected import ExpectedSlope
from inrun_bench.attribution.weights import compared, differ, traits

__all__ = ["Optimizers", "closure_evaluated"]


class Optimizers:
    """One optimiser, or several that hold different parameters of one model.

    Parameters
    ----------
    optimizers : Optimizer or sequence of Optimizer
        Element-wise ones.
    parameters : mapping of Tensor to str
        The model's parameters, and their names.
    kernels : {"auto", "triton", "torch"}
        What runs the arithmetic of optimisers that have kernels.

    Raises
    ------
    TypeError
        If one is not element-wise; see :func:`inrun_bench.attribution.updates.check_optimizer`.
    ValueError
        If there is none, a parameter is held by two, or by one and is no parameter of the model.
    """

    def __init__(
        self,
        optimizers: Optimizer | Sequence[Optimizer],
        parameters: Mapping[Tensor, str],
        kernels: Backend = "auto",
    ) -> None:
        self._kernels = kernels
        given = [optimizers] if isinstance(optimizers, Optimizer) else _several(optimizers)
        self.members: list[Optimizer] = [_unwrapped(each) for each in given]
        if not self.members:
            raise ValueError("optimizer must be a torch.optim.Optimizer or several of them, got an empty sequence")
        for member in self.members:
            check_optimizer(member)
        self._holder: dict[Tensor, Optimizer] = {}
        self.look_again(parameters)
        self._handles: list[Any] = []

    def look_again(self, parameters: Mapping[Any, str]) -> None:
        """Note which optimiser holds which parameter; groups may have been added."""
        self._holder = {}
        for member in self.members:
            for p in (p for group in member.param_groups for p in group["params"]):
                self._check(p, parameters)
                self._holder[p] = member

    @property
    def linear(self) -> bool:
        """Whether every update is affine in the gradient, its slope being known before the backward pass."""
        return all(map(is_linear, self.members))

    @property
    def grad_scale(self) -> Tensor | None:
        """What a ``GradScaler`` has multiplied gradients with, where the step itself will divide by it."""
        return next((scale for one in self.members if (scale := getattr(one, "grad_scale", None)) is not None), None)

    @property
    def found_inf(self) -> Tensor | None:
        """Not zero where a step will be skipped, which the optimiser alone knows."""
        return next((found for one in self.members if (found := getattr(one, "found_inf", None)) is not None), None)

    def __contains__(self, parameter: Tensor) -> bool:
        return parameter in self._holder

    def read(self, parameters: Mapping[str, Tensor], gradients: Sequence[Tensor | None] | None = None) -> Update:
        """Read the update of the coming step; see :func:`inrun_bench.attribution.updates.read_update`."""
        if len(self.members) == 1:
            return read_update(self.members[0], parameters, gradients, backend=self._kernels)
        slopes: dict[str, float | Tensor] = dict.fromkeys(parameters, 0.0)
        rests: dict[str, Tensor] = {}
        for member in self.members:
            own = {name: p for name, p in parameters.items() if self._holder.get(p) is member}
            given = self._gradients(member, parameters, gradients)
            update = read_update(member, own, given, backend=self._kernels)
            slopes |= dict(zip(own, update.slope, strict=True))
            rests |= dict(zip(own, update.empty or (), strict=False))
        if not rests:
            return Update(list(slopes.values()), None)
        return Update(list(slopes.values()), [rests.get(name, torch.zeros_like(p)) for name, p in parameters.items()])

    def rates(self, parameters: Mapping[str, Tensor]) -> list[Any]:
        """Return the present learning rate of each parameter; 1 for one that no optimiser holds."""
        groups = [group for member in self.members for group in member.param_groups]
        found = {p: group.get("lr", 1.0) for group in groups for p in group["params"]}
        return [found.get(p, 1.0) for p in parameters.values()]

    def expected_slopes(
        self, parameters: Mapping[str, Tensor], last: Sequence[float | Tensor] | None
    ) -> list[ExpectedSlope] | None:
        """Return the slopes to be expected; see :func:`inrun_bench.attribution.updates.expected_slopes`."""
        slopes = dict.fromkeys(parameters, ExpectedSlope(0.0))
        for member in self.members:
            own = {name: p for name, p in parameters.items() if self._holder.get(p) is member}
            known = None if last is None else [x for name, x in zip(parameters, last, strict=True) if name in own]
            found = expected_slopes(member, own, known)
            if found is None:
                return None
            slopes |= dict(zip(own, found, strict=True))
        return list(slopes.values())

    @property
    def in_closed_form(self) -> bool:
        """Whether slopes of some elements can be read without those of all."""
        return all(map(is_in_closed_form, self.members))

    def sampled_slopes(
        self, parameters: Mapping[str, Tensor], gradients: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Return slopes of some elements; see :func:`inrun_bench.attribution.updates.sampled_slopes`."""
        slopes: dict[str, Tensor | None] = dict.fromkeys(parameters)
        for member in self.members:
            own = {name: p for name, p in parameters.items() if self._holder.get(p) is member}
            found = sampled_slopes(member, own, self._gradients(member, parameters, gradients) or [])
            slopes |= dict(zip(own, found, strict=True))
        return list(slopes.values())

    def watch(self, before: Callable[..., Any], after: Callable[..., Any]) -> None:
        """Have `before` called before each member's step and `after` after it, as the last of all hooks there are."""
        self.remove()
        for member in self.members:
            self._handles.append(member.register_step_pre_hook(before))
            self._handles.append(member.register_step_post_hook(after))

    def as_read(self, parameters: Mapping[str, nn.Parameter]) -> AsRead | None:
        """Note what the members after the first are about to do, to be held against what they do; None for one."""
        return AsRead(self.members, parameters) if len(self.members) > 1 else None

    def watch_others(self, parameters: Mapping[nn.Parameter, str]) -> Any:
        """Refuse steps of other optimisers on any of `parameters`, until the handle that is returned is removed."""

        def refuse(other: Optimizer, *_: Any) -> None:
            if any(other is member for member in self.members):
                return
            held = [parameters[p] for group in other.param_groups for p in group["params"] if p in parameters]
            if held:
                raise RuntimeError(
                    f"an optimiser that InRunShapley does not know ({type(other).__name__}) is about to move parameter "
                    f"{held[0]!r}; pass all of the model's optimisers: InRunShapley(model, [optimizer, other])"
                )

        return register_optimizer_step_pre_hook(refuse)

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _gradients(
        self, member: Optimizer, parameters: Mapping[str, Tensor], gradients: Sequence[Tensor | None] | None
    ) -> list[Tensor | None] | None:
        if gradients is None:
            return None
        return [g for p, g in zip(parameters.values(), gradients, strict=True) if self._holder.get(p) is member]

    def _check(self, parameter: Tensor, parameters: Mapping[Tensor, str]) -> None:
        if parameter in self._holder:
            raise ValueError(f"parameter {parameters[parameter]!r} is held by two optimisers; each must be by one")
        if parameter not in parameters:
            raise ValueError(
                f"optimizer holds a parameter of shape {list(parameter.shape)} that is none of the model's, so that "
                "its part in the loss cannot be seen; give InRunShapley a module that holds all that is trained, such "
                "as nn.ModuleList([model, head])"
            )


class AsRead:
    """What several optimisers were about to do when it was read, before the first of them stepped.

    Parameters
    ----------
    members : sequence of Optimizer
        All of them.
    parameters : mapping of str to Parameter
        The trained parameters by name.
    """

    def __init__(self, members: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter]) -> None:
        names = {id(p): name for name, p in parameters.items()}
        self._held = {
            id(member): {names[id(p)]: p for group in member.param_groups for p in group["params"] if id(p) in names}
            for member in members
        }
        self._settings = {id(member): _settings(member) for member in members}
        self._seen = {name: _seen(p) for name, p in parameters.items()}
        self._traits = {id(member): traits(_numbers(self._held[id(member)])) for member in members}

    def expect_still(self, member: Optimizer, checks: Numbers, number: int) -> None:
        """Refuse a member that is about to do something else than what was read."""
        held = self._held[id(member)]
        changed = [name for name, p in held.items() if _seen(p) != self._seen[name]]
        if changed or _settings(member) != self._settings[id(member)]:
            raise _refused(number, f"of parameter {changed[0]!r}" if changed else "settings of an optimiser")

        def check(numbers: NDArray[np.float64]) -> None:
            if differ(numbers).any():
                raise _refused(number, f"of one of the parameters {', '.join(map(repr, list(held)[:2]))}, ...")

        if held:
            checks.expect(compared(traits(_numbers(held)), self._traits[id(member)]), check)


def _refused(number: int, what: str) -> RuntimeError:
    return RuntimeError(
        f"step {number}: gradient, weight or learning rate {what} was changed after another optimiser had stepped, and "
        "scores are of the step as it was before; change them before the first optimizer.step() (with a GradScaler, "
        "call unscale_ for every optimiser first)"
    )


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the settings of all groups; one that is a tensor by what tells it from others."""
    return [
        {name: (id(x), x._version) if isinstance(x, Tensor) else x for name, x in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def _seen(p: nn.Parameter) -> tuple[Any, ...]:
    """Return what tells a parameter and its gradient from what they were, as far as torch counts."""
    return p.data_ptr(), p._version, id(p.grad), None if p.grad is None else p.grad._version


def _numbers(held: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """Return each parameter and its gradient, for what torch does not count."""
    given = [x for p in held.values() for x in (p.detach(), p.detach().new_zeros(0) if p.grad is None else p.grad)]
    return [x.to_dense() if x.is_sparse else x for x in given]


def closure_evaluated(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, first: bool
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Evaluate the closure of ``optimizer.step(closure)`` as the optimiser would, and have it get what was returned.

    Parameters
    ----------
    args, kwargs
        What ``step`` was called with, the optimiser first.
    first : bool
        Whether no other optimiser has stepped, which would leave gradients at other weights.

    Returns
    -------
    args, kwargs
        With a closure in its place that returns what the user's did, once; None where there is none.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        return None
    if not first:
        raise RuntimeError(
            "a second optimiser was given a closure: its gradients would be of other weights than the first one's; "
            "call backward() once, and both optimisers' step() after it"
        )
    with torch.enable_grad():
        loss = closure()
    given = [loss]

    def evaluated() -> Any:
        if not given:
            raise RuntimeError("the optimiser evaluates its closure more than once a step, which cannot be scored")
        return given.pop()

    if "closure" in kwargs:
        return args, {**kwargs, "closure": evaluated}
    return (args[0], evaluated, *args[2:]), kwargs


def _unwrapped(optimizer: Any) -> Any:
    """Return what a wrapper steps (accelerate has one), which is an optimiser by its class alone."""
    while isinstance(optimizer, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


def _several(optimizers: Any) -> list[Optimizer]:
    """Return a sequence as a list; anything else alone, for whoever checks it to refuse."""
    return list(optimizers) if isinstance(optimizers, (list, tuple)) else [optimizers]
