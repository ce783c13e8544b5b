"""Validation losses of many queries, [Q], and the gradient of each, from one pass.

The closure returns one loss a query, whose rows must number the queries as a batch's number its samples: where they are
in each layer is observed as in training (:mod:`inrun_bench.attribution.capture.observation`). One forward and one
backward pass bring each layer's input and output gradient of all queries, and from them the gradient of each is formed,
[Q, *parameter]: Q times the memory of the weights. All are probes of the step, and samples' scores [Q, batch] are
formed together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from inrun_bench.attribution.capture.factors import FactorCall
from inrun_bench.attribution.capture.observation import is_looked_at_again
from inrun_bench.attribution.directions import Stacked
from inrun_bench.attribution.gradient_scaling import dense
from inrun_bench.attribution.layer_terms import Term
from inrun_bench.attribution.transfer import to_host
from inrun_bench.attribution.validation import ValidationLoss, moved_to

__all__ = ["QueryLoss", "QueryLosses"]


class QueryLosses(ValidationLoss):
    """The losses of all queries as a function of the weights; values are float64 [Q].

    Parameters
    ----------
    closure, parameters, others, collecting, as_called
        See :class:`~inrun_bench.attribution.validation.ValidationLoss`; the closure returns one loss a query.
    watching : callable
        Given the number of queries, a context manager that yields the list of terms which a backward pass in it brings.
    watched : callable
        Returns how many calls have been watched up to now.
    budget : callable
        Returns how many bytes the gradients of the queries may take.
    heavy : collection of str
        Weights of layers whose gradient of the sum of losses takes time, and is not needed.
    number : int, optional
        How many queries there are; asked of the closure where None.
    times : int
        How many steps were taken before, which says when it is looked at whether queries depend on each other.
    """

    def __init__(
        self,
        closure: Callable[[], Tensor],
        parameters: Mapping[str, Tensor],
        others: Collection[Tensor],
        collecting: Callable[[Collection[str]], AbstractContextManager[list[FactorCall]]],
        as_called: Callable[[], AbstractContextManager[None]],
        *,
        watching: Callable[[int], AbstractContextManager[list[Term]]],
        watched: Callable[[], int],
        budget: Callable[[], int],
        heavy: Collection[str] = (),
        number: int | None = None,
        times: int = 0,
    ) -> None:
        super().__init__(closure, parameters, others, collecting, as_called)
        self.number = number
        self._watching, self._watched_calls, self._budget = watching, watched, budget
        self._stacks: dict[str, Tensor] | None = None
        self._of_place: Any = None
        self._heavy = frozenset(heavy)
        self._times = times

    def each(self) -> dict[str, QueryLoss]:
        """Return the loss of each query, by its number; the closure is evaluated to know how many there are."""
        if self.number is None:
            self.value()
        assert self.number is not None
        return {str(query): QueryLoss(self, query) for query in range(self.number)}

    def gradients(self) -> Stacked:
        """Return the gradient of each query's loss at the present weights, [Q, *parameter] by parameter."""
        here = self._place(None)
        if self._stacks is None or self._of_place != here:
            self._stacks, self._of_place = self._differentiated(), here
        return Stacked(self._stacks)

    def let_go(self) -> None:
        """Let go of the gradients."""
        self._stacks = None

    def _differentiated(self) -> dict[str, Tensor]:
        self._expect_room()
        if self.number is None:
            self.value()
        assert self.number is not None
        with torch.enable_grad(), moved_to(self._parameters, None), torch.compiler.set_stance("force_eager"):
            losses, terms, weighted = self._watched(self.number)
            value = losses.detach().to(torch.float64, copy=True)
            stacks: dict[str, Tensor] = {}
            with torch.no_grad():
                while terms:
                    for key, own in terms.pop(0).gradients_of_each().items():
                        stacks[key] = stacks[key].add_(own) if key in stacks else own
        self._note(None, value, None)
        kinds = dict(zip(self._names, self._parameters, strict=True))
        found = {
            name: stacks[name].to(p.dtype) if name in stacks else p.detach().new_zeros(self.number, *p.shape)
            for name, p in kinds.items()
        }
        if weighted is not None:
            self._expect_sum(found, *weighted)
        return found

    def _watched(self, number: int) -> tuple[Tensor, list[Term], tuple[Tensor, list[Tensor]] | None]:
        """Return the losses, what their backward pass brings, and now and then the gradient of a weighted sum."""
        weighted = None
        try:
            with self._watching(number) as terms:
                before = self._watched_calls()
                losses = self._loss()
                watched = self._watched_calls() - before
                self._times += 1
                if (self.thorough or is_looked_at_again(self._times)) and losses.requires_grad:
                    draw = torch.Generator(losses.device).manual_seed(0)
                    weights = torch.randn(number, dtype=losses.dtype, device=losses.device, generator=draw)
                    gradients = torch.autograd.grad(
                        losses, self._parameters, weights, retain_graph=True, allow_unused=True
                    )
                    given = zip(self._parameters, gradients, strict=True)
                    weighted = weights, [torch.zeros_like(p) if g is None else dense(g) for p, g in given]
                    terms.clear()
                self._bring(losses, terms, watched)
                return losses, list(terms), weighted
        except ValueError as error:
            with torch.no_grad():
                self._loss()  # which may be of another number of queries, and says so
            error.add_note("Found in the pass of the queries: the model is to be called on all of them, a row each.")
            raise

    def _bring(self, losses: Tensor, terms: list[Term], watched: int) -> None:
        """Differentiate losses, for what is seen on the way; gradients of weights are left away where nothing is lost.

        That is so where all calls that were `watched` have brought their terms.
        """
        light = [p for name, p in zip(self._names, self._parameters, strict=True) if name not in self._heavy]
        if light and self._heavy and not self.thorough:
            self._differentiate(losses.sum(), light, retain=True)
            if len(terms) == watched:
                return
            terms.clear()
            self._heavy = frozenset()
        self._differentiate(losses.sum())

    def _expect_sum(self, found: Mapping[str, Tensor], weights: Tensor, whole: Sequence[Tensor]) -> None:
        """Refuse gradients of queries that do not add up to that of a weighted sum of their losses."""
        sizes = torch.stack([g.norm().double() for g in whole]).norm()
        for name, gradient in zip(self._names, whole, strict=True):
            own = found[name].reshape(len(weights), -1)
            off = (weights.to(own.dtype) @ own - gradient.reshape(-1)).norm().double()
            eps = max(torch.finfo(kind).eps for kind in (gradient.dtype, torch.float32))  # models may round inside
            scale = own.norm(dim=1).sum().double()
            allowed = eps**0.5 / 4 * (gradient.norm().double() + scale * eps**0.25) + 16 * eps * sizes
            if not to_host((off <= allowed).double())():
                raise ValueError(
                    f"the gradients of the queries' losses do not add up, in {name!r}: a query's loss depends on other "
                    "queries' rows, or on weights in a way that is not seen. Each loss must be of its own row alone"
                )

    def _expect_room(self) -> None:
        wanted = (self.number or 1) * sum(p.numel() * p.element_size() for p in self._parameters)
        allowed = self._budget()
        if wanted > allowed:
            raise ValueError(
                f"the gradients of {self.number} queries take {wanted} bytes, more than the {allowed} that "
                "memory_budget allows; give fewer queries at once (one engine each), or a larger memory_budget"
            )

    def _check_form(self, loss: Any) -> None:
        if not isinstance(loss, Tensor) or loss.dim() != 1 or not len(loss):
            got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"with per_query=True, validation must return one loss a query, [queries]; got {got}")
        if self.number is not None and len(loss) != self.number:
            raise ValueError(
                f"validation returned {len(loss)} losses, and {self.number} before; queries must stay the same"
            )
        self.number = len(loss)


