"""Linear maps and convolutions that are run with a backward pass of ours, which scores their samples.

The layer's own backward pass is replaced, so that nothing is multiplied twice; how a family's gradients are formed is
told by its :class:`~inrun_bench.attribution.families.scored_backward.ScoredBackward`. The rule needs the probe during
the backward pass; a late one is served by the ghost rules of :mod:`inrun_bench.attribution.families`. Which of the two
a call of a layer takes, :mod:`inrun_bench.attribution.families.costs` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inrun_bench.attribution.capture.batch_axis import Unclear
from inrun_bench.attribution.capture.calls import ObservedCalls
from inrun_bench.attribution.capture.compiled import announce, scored_linear
from inrun_bench.attribution.capture.factors import ValidationFactors
from inrun_bench.attribution.capture.hooks import LayerForward, plain_forward
from inrun_bench.attribution.capture.observation import Seen
from inrun_bench.attribution.capture.saved_tensors import in_backward_pass
from inrun_bench.attribution.directions import Direction, Factors, Stacked, stacked
from inrun_bench.attribution.families import find_scored_backward
from inrun_bench.attribution.families.costs import CallSizes, RuleName, fastest
from inrun_bench.attribution.families.scored_backward import ScoredBackward
from inrun_bench.attribution.layer_terms import Joint, LayerSite, LayerTerm, MicroBatch
from inrun_bench.attribution.products.backend import Backend

__all__ = ["FusedLayers", "Joined", "Scored", "joint_call", "joint_gradients", "scored_call", "scored_gradients"]


class FusedLayers:
    """Linear maps and convolutions whose forward passes are routed through here.

    Parameters
    ----------
    sites : sequence of LayerSite
        The layers with rules.
    rules : {"auto", "project", "weight-gradient", "gram"}
        Which rule is to be taken where the probe is known in time.
    calls : ObservedCalls
        Says what numbers the samples.
    factors : ValidationFactors
        Told of the sizes of calls.

    Attributes
    ----------
    chosen : dict of str to str
        The rule that each layer's last call was scored by, where the probe was known.
    micro_batch, latest : MicroBatch or None
        Of the forward passes to come, and of the last ones, for compiled graphs.
    entered : list
        What numbers the samples in the calls of layers that are going on.
    joint : Joint or None
        Who takes what layers bring where validation samples are among the rows.
    """

    def __init__(
        self, sites: Sequence[LayerSite], rules: str, calls: ObservedCalls, factors: ValidationFactors
    ) -> None:
        self.chosen: dict[str, RuleName] = {}
        self.micro_batch: MicroBatch | None = None
        self.latest: MicroBatch | None = None
        self.entered: list[Seen] = []
        self._sites, self._rules, self._calls, self._factors = sites, rules, calls, factors
        self._probes: Sequence[Direction] | None = None
        self._receive: Callable[[LayerSite, MicroBatch, Tensor, torch.dtype], None] | None = None
        self.joint: Joint | None = None
        self._scored = False
        self._chosen_for: dict[Any, tuple[CallSizes, Any]] = {}
        self._how = {site.name: how for site in sites if (how := find_scored_backward(site.layer)) is not None}
        self._number = announce(self)
        self._replaced: list[Any] = []
        for slot, site in enumerate(sites):
            if site.name in self._how and site.key_of("weight") and "forward" not in vars(site.layer):
                site.layer.__dict__["forward"] = LayerForward(site.layer, partial(self._run, slot, site))
                self._replaced.append(site.layer)

    @property
    def weights(self) -> set[str]:
        """The trained weights of the layers that can score themselves."""
        return {key for site in self._sites if site.name in self._how and (key := site.key_of("weight")) is not None}

    def remove(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._replaced:
            del layer.forward
        self._replaced.clear()

    def aim(
        self,
        probes: Sequence[Direction] | None,
        receive: Callable[[LayerSite, MicroBatch, Tensor, torch.dtype], None] | None,
    ) -> None:
        """Say which probes samples are scored with on the way, and who takes the scores; None: no probe is known."""
        self._probes, self._receive = probes, receive

    def take_scored(self) -> bool:
        """Return whether the layer that was run last scores itself."""
        scored, self._scored = self._scored, False
        return scored

    def score_compiled(self, slot: int, a: Tensor, b: Tensor, with_bias: bool) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of a linear map in a compiled graph, and score its samples on the way."""
        site = self._sites[slot]
        if self.latest is None or (self._probes is None and self.joint is None):
            raise RuntimeError(f"{site.where} was differentiated after its step; call backward() inside the with-block")
        self.latest.of_a_graph()
        if self.joint is not None:
            return joint_gradients(self._call_to_join(site, self.joint, a), a, b, with_bias=with_bias)
        return scored_gradients(self._call_to_score(site, self.latest), a, b, with_bias=with_bias)

    def _run(self, slot: int, site: LayerSite, a: Tensor) -> Any:
        """Run a layer, with a backward pass that scores its samples if that is the fastest rule."""
        layer: Any = site.layer
        micro_batch, probes, how = self.micro_batch, self._probes, self._how[site.name]
        joint = self.joint
        n_probes = len(probes or ()) if joint is None else len(joint.sets)
        if micro_batch is None or not n_probes or a.shape[0] != micro_batch.size or not torch.is_grad_enabled():
            return plain_forward(layer, a)
        if not torch.compiler.is_compiling() and site.frozen is not False:
            return plain_forward(layer, a)
        call, rule = self._call_and_rule(site, a, micro_batch.size, n_probes)
        if torch.compiler.is_compiling():
            rule = rule if joint is None else "weight-gradient"
            seen = self._calls.of_compiled_layer(site)
            first = seen == 0 or (isinstance(seen, Unclear) and micro_batch.size not in a.shape[1:-1])
            if rule != "weight-gradient" or how.transposed is None or not first:
                return plain_forward(layer, a)
            self._scored = True
            return scored_linear(a, layer.weight, layer.bias, how.transposed, self._number, slot)
        if not self.entered or not _numbers_rows(self.entered[-1], micro_batch.size):
            return plain_forward(layer, a)
        if joint is not None:
            self._scored = True
            return joint_call(self._call_to_join(site, joint, a), a)
        assert probes is not None
        if not isinstance(probes, Stacked) and isinstance(probes[0][str(site.key_of("weight"))], Factors):
            rule = "gram"
        self.chosen[site.name] = rule
        if how.transposed is not None:
            self._factors.calls[site.name] = call
        if rule != "weight-gradient":
            return plain_forward(layer, a)
        self._scored = True
        scored = self._call_to_score(site, micro_batch)
        if in_backward_pass():
            scored = replace(scored, receive=_computed_anew(micro_batch, scored.receive))
        return scored_call(scored, a)

    def _call_and_rule(self, site: LayerSite, a: Tensor, size: int, n_probes: int) -> tuple[CallSizes, Any]:
        """Return what a call costs, and the rule that is chosen for it; calls are few that differ in shape."""
        form = (site.name, a.shape, a.device.type, size, n_probes)
        known = None if torch.compiler.is_compiling() else self._chosen_for.get(form)
        if known is None:
            how = self._how[site.name]
            call = CallSizes(size, *how.size(site.layer, a), how.price, n_probes, device=a.device.type)
            known = call, fastest(call) if self._rules in ("auto", "gram") else self._rules
            if not torch.compiler.is_compiling():
                self._chosen_for[form] = known
        return known

    def _call_to_score(self, site: LayerSite, micro_batch: MicroBatch) -> Scored:
        probes, receive = self._probes, self._receive
        assert probes is not None
        assert receive is not None
        keys = str(site.key_of("weight")), site.key_of("bias")
        return Scored(
            site.layer, self._how[site.name], *keys, probes, partial(receive, site, micro_batch), site.kernels
        )

    def _call_to_join(self, site: LayerSite, joint: Joint, a: Tensor) -> Joined:
        """Return a call that brings the gradients of validation and training rows apart."""
        rule = self._rule_of_joint(site, a, joint)
        self.chosen[site.name] = rule
        return Joined(site, self._how[site.name], rule, joint)

    def _rule_of_joint(self, site: LayerSite, a: Tensor, joint: Joint) -> RuleName:
        """Return the rule of a call on all rows, of which those of validation are known to be as many as they are."""
        how, form = self._how[site.name], (site.name, a.shape, a.device.type, joint.rows, len(joint.sets))
        known = self._chosen_for.get(form)
        if known is None:
            positions, d_in, d_out = how.size(site.layer, a)
            size, validation = joint.training.size, joint.rows.validation
            in_factors = positions * validation if how.transposed is not None else None
            call = CallSizes(size, positions, d_in, d_out, how.price, len(joint.sets), in_factors, device=a.device.type)
            rule: Any = fastest(call) if self._rules == "auto" else self._rules
            known = call, "project" if rule == "gram" and in_factors is None else rule
            self._chosen_for[form] = known
        chosen: RuleName = known[1]
        return chosen


