"""Which tensors are followed, and what they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from inrun_bench.attribution.capture.custom_functions import custom_function
from inrun_bench.attribution.capture.operation_terms import FollowedParameter, Operation, Source, changed_in_place
from inrun_bench.attribution.capture.saved_tensors import in_backward_pass

__all__ = ["FollowedTensors"]


@dataclass(frozen=True)
class _Followed:
    """A followed tensor, which lives as long as it is followed, lest its id pass to another."""

    tensor: Tensor
    source: Source
    version: int


class FollowedTensors:
    """Parameters and what is derived from them.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        By name.
    without_rule : set of str
        Names of those of which a function of the user's must not make anything unseen; it may grow.
    is_of_parameter : callable
        Whether a tensor lies in the memory of a parameter, so that its numbers change with the optimiser's step.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        without_rule: set[str],
        is_of_parameter: Callable[[Tensor], bool],
    ) -> None:
        self._without_rule, self._is_of_parameter = without_rule, is_of_parameter
        self._followed = {id(p): _Followed(p, FollowedParameter(key, p), p._version) for key, p in parameters.items()}
        self._nodes: set[Any] = set()  # of the graph, that made what is derived
        self._copies: dict[Any, _Followed] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._followed

    def sources_of(self, leaves: list[Any]) -> dict[int, Source]:
        """Return what the followed ones among some arguments come from, by their number.

        Raises
        ------
        RuntimeError
            If one was changed where it was not seen, or a function of the user's made something of a followed one.
        """
        sources: dict[int, Source] = {}
        for slot, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                continue
            followed = self._followed.get(id(leaf)) or self._original(leaf)
            if followed is None:
                self._refuse_custom_function(leaf)
                continue
            if isinstance(leaf, nn.Parameter) and not leaf.requires_grad:  # frozen for this call
                continue
            if isinstance(followed.source, Operation) and followed.tensor._version != followed.version:
                raise changed_in_place(followed.source.name, followed.source.keys)
            sources[slot] = followed.source
        return sources

    def follow(self, operation: Operation, output: Tensor, *, in_place: bool = False) -> None:
        """Follow what is derived from followed ones; `in_place`: the operation has written it into what was there."""
        if in_place and output._base is not None and output._base not in self:
            raise RuntimeError(
                f"{operation.name!r} writes what is computed of parameter "
                f"{', '.join(map(repr, sorted(operation.keys)))} into a part of a tensor, which is then used as a "
                "whole; write x[part] = y, or use torch.cat or torch.where"
            )
        if not self._is_of_parameter(output):
            operation = replace(operation, result=output.detach())
        self._followed[id(output)] = _Followed(output, operation, output._version)
        self._nodes.add(output.grad_fn)

    def forget(self, output: Tensor) -> None:
        """Follow a tensor no longer, into which samples were written."""
        self._followed.pop(id(output), None)

    def follow_copies(self) -> None:
        """Follow also what a reentrant checkpoint makes of its arguments: copies in one memory."""
        self._copies = {_place(followed.tensor): followed for followed in self._followed.values()}

    def _original(self, tensor: Tensor) -> _Followed | None:
        if not self._copies or isinstance(tensor, nn.Parameter) or not (tensor.is_leaf and tensor.requires_grad):
            return None
        return self._copies.get(_place(tensor)) if in_backward_pass() else None

    def _refuse_custom_function(self, tensor: Tensor) -> None:
        name = custom_function(tensor, self._is_followed)
        if name is not None:  # no TypeError, of which Python makes one of its own where it comes from an operator
            raise RuntimeError(
                f"{name} (a torch.autograd.Function) was applied to a parameter that no rule covers, or to what is "
                "computed of one, and what it does with it for each sample is not seen; write it with torch's own "
                "operations, or as a layer with a rule (inrun_bench.attribution.ghost_rule)"
            )

    def _is_followed(self, node: Any) -> bool:
        parameter = getattr(node, "variable", None)
        if parameter is None:
            return node in self._nodes
        followed = self._followed.get(id(parameter))
        return followed is not None and bool(followed.source.keys & self._without_rule)


def _place(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tensor.size(), tensor.stride(), tensor.dtype
