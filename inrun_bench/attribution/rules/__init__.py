"""Ghost rules: dot products of every sample's gradient with a probe, without the per-sample gradients.

A rule belongs to a layer type and one of its parameters. From what the layer saw in the forward pass and what came back
in the backward pass it returns the batch's dot products::

    rule(layer, a, b, q) -> scores [B]

=====  ======================  ====================================================================
name   shape                   meaning
=====  ======================  ====================================================================
layer  the module              for its settings; its parameters are not read
a      [B, ..., d_in]          the layer's input
b      [B, ..., d_out]         gradient of the batch's loss with respect to the layer's output
q      the parameter's shape   probe of that parameter
=====  ======================  ====================================================================

Since a sample's gradient is a sum over the calls of a layer, and the dot product is linear, a layer that is called
several times, or a weight that several layers share, needs nothing special: the scores of the calls add up.

One file a layer family. A user's own rule::

    @ghost_rule(MyScale, "weight")
    def my_scale(layer, a, b, q):
        return (a * b * q).flatten(1).sum(1)
"""

from inrun_bench.attribution.rules import linear as linear  # each import registers the rules of a layer family
from inrun_bench.attribution.rules.registry import GhostRule, find_rule, ghost_rule, supported_layers

__all__ = ["GhostRule", "find_rule", "ghost_rule", "supported_layers"]
