"""Ghost rule of ``nn.MultiheadAttention``: the forward-mode derivative of the whole layer.

The output is not linear in the projections, which meet in the softmax, so no layer with probes in place of weights
gives its derivative in the direction q. One forward-mode pass does (``torch.func.jvp``), and its dot product with the
output's gradient is the score. It costs the forward pass and its linearisation (five forward passes, on a CPU) and the
attention matrices [B, heads, L, S] of both, since only the plain attention kernel has a forward-mode derivative.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun_bench.attribution.families.registry import ghost_rule
from inrun_bench.attribution.products.sample_dot import sample_dot
from inrun_bench.attribution.random_state import RandomState

_PARAMETERS = (
    *("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    *("in_proj_bias", "bias_k", "bias_v", "out_proj.weight", "out_proj.bias"),
)


@ghost_rule(
    nn.MultiheadAttention,
    *_PARAMETERS,
    inputs="all",
    batch_axis=lambda layer: 0 if layer.batch_first else 1,
    replays=True,
)
def multihead_attention(layer: nn.MultiheadAttention, a: Mapping[str, Any], b: Tensor, *q: Tensor | None) -> Tensor:
    """Differentiate the output [B, L, E] in the direction of all probes at once; dropout masks are drawn again."""
    state: RandomState | None = a.get("random_state")
    probe = {name: x.to(b.dtype) for name, x in zip(_PARAMETERS, q, strict=True) if x is not None}
    weights = {name: p.detach().to(b.dtype) for name, p in layer.named_parameters(remove_duplicate=False)}
    inputs = {name: x.to(b.dtype) if _is_real(x) else x for name, x in a.items() if name != "random_state"}

    def output(trained: dict[str, Tensor]) -> Tensor:
        return _attend(layer, inputs, {**weights, **trained})

    with sdpa_kernel(SDPBackend.MATH), nullcontext() if state is None else state.again():
        tangent: Tensor = jvp(output, ({name: weights[name] for name in probe},), (probe,))[1]
    return sample_dot(tangent.transpose(0, 1), b)


def _attend(layer: nn.MultiheadAttention, a: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Tensor:
    """Return the layer's output [L, B, E] with these weights; unlike its ``forward``, this takes no fused path."""
    arguments = dict(a)
    if layer.batch_first:
        arguments |= {name: a[name].transpose(0, 1) for name in ("query", "key", "value")}
    arguments |= {name.replace(".", "_"): weights.get(name) for name in _PARAMETERS}
    output, _ = functional.multi_head_attention_forward(
        embed_dim_to_check=layer.embed_dim,
        num_heads=layer.num_heads,
        use_separate_proj_weight="in_proj_weight" not in weights,
        add_zero_attn=layer.add_zero_attn,
        dropout_p=layer.dropout,
        training=layer.training,
        **arguments,
    )
    return output


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