def _computed_anew(micro_batch: MicroBatch, receive: Callable[..., None]) -> Callable[..., None]:
    def checked(*scores: Any) -> None:
        micro_batch.computed_anew()
        receive(*scores)

    return checked


def _numbers_rows(seen: Seen, size: int) -> bool:
    """Whether the rows of the first axis are the samples."""
    return (not isinstance(seen, bool) and seen == 0) or (seen == "folded" and size == 1)


@dataclass(frozen=True)
class Scored:
    """Where the scores of one call go.

    Attributes
    ----------
    layer, how : the layer and its :class:`ScoredBackward`
    weight_key, bias_key : str or None
        The parameters' names among the model's; None for one that is absent or not trained.
    probes : sequence of mappings
        Of parameters' names to directions, one mapping a validation set.
    receive : callable
        Takes the scores, [probes, B], and what they were computed in, in the backward pass.
    backend : {"auto", "triton", "torch"}
        What forms a linear map's gradient, see :mod:`inrun_bench.attribution.products.backend`.
    """

    layer: Any
    how: ScoredBackward
    weight_key: str
    bias_key: str | None
    probes: Sequence[Direction]
    receive: Callable[[Tensor, torch.dtype], None]
    backend: Backend = "auto"


def scored_call(call: Scored, a: Tensor) -> Tensor:
    """Return the layer's output for the input `a`; its backward pass brings gradients and scores together."""
    with torch._C.DisableTorchFunction():  # of which only the layer as a whole is an operation
        output: Tensor = _WithScores.apply(a, call.layer.weight, call.layer.bias, call)  # type: ignore[no-untyped-call]
    return output