class QueryLoss:
    """The loss of one query; see :class:`~inrun_bench.attribution.validation.Loss`."""

    def __init__(self, losses: QueryLosses, query: int) -> None:
        self._losses, self._query = losses, query

    @property
    def thorough(self) -> bool:
        """Whether it is looked at closely; as of all queries."""
        return self._losses.thorough

    @thorough.setter
    def thorough(self, thorough: bool) -> None:
        self._losses.thorough = thorough

    @property
    def closure(self) -> ValidationLoss:
        """All losses."""
        return self._losses

    @property
    def knows_present(self) -> bool:
        """Whether the loss at the present weights is known already."""
        return self._losses.knows_present

    def value(self, at: Sequence[Tensor] | None = None) -> Tensor:
        """Return the loss, in nats."""
        return self._losses.value(at)[self._query]

    def gradient(self, at: Sequence[Tensor] | None = None, *, keep: bool = False) -> tuple[Tensor, list[Tensor]]:  # noqa: ARG002
        """Return the loss and its gradient at the present weights, one tensor a parameter."""
        own = self._losses.gradients()[self._query]
        return self.value(), list(own.values())

    def gradient_and_hessian_product(
        self,
        vector: Sequence[Tensor],  # noqa: ARG002
        at: Sequence[Tensor] | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Refuse: queries have no second derivatives here."""
        raise RuntimeError("per_query=True is for order='first': queries bring no second derivatives")

    def moved(self) -> None:
        """Learn that the present weights are new ones."""
        self._losses.moved()

    def copied(self, weights: Sequence[Tensor]) -> None:
        """Learn that `weights` are a copy of the present ones."""
        self._losses.copied(weights)

    def forget_copies(self) -> None:
        """Forget all but the present weights."""
        self._losses.forget_copies()
