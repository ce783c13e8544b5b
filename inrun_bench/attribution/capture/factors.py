"""Validation gradients in factors: what goes into and comes out of linear maps in a validation pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from inrun_bench.attribution.families import find_scored_backward
from inrun_bench.attribution.families.costs import CallSizes, fastest
from inrun_bench.attribution.layer_terms import LayerSite

__all__ = ["FactorCall", "ValidationFactors"]


@dataclass(frozen=True)
class FactorCall:
    """A call of a linear map in a validation pass: its weight's name and orientation, its input and its output."""

    key: str
    a: Tensor
    output: Tensor
    transposed: bool


class ValidationFactors:
    """Collects the factors of validation gradients, and says of which weights they are worth collecting.

    Parameters
    ----------
    sites : sequence of LayerSite
        The layers with rules.
    rules : str
        The rule that was asked for, or ``"auto"``.

    Attributes
    ----------
    calls : dict of str to CallSizes
        The last call of each linear map in training, by the layer's name.
    """

    def __init__(self, sites: Sequence[LayerSite], rules: str) -> None:
        self.calls: dict[str, CallSizes] = {}
        self._rules, self._sites = rules, sites
        self._transposed = {
            site.name: how.transposed
            for site in sites
            if (how := find_scored_backward(site.layer)) is not None and how.transposed is not None
        }
        self._positions: dict[str, int] = {}
        self._resumed: set[str] | None = None
        self._collecting: tuple[Collection[str], list[FactorCall]] | None = None

    def worth_collecting(self, elsewhere: Collection[str]) -> set[str]:
        """Return the weights whose validation gradient is better left in factors, by the sizes of their last calls.

        Weights that are used `elsewhere` than in their layer have other parts.
        """
        if not self.calls and self._resumed is not None:
            return self._resumed
        uses = Counter(key for site in self._sites for key in site.keys)
        keys = set()
        for site in self._sites:
            key, call, positions = site.key_of("weight"), self.calls.get(site.name), self._positions.get(site.name)
            if key is None or call is None or positions is None or uses[key] > 1 or key in elsewhere:
                continue
            call = replace(call, validation_positions=positions)
            if self._rules == "gram" or (self._rules == "auto" and fastest(call) == "gram"):
                keys.add(key)
        return keys

    def resume(self, keys: set[str]) -> None:
        """Learn what :meth:`worth_collecting` returned where an earlier run stopped; no sizes are known yet."""
        self._resumed = keys

    @contextmanager
    def collecting(self, keys: Collection[str]) -> Iterator[list[FactorCall]]:
        """Collect what goes into and comes out of the linear maps of these weights, in a validation pass."""
        self._collecting = (keys, [])
        try:
            yield self._collecting[1]
        finally:
            self._collecting = None

    def note(self, site: LayerSite, a: Tensor, output: Tensor) -> None:
        """Be shown a call of a layer in a validation pass."""
        transposed = self._transposed.get(site.name)
        if transposed is None:
            return
        self._positions[site.name] = a.shape[:-1].numel()
        key = site.key_of("weight")
        if self._collecting is not None and key in self._collecting[0]:
            self._collecting[1].append(FactorCall(str(key), a.detach(), output, transposed))