class _WithScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, bias: Tensor | None, call: Scored | Joined) -> Tensor:
        device = a.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else a.dtype
        a, cast = a.to(kind), weight.to(kind)
        ctx.call = call
        ctx.save_for_backward(a, cast)
        ctx.kinds = (weight.dtype, None if bias is None else bias.dtype)
        output = call.how.forward(call.layer, a, cast, None if bias is None else bias.to(kind))
        return output if output._base is None else output.data  # into a view that a function returns nobody may write

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        call: Any = ctx.call
        a, weight = ctx.saved_tensors
        weight_kind, bias_kind = ctx.kinds
        for_a = call.how.input_gradient(call.layer, a, b, weight) if ctx.needs_input_grad[0] else None
        form = joint_gradients if isinstance(call, Joined) else scored_gradients
        for_weight, for_bias = form(call, a, b, with_bias=ctx.needs_input_grad[2])
        return for_a, for_weight.to(weight_kind), None if for_bias is None else for_bias.to(bias_kind), None


def scored_gradients(call: Scored, a: Tensor, b: Tensor, *, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of weight and bias, and hand the scores that come along to the call's receiver.

    Parameters
    ----------
    call : Scored
        The layer, its probes and the receiver.
    a, b : Tensor
        The layer's input and the gradient of its output, of one dtype.
    with_bias : bool
        Whether the bias's gradient is asked for; its scores are added where its key is given.
    """
    q = stacked(call.probes, call.weight_key)
    q_bias = None
    if with_bias:
        key = call.bias_key
        q_bias = q.new_zeros(len(q), len(call.layer.bias)) if key is None else stacked(call.probes, key)
    gradient, bias_gradient, scores = call.how.gradients(call.layer, a, b, q, q_bias, call.backend)
    call.receive(scores, b.dtype)
    return gradient, bias_gradient


@dataclass(frozen=True)
class Joined:
    """One call of a layer whose last rows are validation samples.

    Attributes
    ----------
    site, how : the layer and its :class:`ScoredBackward`
    rule : str
        How training rows are scored where the probe is known with the layer's own part of it.
    joint : Joint
        Who takes what it brings.
    """

    site: LayerSite
    how: ScoredBackward
    rule: RuleName
    joint: Joint

    @property
    def layer(self) -> Any:
        """The layer itself."""
        return self.site.layer

    def keys(self, *, with_bias: bool) -> list[str]:
        """Return the names of the weight and, where its gradient is asked for, of the bias."""
        names = ["weight", "bias"] if with_bias else ["weight"]
        return [str(self.site.key_of(name)) for name in names]


def joint_call(call: Joined, a: Tensor) -> Tensor:
    """Return the layer's output for the input `a`; parameters get the gradient of the training rows alone."""
    call.joint.called(call.keys(with_bias=call.site.key_of("bias") is not None))
    with torch._C.DisableTorchFunction():
        output: Tensor = _WithScores.apply(a, call.layer.weight, call.layer.bias, call)  # type: ignore[no-untyped-call]
    return output


def joint_gradients(call: Joined, a: Tensor, b: Tensor, *, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of weight and bias by the training rows, and hand on what validation rows bring.

    Parameters
    ----------
    call : Joined
        The layer, and who takes the gradients of the validation rows.
    a, b : Tensor
        The layer's input and the gradient of its output, of one dtype, all rows.
    with_bias : bool
        Whether the bias's gradient is asked for.
    """
    layer, how, joint = call.layer, call.how, call.joint
    keys = call.keys(with_bias=with_bias)
    if joint.looks_away(call.site, b):
        return how.weight_gradient(layer, a, b, with_bias=with_bias)
    in_factors = call.rule == "gram" and joint.takes_factors(keys)
    of_sets: list[list[Tensor | Factors]] = []
    for rows in joint.sets:
        if in_factors:
            own = Factors(a[rows].flatten(0, -2), b[rows].flatten(0, -2), bool(how.transposed))
            of_sets.append([own, own.gradients.sum(0)] if with_bias else [own])
            continue
        found = how.weight_gradient(layer, a[rows], b[rows], with_bias=with_bias)
        of_sets.append([gradient for gradient in found if gradient is not None])
    probes = joint.bring(keys, of_sets)
    a, b = (x[joint.training.rows] for x in (a, b))
    if probes is not None and call.rule == "weight-gradient":
        q = [stacked(probes, key) for key in keys]
        q_bias = q[1] if with_bias else None
        gradient, bias_gradient, scores = how.gradients(layer, a, b, q[0], q_bias, call.site.kernels)
        joint.take_scores(call.site, scores, b.dtype)
    else:
        gradient, bias_gradient = how.weight_gradient(layer, a, b, with_bias=with_bias)
        formed = dict(zip(keys, (gradient, bias_gradient), strict=False))
        joint.receive_training(
            LayerTerm(call.site, joint.training, a, b), {key: g for key, g in formed.items() if g is not None}
        )
    return gradient, bias_gradient
