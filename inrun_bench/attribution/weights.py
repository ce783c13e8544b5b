"""Weights as they were last seen: whether anything but the optimiser has changed them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inrun_bench.attribution.precision import norms, own_precision
from inrun_bench.attribution.transfer import Numbers, gathered, to_host

__all__ = ["Place", "SeenWeights", "Traits", "compared", "differ", "refuse_shared_memory", "traits", "unlike"]

SMALL = 2**15
"""Numbers that are copied in less time than it takes to ask for their sum."""

ROUNDING = 8
"""What may be made of a sum by rounding, in units of the precision of its terms and of their norm."""

Place: TypeAlias = list[tuple[int, int]]
"""What tells weights from what they were: address and version of each."""


class SeenWeights:
    """The weights of a model, and what tells whether they are what they were.

    Parameters
    ----------
    trained : sequence of Parameter
        Those that optimisers move.
    parameters : mapping of Parameter to str
        All of the model's, and their names.
    """

    def __init__(self, trained: Sequence[nn.Parameter], parameters: Mapping[nn.Parameter, str]) -> None:
        self._trained, self._parameters = trained, parameters
        self._small = [p for p in trained if _is_small(p)]
        self._large = [p for p in trained if not _is_small(p)]
        self._bytes: dict[nn.Parameter, tuple[Any, NDArray[np.uint8]]] = {}  # of small ones, in their own memory
        self._noted: tuple[list[bytes], Traits | None] | None = None
        self._noted_at: Place = []

    @property
    def present(self) -> list[Tensor]:
        """The trained ones as they are, in the parameters' own memory."""
        return [p.detach() for p in self._trained]

    @property
    def place(self) -> Place:
        """What tells all of them, frozen ones too, from what they were and will be."""
        return [(p.data_ptr(), p._version) for p in self._parameters]

    def note(self) -> None:
        """Note what the weights are."""
        self._noted, self._noted_at = self._now(), self.place

    def note_if_moved(self) -> None:
        """Note what they are if they are not those that were noted last, as far as versions tell."""
        if self._noted is None or self.place != self._noted_at:
            self.note()

    def expect_as_noted(self, checks: Numbers, number: int) -> None:
        """Have weights refused that have changed since, behind torch's version counters."""

        def refuse(whose: str = "") -> NoReturn:
            raise RuntimeError(
                f"step {number}: weights were changed through .data{whose} since the optimiser's last step, which "
                "torch does not count, so that the validation loss and its gradient are not theirs; change them in "
                "place under torch.no_grad()"
            )

        def check(numbers: NDArray[np.float64]) -> None:
            if differ(numbers).any():
                refuse()

        assert self._noted is not None
        (small, large), (noted, traits_noted) = self._now(), self._noted
        if small != noted:
            changed = next(p for p, x, y in zip(self._small, small, noted, strict=True) if x != y)
            refuse(f" ({self._parameters[changed]!r})")
        if large is not None and traits_noted is not None:
            checks.expect(compared(large, traits_noted), check)

    def _now(self) -> tuple[list[bytes], Traits | None]:
        return [self._bytes_of(p) for p in self._small], traits(self._large) if self._large else None

    def _bytes_of(self, p: nn.Parameter) -> bytes:
        layout = p.data_ptr(), p.shape, p.stride()
        known, held = self._bytes.get(p, (None, None))
        if held is None or known != layout:
            flat = p.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
            held = flat.view(torch.uint8).numpy()
            if flat.data_ptr() == p.data_ptr():  # else they are a copy
                self._bytes[p] = layout, held
        return held.tobytes()


def _is_small(p: Tensor) -> bool:
    return p.device.type == "cpu" and p.numel() <= SMALL


class Traits(NamedTuple):
    """Numbers that hardly any other tensors have, and what rounding may make of each, both float64 [tensors, k].

    On a processor, k = 1; on a GPU, k = 3.
    """

    numbers: Tensor
    rounding: Tensor


