"""Watching a model: layers with rules, fused backward passes, and operations on parameters that no rule covers.

Each part attaches and detaches itself; what they have to tell each other, they are handed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from inrun_bench.attribution.capture.batch_axis import DeclaredAxes
from inrun_bench.attribution.capture.calls import MANY, ObservedCalls
from inrun_bench.attribution.capture.factors import ValidationFactors
from inrun_bench.attribution.capture.fused import FusedLayers
from inrun_bench.attribution.capture.hooks import LayerHook
from inrun_bench.attribution.capture.layers import WatchedLayers, find_sites
from inrun_bench.attribution.capture.operations import FollowedOperations
from inrun_bench.attribution.layer_terms import Aimed, Joint, MicroBatch, Term
from inrun_bench.attribution.products.backend import Backend

__all__ = ["Capture"]

BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Capture:
    """All that watches a model.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training.
    receive : callable
        Called in the backward pass with the term of each call of each layer and operation, while watching.
    axes : DeclaredAxes
        What the user says about batch axes.
    rules : {"auto", "project", "weight-gradient", "gram"}
        How linear maps and convolutions are scored where the probe is known in time.
    kernels : {"auto", "triton", "torch"}
        What runs the products that have kernels, see :mod:`inrun_bench.attribution.products`.

    Attributes
    ----------
    parameters : dict of str to Parameter
        The trained parameters by name; a parameter that several layers share appears once.
    factors : ValidationFactors
        Validation gradients in factors.
    """

    def __init__(
        self,
        model: nn.Module,
        receive: Callable[[Term], None],
        axes: DeclaredAxes,
        rules: str,
        kernels: Backend = "auto",
    ) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        unknown = sorted(axes.by_name.keys() - {name for name, _ in model.named_modules()})
        if unknown:
            raise ValueError(f"batch_axis names {unknown[0]!r}, which is no layer of the model")
        sites = find_sites(model, {p: name for name, p in self.parameters.items()}, kernels)
        self._seen: set[Any] = set()  # switches under which a step has been run as it is written
        covered = set().union(*(site.keys for site in sites))
        without_samples = set().union(*(site.keys for site in sites if axes.of(site.name) is None))
        self.factors = ValidationFactors(sites, rules)
        self._receive = receive
        self._operations = FollowedOperations(
            self.parameters,
            self._looking_away,
            lambda key: self._calls.of_operation(key),
            (self.parameters.keys() - covered) | without_samples,
        )
        self._calls = ObservedCalls(model, sites, self.parameters, axes, self._operations)
        self._coupling = _Coupling(model)
        self._fused = FusedLayers(sites, rules, self._calls, self.factors)
        self._layers = WatchedLayers(
            sites, self._looking_away, self._calls, self._fused, self._operations, self.factors
        )
        self._uses = Counter(key for site in sites for key in site.keys)
        self._owners = [
            (module._parameters, attribute, name, p, p.device)
            for name, p in self.parameters.items()
            for module in model.modules()
            for attribute, own in module.named_parameters(recurse=False)
            if own is p
        ]

    @property
    def chosen(self) -> dict[str, Any]:
        """The rule that each linear map's and convolution's last call was scored by, where the probe was known."""
        return self._fused.chosen

    @property
    def contradicted(self) -> str | None:
        """What was found not to hold that values were counted by; None while all of it does."""
        return self._calls.contradicted

    def remove(self) -> None:
        """Take all hooks off the model."""
        for part in (self._layers, self._fused, self._calls, self._coupling):
            part.remove()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be ready to watch forward passes in this block, from :meth:`show` on.

        In the first one, and where switches of the model have changed, compiled models are run as they are written,
        since a compiled graph shows no numbers.
        """
        switches = self._calls.switches
        seen = switches in self._seen or len(self._seen) >= MANY
        with self._operations, nullcontext() if seen else torch.compiler.set_stance("force_eager"):
            try:
                yield
                if not seen:
                    self._calls.run_as_written(self._operations.where)
                    self._seen.add(switches)
            finally:
                self.show(None)
                self._calls.forget()
                self._layers.latest = self._fused.latest = None
                self._layers.forget()

    def begin(self) -> None:
        """Watch from now on: what is done before the samples are known may have to do with parameters as well."""
        self._operations.begin()

    def show(self, micro_batch: MicroBatch | None) -> None:
        """Say which samples the coming forward passes hold; None: look away."""
        for part in (self._calls, self._layers, self._fused, self._operations, self._coupling):
            part.micro_batch = micro_batch
        if micro_batch is not None:
            self._layers.latest = self._fused.latest = micro_batch

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Take what is called in this block for no forward pass of training."""
        micro_batch = self._operations.micro_batch
        self.show(None)
        try:
            yield
        finally:
            self.show(micro_batch)

    def _looking_away(self, term: Term) -> None:
        """Hand a term on, and look away while it is scored, which may run its layer again."""
        if self._calls.looking_back:
            return
        with self.looking_away():
            self._receive(term)

    def aim(self, aimed: Aimed | None) -> None:
        """Say which probes samples may be scored with on the way, and who takes the scores; None: none is known."""
        if aimed is None:
            self._fused.aim(None, None)
            return
        probes, receive = aimed

        def unless_looking_back(*scores: Any) -> None:
            if not self._calls.looking_back:
                receive(*scores)

        self._fused.aim(probes, unless_looking_back)

    def join(self, joint: Joint | None) -> None:
        """Say who takes what layers bring where validation samples are among the rows; None: there are none."""
        self._fused.joint = joint

    @property
    def compiled(self) -> bool:
        """Whether any layer was met in a compiled graph."""
        return self._calls.compiled

    @property
    def watched(self) -> int:
        """How many calls and operations have been watched, whose terms a backward pass brings if it reaches them."""
        return self._layers.watched + self._operations.watched

    @property
    def weights_of_products(self) -> set[str]:
        """Weights of linear maps and convolutions."""
        return self._fused.weights

    def is_used_elsewhere(self, key: str) -> bool:
        """Whether a parameter is used outside of the one layer that it belongs to, as far as has been seen."""
        return self._uses[key] > 1 or key in self._operations.keys

    def as_called_last(self) -> AbstractContextManager[None]:
        """Put modules into the modes in which they were called last, to differentiate what they have computed."""
        return self._calls.as_called_last()

    def worth_factoring(self) -> set[str]:
        """Return the weights whose validation gradient is better left in factors."""
        return self.factors.worth_collecting(self._operations.keys)

    def check_parameters(self) -> None:
        """Refuse to go on with parameters that are no longer those that the engine was made for."""
        for held, attribute, name, parameter, device in self._owners:
            if held.get(attribute) is not parameter:
                raise RuntimeError(
                    f"parameter {name!r} was replaced since InRunShapley was made; "
                    "make a new engine, or change the weights in place"
                )
            if parameter.device != device:
                raise RuntimeError(
                    f"parameter {name!r} moved from {device} to {parameter.device} since InRunShapley was made; "
                    "move the model first and make the engine then"
                )


class _Coupling:
    """Refuses layers that normalise by the statistics of the batch, before anything is observed of their model."""

    def __init__(self, model: nn.Module) -> None:
        self.micro_batch: MicroBatch | None = None
        self._handles: list[Any] = []
        self._names: dict[nn.Module, str] = {
            layer: name for name, layer in model.named_modules() if isinstance(layer, BATCH_NORM)
        }
        self._refuse(self._names)
        for module in model.modules():
            if any(layer in self._names for layer in module.modules()):
                hook = LayerHook(module, self._enter)
                self._handles.append(module.register_forward_pre_hook(hook, prepend=True))

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, module: nn.Module, *_: Any) -> None:
        if self.micro_batch is not None:
            self._refuse(layer for layer in module.modules() if layer in self._names)

    def _refuse(self, layers: Iterable[nn.Module]) -> None:
        for layer in layers:
            if layer.training:
                raise TypeError(_coupled(self._names[layer], layer))


def _coupled(name: str, layer: nn.Module) -> str:
    where = f"{name!r} ({type(layer).__name__})" if name else f"the model itself ({type(layer).__name__})"
    return (
        f"batch norm couples the samples of a batch, so {where} has no per-sample gradient in training mode; "
        "replace it by nn.GroupNorm, or freeze its statistics with eval()"
    )
