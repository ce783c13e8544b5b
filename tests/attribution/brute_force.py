"""In-Run scores the plain way: per-sample gradients by torch.func, explicit Hessians, quadrature by SciPy.

Shares no code with the engine. Weights are one flat vector; everything is float64.
"""

import numpy as np
import torch
from scipy.integrate import quad_vec
from torch.func import functional_call


class BruteForce:
    """One step of SGD on the loss of a batch, judged by a validation loss."""

    def __init__(self, model, optimizer, batch_loss, sample_loss, validation_loss):
        """Losses take a callable model; `sample_loss(model, i)` is the loss term of sample i, reduction included."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.model = model
        self.names = [name for name, _ in named]
        self.shapes = [p.shape for _, p in named]
        self.w = torch.cat([p.detach().flatten() for _, p in named]).clone()
        group = {p: g for g in optimizer.param_groups for p in g["params"]}
        self.lr = torch.cat([torch.full((p.numel(),), group[p]["lr"], dtype=p.dtype) for _, p in named])
        decay = torch.cat([torch.full((p.numel(),), group[p]["weight_decay"], dtype=p.dtype) for _, p in named])
        self.u0 = self.lr * decay * self.w
        self.sample_loss, self.batch_loss, self.validation_loss = sample_loss, batch_loss, validation_loss

    def at(self, flat):
        parts = flat.split([shape.numel() for shape in self.shapes])
        weights = {n: part.view(shape) for n, part, shape in zip(self.names, parts, self.shapes, strict=True)}
        return lambda *inputs: functional_call(self.model, weights, inputs)

    def validation(self, flat):
        return self.validation_loss(self.at(flat))

    def contributions(self, n):
        return torch.stack([torch.func.grad(lambda w, i=i: self.sample_loss(self.at(w), i))(self.w) for i in range(n)])

    def gradient(self):
        return torch.func.grad(lambda w: self.batch_loss(self.at(w)))(self.w)

    def drop(self):
        """Measured fall of the validation loss over the step."""
        after = self.w - self.u0 - self.lr * self.gradient()
        return float(self.validation(self.w) - self.validation(after))

    def optimizer_account(self):
        return float(self.validation(self.w) - self.validation(self.w - self.u0))

    def probe(self, order):
        g, v = self.gradient(), torch.func.grad(self.validation)
        if order == "first":
            return self.lr * v(self.w)
        if order == "second":
            hessian = torch.func.jacrev(v)(self.w)
            return self.lr * (v(self.w) - hessian @ (self.u0 + self.lr * g / 2))
        integral, _ = quad_vec(
            lambda s: v(self.w - self.u0 - s * self.lr * g).numpy(), 0, 1, epsrel=1e-13, epsabs=1e-15
        )
        return self.lr * torch.from_numpy(integral)

    def scores(self, order, n):
        return (self.contributions(n) @ self.probe(order)).numpy()


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)
