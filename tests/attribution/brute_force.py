"""In-Run scores the plain way: per-sample gradients by autograd, real optimiser steps, Hessians, quadrature by SciPy.

Shares no code with the engine. Weights are one flat vector; everything is float64.
"""

import copy

import numpy as np
import torch
from scipy.integrate import quad_vec
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


class BruteForce:
    """One optimiser step on the loss of a batch, judged by a validation loss.

    Losses take a callable model; `sample_loss(model, i)` is the loss term of sample i, reduction included. `received`
    is what is done to the gradient before the optimiser gets it.
    """

    def __init__(self, model, optimizer, n, sample_loss, validation_loss, received=lambda g: g):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.model, self.n = model, n
        self.names = [name for name, _ in named]
        self.shapes = [p.shape for _, p in named]
        self.w = torch.cat([p.detach().flatten() for _, p in named]).clone()
        self.sample_loss, self.validation_loss = sample_loss, validation_loss
        self.g = self.contributions().sum(0)
        self.received = received(self.g)
        self.base = self.stepped(model, optimizer, torch.zeros_like(self.g))
        self.after = self.stepped(model, optimizer, self.received)

    def split(self, flat):
        parts = flat.split([shape.numel() for shape in self.shapes])
        return {n: part.view(shape) for n, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def at(self, flat):
        weights = self.split(flat)
        return lambda *inputs, **options: functional_call(self.model, weights, inputs, options)

    def validation(self, flat):
        return self.validation_loss(self.at(flat))

    def gradient_of(self, function, at):
        leaf = at.detach().clone().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf)[0]

    def contributions(self):
        return torch.stack(
            [self.gradient_of(lambda w, i=i: self.sample_loss(self.at(w), i), self.w) for i in range(self.n)]
        )

    def stepped(self, model, optimizer, flat):
        """The weights after the optimiser's own step with the given gradient."""
        model, optimizer = copy.deepcopy((model, optimizer))
        optimizer._optimizer_step_pre_hooks.clear()
        optimizer._optimizer_step_post_hooks.clear()
        for name, gradient in self.split(flat).items():
            model.get_parameter(name).grad = gradient.clone()
        optimizer.step()
        return torch.cat([model.get_parameter(name).detach().flatten() for name in self.names])

    def drop(self):
        """Measured fall of the validation loss over the step."""
        return float(self.validation(self.w) - self.validation(self.after))

    def optimizer_account(self):
        return float(self.validation(self.w) - self.validation(self.base))

    def slope(self):
        """The secant of the update, and of what was done to the gradient before."""
        return torch.where(self.g == 0, 0.0, (self.base - self.after) / self.g)

    def direction(self, order):
        def v(w):
            return self.gradient_of(self.validation, w)

        if order == "first":
            return v(self.w)
        if order == "second":
            along = self.w - (self.base + self.after) / 2  # u(0) + D g / 2
            with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                product = torch.autograd.functional.hvp(self.validation, self.w, along)[1]
            return v(self.w) - product
        if order == "trapezoid":
            return (v(self.base) + v(self.after)) / 2
        if order == "midpoint":
            return v((self.base + self.after) / 2)
        integral, _ = quad_vec(
            lambda s: v(self.base + s * (self.after - self.base)).numpy(), 0, 1, epsrel=1e-13, epsabs=1e-15
        )
        return torch.from_numpy(integral)

    def scores(self, order):
        return (self.contributions() @ (self.slope() * self.direction(order))).numpy()


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)
