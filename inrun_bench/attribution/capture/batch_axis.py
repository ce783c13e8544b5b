"""Which axis of a layer's input and output numbers the samples of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

__all__ = ["BatchAxis", "DeclaredAxes", "Unclear", "batch_first", "candidates", "repeated"]

BatchAxis: TypeAlias = int | Literal["folded"] | None
"""None: no axis does, the layer sees positions and no samples; ``"folded"``: the first axis numbers samples and
positions, samples slowest."""


@dataclass(frozen=True)
class Unclear:
    """No axis was observed to number the samples, and why.

    Attributes
    ----------
    reason : str
        Why.
    everywhere : bool
        Whether that is so of the whole model.
    by_size : bool
        Whether an axis that is told by its length alone is to be believed: of an operation outside of all modules, or
        where the user has declared the axis.
    declared : int, optional
        The declared one.
    cause : Exception, optional
        What the model raised when it was observed.
    """

    reason: str
    everywhere: bool = False
    by_size: bool = False
    declared: int | None = None
    cause: Exception | None = None

    def error(self, what: str, name: str) -> ValueError:
        """Return the refusal of `what` (a layer or an operation) that belongs to the layer `name`."""
        how = (
            "Say which axis numbers the samples in all layers with batch_axis=axis, or by layer"
            if self.everywhere
            else f"Name the axis that numbers the samples with batch_axis={{{name!r}: axis}}"
        )
        error = ValueError(
            f"{what}: {self.reason}. {how} (None where a layer sees no samples, 'folded' where the first axis numbers "
            "samples and positions, samples slowest)"
        )
        error.__cause__ = self.cause
        return error


class DeclaredAxes:
    """What the user says about batch axes.

    Parameters
    ----------
    axes : int, "folded", "observed", or mapping of str to (int, "folded" or None)
        For all layers, or by layer name.

    Attributes
    ----------
    everywhere : BatchAxis or "observed"
        What holds for layers that are not named.
    by_name : mapping
        What holds for those that are.
    """

    def __init__(self, axes: BatchAxis | Literal["observed"] | Mapping[str, BatchAxis]) -> None:
        self.by_name: dict[str, BatchAxis] = {}
        self.everywhere: BatchAxis | Literal["observed"] = "observed"
        if isinstance(axes, Mapping):
            self.by_name = {name: axis for name, axis in axes.items() if name}
            self.everywhere = axes.get("", "observed")
        else:
            self.everywhere = axes
        for name, axis in {**self.by_name, "": self.everywhere}.items():
            known = axis is None or axis == "folded" or (axis == "observed" and not name)
            if not known and (not isinstance(axis, int) or isinstance(axis, bool) or axis < 0):
                where = f"batch_axis[{name!r}]" if name else "batch_axis"
                raise ValueError(f"{where} must be an axis from 0 on, 'folded' or None, got {axis!r}")

    @property
    def axis(self) -> int | None:
        """The axis that is declared for all layers, if one is."""
        return self.everywhere if isinstance(self.everywhere, int) else None

    def of(self, name: str) -> BatchAxis | Literal["observed"]:
        """Return what is said of a layer."""
        return self.by_name.get(name, self.everywhere)


def batch_first(tensor: Tensor, axis: BatchAxis) -> Tensor:
    """Return `tensor` with the batch, folded or not, as its first axis."""
    return tensor.movedim(axis, 0) if isinstance(axis, int) and axis else tensor


def candidates(shape: tuple[int, ...], size: int) -> list[BatchAxis]:
    """Return the ways in which a tensor of this shape may number `size` samples."""
    axes: list[BatchAxis] = [axis for axis, length in enumerate(shape) if length == size]
    if shape and shape[0] > size and shape[0] % size == 0:
        axes.append("folded")
    return axes


def repeated(tensor: Tensor, size: int) -> Tensor:
    """Return a tensor without a batch axis, the same for every sample, with one in front; it takes no memory."""
    one = tensor[0] if tensor.dim() and tensor.shape[0] == 1 else tensor
    return one.expand(size, *one.shape)
