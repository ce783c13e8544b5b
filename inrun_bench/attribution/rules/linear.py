"""Ghost rules of ``nn.Linear``: y = x W^T + c, applied at every position of [B, ..., d_in].

The weight gradient of sample i is ``sum_t b_it a_it^T``; its dot product with Q is ``sum_t b_it^T Q a_it``.
"""

from __future__ import annotations

from torch import Tensor, nn

from inrun_bench.attribution.rules.registry import ghost_rule


@ghost_rule(nn.Linear, "weight")
def linear_weight(layer: nn.Linear, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Project the output gradients on the probe, then dot them with the inputs (the "project" rule).

    Costs one product of the size of the forward pass, ``2 B T d_in d_out``, and ``B T d_in`` transient numbers.
    """
    return ((b @ q) * a).flatten(1).sum(1)


@ghost_rule(nn.Linear, "bias")
def linear_bias(layer: nn.Linear, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Dot the output gradients with the probe."""
    return (b @ q).reshape(len(b), -1).sum(1)
