"""Ghost rules: dot products of every sample's gradient with a probe, without the per-sample gradients.

A rule belongs to a layer type and some of its parameters. From what the layer saw in the forward pass and what came
back in the backward pass it returns the batch's dot products::

    rule(layer, a, b, *q) -> scores [B]

=====  ======================  ====================================================================
name   shape                   meaning
=====  ======================  ====================================================================
layer  the module              for its settings and, where the output is not linear in them, its weights
a      [B, ..., d_in]          the layer's input, or all its arguments by name (``inputs="all"``)
b      [B, ..., d_out]         gradient of the batch's loss with respect to the layer's output
q      the parameter's shape   probe of each parameter that the rule names; None for one not trained
=====  ======================  ====================================================================

Since a sample's gradient is a sum over the calls of a layer, and the dot product is linear, a layer that is called
several times, or a weight that several layers share, needs nothing special: the scores of the calls add up.

Most layers are linear in their parameters, and then the derivative of the output in the direction q is the layer itself
with q in place of its parameters. The score is the dot product of that *tangent* with b: all that padding, stride,
groups and the like do to the output, they do to the tangent.

The three may differ in precision: probes are rounded to b's for products, and scores of half-precision gradients are
summed in single (:mod:`~inrun_bench.attribution.products.sample_dot`). A rule runs no module's hooks, changes no
buffer, and reads the layer's mode (training or eval), which must still be that of the forward pass.

One file a layer family: its ghost rules and, where it has one, a backward pass that scores
(:mod:`~inrun_bench.attribution.families.scored_backward`). A user's own rule::

    @ghost_rule(MyScale, "weight")
    def my_scale(layer, a, b, q):
        return (a * b * q).flatten(1).sum(1)
"""

from torch import nn

from inrun_bench.attribution.families import activation as activation  # each import registers a layer family
from inrun_bench.attribution.families import attention as attention
from inrun_bench.attribution.families import convolution as convolution
from inrun_bench.attribution.families import embedding as embedding
from inrun_bench.attribution.families import linear as linear
from inrun_bench.attribution.families import normalisation as normalisation
from inrun_bench.attribution.families.position_wise import position_wise_rules
from inrun_bench.attribution.families.registry import (
    GhostRule,
    Rule,
    find_gradients_of_samples,
    find_scored_backward,
    ghost_rule,
    registered_rules,
    supported_layers,
)

__all__ = [
    "GhostRule",
    "Rule",
    "find_gradients_of_samples",
    "find_rules",
    "find_scored_backward",
    "ghost_rule",
    "supported_layers",
]


def find_rules(layer: nn.Module) -> tuple[Rule, ...]:
    """Return the rules of a layer: of its type, or else of its form; empty where it has none."""
    return registered_rules(layer) or position_wise_rules(layer)