def refuse_shared_memory(model: nn.Module) -> None:
    """Raise ValueError where two parameters, one of them trained, lie in the same memory: each moves the other.

    To autograd they are two, and what each sample does to the one through the other is in neither's gradient.
    """
    spans = []
    for name, p in model.named_parameters():
        plain = type(p) is nn.Parameter and p.layout == torch.strided and p.device.type != "meta"
        if plain and p.numel() and p.data_ptr():
            reach = sum((length - 1) * stride for length, stride in zip(p.shape, p.stride(), strict=True))
            spans.append((str(p.device), p.data_ptr(), p.data_ptr() + (reach + 1) * p.element_size(), p, name))
    spans.sort(key=lambda span: span[:2])
    last: dict[str, tuple[int, nn.Parameter, str]] = {}  # which reaches farthest
    for device, start, end, p, name in spans:
        before, other, of_other = last.get(device, (0, p, name))
        if start < before and (p.requires_grad or other.requires_grad):
            raise ValueError(
                f"parameters {of_other!r} and {name!r} of the model lie in the same memory, so that each changes the "
                "other, and gradients do not say so; tie them by having both modules hold one Parameter "
                "(b.weight = a.weight), or give one its own (nn.Parameter(a.weight.detach().clone()))"
            )
        if end > before:
            last[device] = end, p, name


def traits(tensors: Sequence[Tensor]) -> Traits:
    """Return what tells tensors from others; no graph is recorded."""
    with torch.no_grad():
        given = [x.detach() for x in tensors]
        given = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in given]
        return (_weighted_sums if all(x.device.type == "cpu" for x in given) else _norms_and_largest)(given)


def compared(now: Traits, noted: Traits) -> Tensor:
    """Return what :func:`differ` asks for, float64 [3, tensors, k]."""
    if now.numbers.shape != noted.numbers.shape:
        return torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).view(3, 1, 1)
    return torch.stack([now.numbers, noted.numbers, noted.rounding])


def differ(numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return bool [tensors]: whose traits are others than was noted, rounding apart."""
    now, noted, rounding = numbers
    with np.errstate(invalid="ignore"):
        alike = (now == noted) | (np.abs(now - noted) <= rounding) | (np.isnan(now) & np.isnan(noted))
    others: NDArray[np.bool_] = ~alike.all(1)
    return others


def unlike(now: Traits, noted: Traits) -> NDArray[np.bool_]:
    """Return bool [tensors]: the same of traits at hand, waiting for the device."""
    return differ(to_host(compared(now, noted))())


def _norms_and_largest(tensors: Sequence[Tensor]) -> Traits:
    """Return norms of two parts of each tensor and its largest number: few launches, for a GPU."""
    filled = [x.reshape(-1) if x.numel() else x.new_zeros(1) for x in tensors]
    cuts = [max(len(x) // 3, 1) for x in filled]
    first = norms([x[:cut] for x, cut in zip(filled, cuts, strict=True)])
    rest = norms([x[cut:] for x, cut in zip(filled, cuts, strict=True)])
    numbers = torch.stack([first, rest, gathered(torch._foreach_max(filled)).to(first)], 1)
    return Traits(numbers.double(), ROUNDING * torch.finfo(numbers.dtype).eps * numbers.abs().double())


def _weighted_sums(tensors: Sequence[Tensor]) -> Traits:
    """Return sums in which every number has a factor of its own: one pass, for a processor."""
    with own_precision(torch.device("cpu")):
        kinds = [torch.float64 if x.dtype == torch.float64 else torch.float32 for x in tensors]
        rows = [_summed_by_row(x.to(kind)).double() for x, kind in zip(tensors, kinds, strict=True)]
        rows = [x.nan_to_num_(1, 2, 3) for x in rows]  # else nothing is told beside them
        numbers = gathered([torch.dot(x, _factors(len(x), torch.float64, of="rows")) for x in rows]).double()
        share = torch.tensor([ROUNDING * torch.finfo(kind).eps for kind in kinds], dtype=torch.float64)
        return Traits(numbers[:, None], (share * norms(rows).double())[:, None])


def _summed_by_row(w: Tensor) -> Tensor:
    """Return sums of rows of weights, each number times that of its column; a copy."""
    side = math.isqrt(w.numel()) if w.dim() < 2 else max(w.shape[1:].numel(), 1)
    factors = _factors(side, w.dtype, of="columns")
    if w.dim() > 1:
        return torch.mv(w.reshape(-1, side), factors)
    w = w.reshape(-1)
    return torch.cat([torch.mv(w[: side * side].view(side, side), factors), w[side * side :]])


def _factors(count: int, dtype: torch.dtype, *, of: Literal["rows", "columns"]) -> Tensor:
    """Return fixed random numbers; were those of rows and columns the same, a matrix would be its transpose."""
    return _many_factors(2 ** count.bit_length(), dtype, of)[:count]


@functools.cache
def _many_factors(count: int, dtype: torch.dtype, of: str) -> Tensor:
    draw = torch.Generator("cpu").manual_seed({"rows": 0, "columns": 1}[of])
    return torch.randn(count, dtype=dtype, device="cpu", generator=draw)
