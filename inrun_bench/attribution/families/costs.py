"""Which rule is fastest for a call of a layer: a small model of their costs.

For a linear map with B samples, T positions a sample and a weight of d_out x d_in (a convolution's positions are those
of its output, d_in the size of its window), beyond what training computes anyway:

===============  ======================================================================================================
rule             seconds
===============  ======================================================================================================
project          2 B T d_in d_out / F a probe, and a pass over the products, B T times the smaller side
weight-gradient  B d_in d_out S a probe, for a pass over each sample's weight gradient, and B times the price of a call
gram             2 B T N (d_in + d_out) / F, N positions of the validation samples, less 2 N d_in d_out / F for the
                 validation weight gradient, which then nobody forms; and the price of collecting factors
===============  ======================================================================================================

F is the rate of matrix products and S the time to read, dot and add one number of a weight gradient; layer families
differ from these by the factors of their :class:`Price`. The constants were fitted to timings on one core of a server
processor. Only the ratio F S matters, which varies less from machine to machine than either: where T exceeds about
F S / 2 positions, the weight-gradient rule wins. The ``overhead`` experiment shows whether that holds on yours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "CONVOLUTION_PRICE",
    "LINEAR_PRICE",
    "CallSizes",
    "Price",
    "RuleName",
    "fastest",
    "predicted_seconds",
]

RuleName: TypeAlias = Literal["project", "weight-gradient", "gram"]

RATES = {  # F in operations a second, S in seconds a number
    "cpu": (100e9, 0.26e-9),
    "cuda": (100e12, 8e-12),
}
FACTORS_SECONDS = 50e-6  # of collecting the factors of one call


@dataclass(frozen=True)
class Price:
    """What a layer family pays.

    Attributes
    ----------
    rate : float
        Rate of its products, in units of F.
    number : float
        Time for a number of its weight gradient, in units of S.
    call_seconds : float
        Price of forming one sample's weight gradient apart from its arithmetic.
    """

    rate: float
    number: float
    call_seconds: float


LINEAR_PRICE = Price(1.0, 1.0, 5e-6)
CONVOLUTION_PRICE = Price(2.0, 6.0, 30e-6)  # libraries reorder its weights for each product


@dataclass(frozen=True)
class CallSizes:
    """A call of a layer.

    Attributes
    ----------
    samples, positions, d_in, d_out : int
        B, T, and the sides of the weight.
    price : Price
        Of the layer's family.
    probes : int
        Validation sets.
    validation_positions : int, optional
        N, all validation samples together; None where the validation gradient has no such form.
    device : str
        ``"cpu"`` or ``"cuda"``; another is taken for the former.
    """

    samples: int
    positions: int
    d_in: int
    d_out: int
    price: Price  # no default: torch.compile traces the constructor, and in torch 2.11 refuses an object of ours as one
    probes: int = 1
    validation_positions: int | None = None
    device: str = "cpu"


def predicted_seconds(call: CallSizes) -> dict[RuleName, float]:
    """Return the predicted price of each rule that can serve the call, in seconds."""
    rate, number = RATES.get(call.device, RATES["cpu"])
    rate *= call.price.rate
    weight = call.d_in * call.d_out
    positions = call.samples * call.positions
    seconds: dict[RuleName, float] = {
        "project": call.probes * (2 * positions * weight / rate + positions * min(call.d_in, call.d_out) * number),
        "weight-gradient": call.samples * (call.probes * weight * number * call.price.number + call.price.call_seconds),
    }
    if call.validation_positions is not None:
        n = call.validation_positions
        products = positions * n * (call.d_in + call.d_out) - n * weight
        seconds["gram"] = call.probes * (2 * products / rate + positions * n * number + FACTORS_SECONDS)
    return seconds


def fastest(call: CallSizes) -> RuleName:
    """Return the rule with the lowest predicted price."""
    seconds = predicted_seconds(call)
    return min(seconds, key=lambda rule: seconds[rule])
