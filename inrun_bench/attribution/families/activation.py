"""Ghost rule of ``nn.PReLU``, y = max(x, 0) + weight min(x, 0), with one slope or one for every channel."""

from __future__ import annotations

from torch import Tensor, nn

from inrun_bench.attribution.families.registry import ghost_rule
from inrun_bench.attribution.products.sample_dot import sample_dot


@ghost_rule(nn.PReLU, "weight")
def prelu(layer: nn.PReLU, a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Scale the negative inputs by the slope's probe, [1] or [C]."""
    slopes = q if len(q) == 1 else q.view(-1, *(1 for _ in a.shape[2:]))
    return sample_dot(b, a.clamp(max=0) * slopes)
