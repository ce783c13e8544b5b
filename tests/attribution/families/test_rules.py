"""One law for all ghost rules: they give the dot products of the per-sample gradients that autograd finds."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from inrun_bench.attribution.families import find_rules, ghost_rule, supported_layers
from inrun_bench.attribution.families.registry import _RULES

pytestmark = [
    # torch 2.13 calls its own deprecated torch.jit.script when it first differentiates in forward mode
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
]

sizes, flags = st.integers(1, 4), st.booleans()
spatial_sizes = st.integers(3, 5)


def normal(*shape):
    """Float64 numbers that single precision holds exactly."""
    return torch.randn(shape).double()


def positions(draw):
    """Axes between the samples' and the features', some of length zero."""
    return draw(st.lists(st.integers(0, 4), max_size=2))


# Each draws a layer and the arguments of a call, for one family of layers.


def linear(draw, layer_type):
    d_in, d_out = draw(sizes), draw(sizes)
    layer = layer_type(d_in, d_out, bias=draw(flags))
    return layer, {"input": normal(draw(sizes), *positions(draw), d_in)}


def hugging_face_conv1d(draw, _name):
    layer_type = pytest.importorskip("transformers.pytorch_utils").Conv1D
    d_in, d_out = draw(sizes), draw(sizes)
    return layer_type(d_out, d_in), {"x": normal(draw(sizes), *draw(st.lists(sizes, max_size=2)), d_in)}


def bilinear(draw, layer_type):
    d1, d2, d_out = draw(sizes), draw(sizes), draw(sizes)
    shape = draw(sizes), *positions(draw)
    layer = layer_type(d1, d2, d_out, bias=draw(flags))
    return layer, {"input1": normal(*shape, d1), "input2": normal(*shape, d2)}


def convolution(draw, layer_type):
    n = int(layer_type.__name__[4])
    groups = draw(st.integers(1, 2))
    padding = draw(st.one_of(st.just("valid"), st.just("same"), st.tuples(*[st.integers(0, 2)] * n)))
    layer = layer_type(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        draw(st.tuples(*[st.integers(1, 3)] * n)),
        stride=1 if padding == "same" else draw(st.integers(1, 3)),
        padding=padding,
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(flags),
    )
    return layer, {"input": normal(draw(sizes), layer.in_channels, *draw(st.tuples(*[st.integers(5, 6)] * n)))}


def transposed_convolution(draw, layer_type):
    n = int(layer_type.__name__[-2])
    groups, stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    layer = layer_type(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        draw(st.tuples(*[st.integers(1, 3)] * n)),
        stride=stride,
        padding=draw(st.integers(0, 1)),
        output_padding=draw(st.integers(0, max(stride, dilation) - 1)),
        dilation=dilation,
        groups=groups,
        bias=draw(flags),
    )
    inputs = {"input": normal(draw(sizes), layer.in_channels, *draw(st.tuples(*[spatial_sizes] * n)))}
    if draw(flags):  # ask for a size in the call, rather than the layer's own
        smallest = [
            (size - 1) * stride - 2 * layer.padding[d] + dilation * (layer.kernel_size[d] - 1) + 1
            for d, size in enumerate(inputs["input"].shape[2:])
        ]
        inputs["output_size"] = [size + draw(st.integers(0, stride - 1)) for size in smallest]
        assume(min(inputs["output_size"]) > 0)
    return layer, inputs


def embedding(draw, layer_type):
    layer = layer_type(
        5,
        draw(sizes),
        padding_idx=draw(st.sampled_from([None, 0, 2, -1])),
        max_norm=draw(st.sampled_from([None, 0.5])),
        scale_grad_by_freq=draw(flags),
    )
    return layer, {"input": torch.randint(5, (draw(sizes), *positions(draw)))}


def embedding_bag(draw, layer_type):
    mode = draw(st.sampled_from(["sum", "mean", "max"]))
    listed = draw(flags)
    layer = layer_type(
        5,
        draw(st.integers(2, 4)),  # in one dimension max_norm makes ties, which single precision breaks otherwise
        mode=mode,
        padding_idx=draw(st.sampled_from([None, 0, 2, -1])),
        max_norm=draw(st.sampled_from([None, 0.5])),
        include_last_offset=listed and draw(flags),
    )
    inputs = {"input": torch.randint(5, (draw(sizes), draw(sizes)))}
    if listed:
        inputs["input"] = inputs["input"].flatten()
        inner = draw(st.lists(st.integers(0, len(inputs["input"])), max_size=3))  # bags may be empty
        last = [len(inputs["input"])] if layer.include_last_offset else []
        inputs["offsets"] = torch.tensor([0, *sorted(inner), *last])
    if mode == "sum" and draw(flags):
        inputs["per_sample_weights"] = normal(*inputs["input"].shape)
    return layer, inputs


EPS = st.sampled_from([1e-5, 0.5])


def layer_norm(draw, layer_type):
    shape = draw(st.lists(st.integers(2, 4), min_size=1, max_size=2))
    layer = layer_type(shape, bias=draw(flags), eps=draw(EPS))
    return layer, {"input": normal(draw(sizes), *positions(draw), *shape)}


def rms_norm(draw, layer_type):
    shape = draw(st.lists(st.integers(2, 4), min_size=1, max_size=2))
    layer = layer_type(shape, eps=draw(st.sampled_from([None, 1e-3, 0.5])))
    return layer, {"x": normal(draw(sizes), *positions(draw), *shape)}


def group_norm(draw, layer_type):
    groups = draw(sizes)
    layer = layer_type(groups, 2 * groups, eps=draw(EPS))
    return layer, {"input": normal(draw(sizes), 2 * groups, *draw(st.lists(sizes, max_size=3)))}


def instance_norm(draw, layer_type):
    n, channels = int(layer_type.__name__[-2]), draw(sizes)
    layer = layer_type(channels, affine=True, track_running_stats=draw(flags), eps=draw(EPS)).train(draw(flags))
    return with_statistics(draw, layer), {
        "input": normal(draw(sizes), channels, *draw(st.tuples(*[spatial_sizes] * n)))
    }


def batch_norm(draw, layer_type):
    n = int(layer_type.__name__[-2]) if layer_type is not nn.SyncBatchNorm else draw(st.integers(1, 3))
    channels = draw(sizes)
    inner = () if layer_type is nn.BatchNorm1d and draw(flags) else draw(st.tuples(*[sizes] * n))
    layer = with_statistics(draw, layer_type(channels, eps=draw(EPS)).eval())
    return layer, {"input": normal(draw(sizes), channels, *inner)}


def with_statistics(draw, layer):
    if layer.track_running_stats:
        layer.running_mean.copy_(normal(layer.num_features))
        layer.running_var.copy_(1 + normal(layer.num_features) ** 2)
    return layer


def multihead_attention(draw, layer_type):
    heads = draw(st.integers(1, 2))
    own_projections, batch_first = draw(flags), draw(flags)
    batch, length, source = draw(sizes), draw(sizes), draw(sizes)
    d = heads * draw(sizes)
    d_key, d_value = (draw(sizes), draw(sizes)) if own_projections else (d, d)
    layer = layer_type(
        *(d, heads),
        bias=draw(flags),
        add_bias_kv=draw(flags),
        add_zero_attn=draw(flags),
        kdim=d_key if own_projections else None,
        vdim=d_value if own_projections else None,
        batch_first=batch_first,
    )
    # training with dropout 0, or eval mode, where any dropout rests
    layer.dropout = 0.0 if layer.train(draw(flags)).training else 0.5

    def sequence(length, d):
        x = normal(batch, length, d)
        return x if batch_first else x.transpose(0, 1)

    query = sequence(length, d)
    inputs = {"query": query, "key": query, "value": query}
    if own_projections or draw(flags):
        inputs |= {"key": sequence(source, d_key), "value": sequence(source, d_value)}
    else:
        source = length
    if draw(flags):
        mask = torch.ones(length, source, dtype=torch.bool).triu(1)
        inputs["attn_mask"] = draw(
            st.sampled_from([mask, mask.double() * -2, mask.expand(batch * heads, length, source)])
        )
        inputs["is_causal"] = length == source and inputs["attn_mask"] is mask and draw(flags)
    if draw(flags):
        inputs["key_padding_mask"] = torch.arange(source) >= 1 + torch.randint(source, (batch, 1))  # one left to attend
        if "attn_mask" in inputs and inputs["attn_mask"].is_floating_point():
            inputs["key_padding_mask"] = inputs["key_padding_mask"].double() * -2  # torch wants masks of one type
    inputs["need_weights"] = draw(flags)
    return layer, inputs


def prelu(draw, layer_type):
    channels = draw(sizes)
    shape = draw(sizes), channels, *positions(draw)
    layer = layer_type(draw(st.sampled_from([1, channels])))
    return layer, {"input": normal(*shape[: draw(st.integers(1, 4)) if layer.num_parameters == 1 else 4])}


CASES = {
    **dict.fromkeys([nn.Linear, NonDynamicallyQuantizableLinear], linear),
    "Conv1D": hugging_face_conv1d,
    nn.Bilinear: bilinear,
    **dict.fromkeys([nn.Conv1d, nn.Conv2d, nn.Conv3d], convolution),
    **dict.fromkeys([nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d], transposed_convolution),
    nn.Embedding: embedding,
    nn.EmbeddingBag: embedding_bag,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    **dict.fromkeys([nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d], instance_norm),
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm], batch_norm),
    nn.MultiheadAttention: multihead_attention,
    nn.PReLU: prelu,
}


def name_of(layer_type):
    return layer_type if isinstance(layer_type, str) else layer_type.__name__


each_layer = pytest.mark.parametrize("layer_type", CASES, ids=name_of)


class Call:
    """A layer with random weights, called; and a gradient of its output, and probes of its parameters."""

    def __init__(self, draw, layer_type):
        torch.manual_seed(draw(st.integers(0, 2**16)))
        self.layer, self.inputs = CASES[layer_type](draw, layer_type)
        self.layer.double()
        for p in self.layer.parameters():
            p.data = normal(*p.shape)
        try:
            output = self.layer(**self.inputs)
        except RuntimeError as error:  # settings that the layer itself refuses, such as more padding than input
            assume("adding" not in str(error) and "too small" not in str(error) and "negative" not in str(error))
            raise
        output = output[0] if isinstance(output, tuple) else output
        self.parameters = dict(self.layer.named_parameters())
        rules = find_rules(self.layer)
        assert {name for rule in rules for name in rule.parameters} >= self.parameters.keys()
        self.output = output.movedim(rules[0].batch_axis(self.layer), 0)
        self.b = normal(*self.output.shape)
        self.q = {name: normal(*p.shape) for name, p in self.parameters.items()}
        self.every_input = any(rule.inputs == "all" for rule in rules)
        present = {rule: [name for name in rule.parameters if name in self.parameters] for rule in rules}
        self.names = {rule: names for rule, names in present.items() if names}

    def expected(self, names):
        """Scores by autograd, a sample at a time, and the size of the numbers that they are sums of."""
        scores, sizes = [], []
        for row, b in zip(self.output, self.b, strict=True):
            parameters = [self.parameters[name] for name in names]
            gradients = torch.autograd.grad(row, parameters, b, retain_graph=True, materialize_grads=True)
            pairs = list(zip(gradients, (self.q[name] for name in names), strict=True))
            scores.append(sum(float((g * q).sum()) for g, q in pairs))
            sizes.append(sum(float((g.norm() + b.norm()) * q.norm()) for g, q in pairs))
        return np.array(scores), np.linalg.norm(sizes)

    @torch.no_grad()
    def scores(self, rule, names, a=torch.float64, b=torch.float64, q=torch.float64):
        """Scores by the rule, called as the engine does, with inputs, output gradients and probes of these dtypes."""
        inputs = {key: x.to(a) if _is_real(x) else x for key, x in self.inputs.items()}
        probes = [self.q[name].to(q) if name in names else None for name in rule.parameters]
        layer = self.layer.to(q)
        return rule.function(layer, inputs if self.every_input else next(iter(inputs.values())), self.b.to(b), *probes)


def _is_real(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


@each_layer
@settings(max_examples=60)
@given(data=st.data())
def test_rules_equal_dots_of_per_sample_gradients(layer_type, data):
    call = Call(data.draw, layer_type)
    for rule, present in call.names.items():
        for names in (present, *([name] for name in present)):  # all are trained, or only one
            expected, size = call.expected(names)
            scores = call.scores(rule, names)
            assert scores.shape == (len(call.b),)
            assert scores.dtype == torch.float64
            assert np.linalg.norm(scores.numpy() - expected) <= 1e-10 * size


@each_layer
@pytest.mark.parametrize(
    ("tolerance", "dtypes"),
    [
        (1e-5, {"a": torch.float32, "b": torch.float32, "q": torch.float32}),
        (2e-2, {"a": torch.float16, "b": torch.float16, "q": torch.float32}),
        (1e-1, {"a": torch.bfloat16, "b": torch.bfloat16, "q": torch.bfloat16}),
        (1e-1, {"a": torch.float32, "b": torch.bfloat16, "q": torch.float32}),  # a product under autocast
        (1e-1, {"a": torch.bfloat16, "b": torch.float32, "q": torch.float32}),  # a normalisation under autocast
    ],
    ids=["float32", "float16", "bfloat16", "product", "normalisation"],
)
@settings(max_examples=10)
@given(data=st.data())
def test_rules_in_lower_precision(layer_type, tolerance, dtypes, data):
    call = Call(data.draw, layer_type)
    expected = {rule: call.expected(names) for rule, names in call.names.items()}
    for rule, (scores, size) in expected.items():
        got = call.scores(rule, call.names[rule], **dtypes)
        assert got.dtype == torch.float32  # of half precision too, whose sums would overflow or stall
        assert np.linalg.norm(got.numpy() - scores) <= tolerance * size


def test_the_law_covers_all_supported_layers():
    assert sorted(map(name_of, CASES)) == supported_layers()


def test_an_empty_batch_has_no_scores():
    weight, bias = find_rules(nn.Linear(3, 2))
    assert weight.function(None, torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(2, 3)).shape == (0,)
    assert bias.function(None, torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(2)).shape == (0,)


def test_batch_norm_on_the_statistics_of_the_batch_is_refused():
    for layer in (nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False).eval()):
        (rule,) = find_rules(layer)
        x = torch.zeros(2, 3, 4, 4)
        with pytest.raises(ValueError, match=r"couple its samples; put it in eval mode"):
            rule.function(layer, x, x, torch.zeros(3), None)


def test_frequencies_within_bags_are_refused():
    layer = nn.EmbeddingBag(3, 2, scale_grad_by_freq=True)
    (rule,) = find_rules(layer)
    with pytest.raises(ValueError, match=r"scale_grad_by_freq=True.*use nn.Embedding and a sum"):
        rule.function(layer, {"input": torch.zeros(4, 3, dtype=torch.int64)}, torch.zeros(4, 2), torch.zeros(3, 2))


def test_instance_norm_leaves_running_statistics_alone():
    layer = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    (rule,) = find_rules(layer)
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    rule.function(layer, x, x, torch.ones(2), torch.ones(2))
    assert torch.equal(layer.running_mean, torch.zeros(2))


def test_a_rule_serves_its_class_and_no_subclass():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert [rule.parameters for rule in find_rules(nn.Linear(2, 2))] == [("weight",), ("bias",)]
    assert find_rules(Doubled(2, 2)) == ()


class Scale(nn.Module):
    pass


@pytest.mark.parametrize("layer_type", [Scale, f"{__name__}.Scale"])
def test_users_register_rules_of_their_own(layer_type):
    def rule(_layer, a, b, q):
        return (a * b * q).sum(1)

    try:
        assert ghost_rule(layer_type, "factor")(rule) is rule
        assert [found.function for found in find_rules(Scale())] == [rule]
        assert "Scale" in supported_layers()
        ghost_rule(layer_type, "shift")(rule)
        assert [found.parameters for found in find_rules(Scale())] == [("factor",), ("shift",)]
        ghost_rule(layer_type, "factor", "shift", inputs="all")(rule)  # the later rule takes their place
        assert [found.parameters for found in find_rules(Scale())] == [("factor", "shift")]
    finally:
        del _RULES[layer_type]


@pytest.mark.parametrize("layer_type", [Scale, "package.module.Scale"])
def test_a_rule_names_a_parameter(layer_type):
    with pytest.raises(ValueError, match=r"ghost_rule\(Scale\) must name at least one parameter, such as 'weight'"):
        ghost_rule(layer_type)
