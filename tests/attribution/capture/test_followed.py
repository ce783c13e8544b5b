"""Parameters that no rule covers, through whatever is made of them: exact, or refused with what to do instead."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from inrun_bench import InRunShapley
from inrun_bench.attribution import ghost_rule
from inrun_bench.attribution.families import registry
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import problem
from tests.attribution.watched import score_error

SIZE = 4  # of batch, positions, width, queries: all alike, so that no size tells axes apart


class Followed(nn.Module):
    """A model of [B, positions, width] with something between its first layer and its last."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings
        self.inner, self.head = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 3)
        self.build()

    def build(self):
        pass

    def forward(self, x):
        return self.head(torch.tanh(self.between(torch.tanh(self.inner(x)))).mean(1))

    def run(self, function, *arguments):
        """Call a function, under a checkpoint where one is asked for; the older kind where torch allows it."""
        kind = self.settings.get("checkpoint")
        watched = bool(self.head._forward_hooks)
        if kind is None or not self.training or (kind == "reentrant" and not watched):
            return function(*arguments)
        return checkpoint(function, *arguments, use_reentrant=kind == "reentrant")


class Norm(Followed):
    """Positions that pass through layers with rules before they meet the samples."""

    def build(self):
        self.position = nn.Parameter(torch.randn(1, SIZE, SIZE))
        self.norm, self.map = nn.LayerNorm(SIZE), nn.Linear(SIZE, SIZE)

    def between(self, h):
        return h + self.run(self.map, self.norm(self.position))


class Decoder(Followed):
    """Learned queries of a decoder, as in DETR."""

    def build(self):
        self.query = nn.Parameter(torch.randn(SIZE, SIZE))
        layer = nn.TransformerDecoderLayer(SIZE, 2, 5, self.settings.get("dropout", 0.0), batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1 if self.settings else 2)

    def between(self, h):
        return self.run(self.decoder, self.query.unsqueeze(0).expand(len(h), -1, -1), h)


class Queries(Followed):
    """Learned queries of attention with samples along the second axis, and positions that are a table's rows."""

    def build(self):
        self.query, self.place = nn.Parameter(torch.randn(SIZE, 1, SIZE)), nn.Embedding(SIZE, SIZE)
        self.attention = nn.MultiheadAttention(SIZE, 2, dropout=self.settings.get("dropout", 0.0))

    def between(self, h):
        h = h.transpose(0, 1)
        query = self.query.expand(-1, h.shape[1], -1)
        return self.run(self.attention, query, h + self.place.weight[:, None], h)[0].transpose(0, 1)


class Latents(Followed):
    """Latents that attend to the samples, as in Perceiver."""

    def build(self):
        self.latents = nn.Parameter(torch.randn(SIZE, SIZE))
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def between(self, h):
        latents = self.latents.expand(len(h), -1, -1)
        for block in self.blocks:
            latents = self.run(block, latents, h)
        return latents


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.query, self.mix = nn.LayerNorm(SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.key_and_value = nn.Linear(SIZE, 2 * SIZE)

    def forward(self, latents, h):
        query, (key, value) = self.query(self.norm(latents)), self.key_and_value(h).chunk(2, -1)
        latents = latents + F.scaled_dot_product_attention(query, key, value)
        return latents + torch.tanh(self.mix(latents))


class Paired(Followed):
    """A layer of two inputs, of which one holds the samples."""

    def build(self):
        self.factor, self.pair = nn.Parameter(torch.randn(SIZE)), nn.Bilinear(SIZE, SIZE, SIZE)

    def between(self, h):
        return self.pair(h.mean(1), self.factor.expand(len(h), -1))[:, None]


class Magnitude(Followed):
    """A low-rank update, called on samples and on none, and a magnitude over a norm that is a constant (DoRA)."""

    def build(self):
        self.base, self.magnitude = nn.Linear(SIZE, SIZE), nn.Parameter(torch.rand(SIZE) + 0.5)
        self.down, self.up = nn.Linear(SIZE, 2, bias=False), nn.Linear(2, SIZE, bias=False)

    def between(self, h):
        update = self.up(self.down(torch.eye(SIZE, dtype=h.dtype))).T
        norm = torch.linalg.norm(self.base.weight.detach() + update.detach(), dim=1)
        with_update = self.base(h) + self.run(self.up, self.down(h))
        return (self.magnitude / norm).view(1, -1) * with_update


MODELS = [Norm, Decoder, Queries, Latents, Paired, Magnitude]


def error(model, batch=SIZE, steps=1, **options):
    torch.manual_seed(0)
    x = torch.randn(batch * (steps + 1), SIZE, SIZE, dtype=torch.float64)
    y = torch.randint(3, (len(x),))
    model = model.double()
    with torch.no_grad():
        model(x)  # which makes weights of other weights
    return score_error(model, x, y, batch, steps=steps, **options)


@pytest.mark.parametrize("late", ["auto", "keep"])
@pytest.mark.parametrize("batch", [1, SIZE])
@pytest.mark.parametrize("kind", MODELS)
def test_what_layers_make_of_parameters_is_followed(kind, batch, late):
    assert error(kind(), batch, steps=2, late=late) < 1e-12


@pytest.mark.parametrize("rules", ["project", "weight-gradient"])
def test_the_one_sample_of_a_batch_meets_parameters_in_layers_that_score_themselves(rules):
    class Direct(Norm):
        def between(self, h):
            return h + self.map(self.position)

    assert error(Direct(), 1, steps=2, rules=rules) < 1e-12


class OfOldTimes(torch.optim.Optimizer):
    """Moves weights in a way that tensors do not count."""

    def __init__(self, model):
        super().__init__(model.parameters(), {})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(0.1 * p.grad)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_kept_does_not_move_with_the_weights(kind):
    problem(kind, OfOldTimes, shape=(SIZE, SIZE)).check("first", tolerance=1e-9)


@pytest.mark.parametrize("kind", MODELS)
def test_integrated_scores_equal_brute_force(kind):
    adamw = lambda model: torch.optim.AdamW(model.parameters(), lr=0.01)  # noqa: E731
    problem(kind, adamw, shape=(SIZE, SIZE)).check("integrated", tolerance=1e-9)


@pytest.mark.parametrize("late", ["auto", "keep"])
@pytest.mark.parametrize("checkpointed", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("kind", [Decoder, Queries, Latents])
def test_followed_arguments_of_a_checkpoint(kind, checkpointed, late):
    assert error(kind(checkpoint=checkpointed), steps=2, late=late) < 1e-12


@pytest.mark.parametrize("checkpointed", [None, "not reentrant"])
@pytest.mark.parametrize("kind", [Decoder, Queries])
def test_layers_draw_the_same_random_numbers_again(kind, checkpointed):
    more = {"checkpoint": checkpointed} if checkpointed else {}
    for late in ("auto", "keep"):
        assert error(kind(dropout=0.4, **more), steps=2, late=late) < 1e-12


def test_layers_through_which_parameters_pass_are_announced(caplog):
    error(Queries())
    said = [record.getMessage() for record in caplog.records]
    assert any("'query' has no ghost rule where 'MultiheadAttention' uses it" in message for message in said)


class Written(Followed):
    """A tensor into which a parameter is written, or what is made of one."""

    def build(self):
        self.token = nn.Parameter(torch.randn(SIZE))

    def between(self, h):
        return self.settings["write"](h, self.token)


def assigned(h, token):
    h = h.clone()
    h[:, 1] = token
    h[:, 2] += token
    h[:, :, 3][h[:, :, 3] > 0.1] = token[0]
    return h


def changed_through_views(h, token):
    h = h.clone()
    h[:, 1].mul_(token)
    h.transpose(0, 1)[2].add_(token)
    return h


def into_a_constant(h, token):
    table = torch.zeros(SIZE, SIZE, dtype=h.dtype)
    table[1] = token
    table[2] = 2 * token
    return h * table


def derived_in_place(h, token):
    scale = token * 1.0
    scale *= 2
    scale += token
    scale.clamp_(-1, 1)
    scale[1] = token[0] * token[1]
    return h * scale


def samples_into_the_derived(h, token):
    out = token.expand(h.shape).clone()
    out += h
    out *= token
    return out


@pytest.mark.parametrize("late", ["auto", "keep"])
@pytest.mark.parametrize("batch", [1, SIZE])
@pytest.mark.parametrize(
    "write", [assigned, changed_through_views, into_a_constant, derived_in_place, samples_into_the_derived]
)
def test_what_is_written_in_place_is_followed(write, batch, late):
    assert error(Written(write=write), batch, steps=2, late=late) < 1e-12


def used_before_it_is_changed(h, token):
    scale = token * 1.0
    shift = scale + token
    scale *= 2
    return h * scale + shift


@pytest.mark.parametrize("late", ["auto", "keep"])
def test_what_was_made_of_a_followed_tensor_before_it_was_changed_is_as_it_was(late):
    assert error(Written(write=used_before_it_is_changed), late=late) < 1e-12


def copied_into_a_part(h, token):
    h = h.clone()
    h[:, 1].copy_(token)
    return h


def derived_through_a_view(h, token):
    scale = token * 1.0
    scale[1:].mul_(2)
    return h * scale


def derived_without_gradient(h, token):
    scale = token * 1.0
    with torch.no_grad():
        scale.mul_(2)
    return h * scale


def partner_of_the_derived(h, token):
    constant = torch.ones(SIZE, dtype=h.dtype)
    scale = token + constant
    constant.mul_(2)
    return h * scale


def partner_on_the_samples(h, token):
    doubled = 2 * h
    result = doubled + token
    doubled.zero_()
    return result


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, h, token):
        return h + 2 * token

    @staticmethod
    def backward(_ctx, b):
        return b, 2 * b.sum((0, 1))


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, token):
        return token.round()

    @staticmethod
    def backward(_ctx, b):
        return b


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (copied_into_a_part, r"'copy_' writes what is computed of parameter 'token' into a part .* x\[part\] = y"),
        (derived_through_a_view, r"what 'mul' makes of parameter 'token'.* was changed in place .*out of place"),
        (derived_without_gradient, r"what 'mul' makes of parameter 'token'.* was changed in place .*out of place"),
        (partner_of_the_derived, r"what 'add' makes of parameter 'token', or what it makes it with, was changed in p"),
        (partner_on_the_samples, r"an argument of 'add' was changed in place after it was used"),
        (lambda h, token: Doubled.apply(h, token), r"Doubled \(a torch.autograd.Function\) .*ghost_rule"),
        (lambda h, token: Doubled.apply(h, 2 * token), r"Doubled \(a torch.autograd.Function\) .*ghost_rule"),
        (lambda h, token: h + Straight.apply(token), r"Straight \(a torch.autograd.Function\) .*ghost_rule"),
    ],
)
def test_what_is_not_seen_is_refused_by_name(write, message):
    with pytest.raises(RuntimeError, match=message):
        error(Written(write=write))


def test_functions_of_the_users_on_what_holds_samples_are_none_of_our_business():
    assert error(Written(write=lambda h, token: Straight.apply(8 * h + token))) < 1e-12


class Scale(nn.Module):
    """A layer with a rule, whose backward pass is its own and has no forward mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIZE))

    def forward(self, x):
        return Scaled.apply(x, self.weight)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, b):
        x, weight = ctx.saved_tensors
        return b * weight, (b * x).flatten(0, -2).sum(0)


@pytest.mark.parametrize("batch", [1, SIZE])
def test_what_passes_through_a_layer_without_a_forward_mode_is_exact(batch, monkeypatch):
    class Fused(Norm):
        def build(self):
            super().build()
            self.scale = Scale()

        def between(self, h):
            return self.scale(h) + self.scale(self.position)

    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    ghost_rule(Scale, "weight")(lambda _layer, a, b, q: (a * b * q).flatten(1).sum(1))
    assert error(Fused(), batch, steps=2) < 1e-12


def test_an_operation_that_draws_random_numbers_draws_them_again():
    """Whatever its name: what draws is known by the generator's state."""

    class Gumbel(Followed):
        def build(self):
            self.logits = nn.Parameter(torch.randn(SIZE, SIZE))

        def between(self, h):
            return h * (F.gumbel_softmax(self.logits) if self.training else self.logits.softmax(-1))

    for late in ("auto", "keep"):
        assert error(Gumbel(), late=late) < 1e-12


def pruned(layer):
    prune.random_unstructured(layer, "bias", 0.5)
    return prune.random_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("batch", [1, SIZE])
@pytest.mark.parametrize("made", [pruned, nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_hooks_compute_of_others(made, batch):
    class Computed(Followed):
        def build(self):
            self.linear, self.convolution = made(nn.Linear(SIZE, SIZE)), made(nn.Conv1d(SIZE, SIZE, 2))

        def between(self, h):
            return self.convolution(self.linear(h).transpose(1, 2)).transpose(1, 2)

    assert error(Computed(), batch, steps=2) < 1e-12
    if made is not nn.utils.spectral_norm:  # whose validation loss is another one after training's forward pass
        assert error(Computed(), batch, steps=2, late="keep") < 1e-12


@pytest.mark.parametrize("late", ["auto", "keep"])
def test_a_checkpoint_of_a_function_whose_operations_belong_to_no_module(late):
    class Segment(Followed):
        def build(self):
            self.scale, self.shift = nn.Parameter(torch.randn(SIZE)), nn.Parameter(torch.randn(SIZE))
            self.norm, self.last = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
            self.attention = nn.MultiheadAttention(SIZE, 2, batch_first=True)

        def segment(self, h, shift):
            h = torch.tanh(self.scale * h)
            query = self.norm(2 * shift).expand_as(h)
            return self.scale * self.attention(2 * query, h, h)[0] + self.last(h)

        def between(self, h):
            return self.run(self.segment, h, self.shift)

    assert error(Segment(checkpoint="not reentrant"), steps=2, late=late) < 1e-12


class Tied(Norm):
    """A weight that is used as an argument, and what is made of it in half precision on samples in single."""

    def between(self, h):
        return F.linear(h, self.map.weight).float() * self.map(F.linear(self.position, self.map.weight))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "late"), [(Norm, "auto"), (Queries, "auto"), (Latents, "keep"), (Tied, "keep")])
def test_mixed_precision(kind, half, late):
    """Against single precision; loss and probe are as large and as small as loss scaling makes them."""
    values = []
    for mixed in (False, True):
        torch.manual_seed(0)
        model, x, y = kind(), torch.randn(2 * SIZE, SIZE, SIZE), torch.randint(3, (2 * SIZE,))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

        def loss(rows, model=model, x=x, y=y):
            return F.cross_entropy(model(x[rows]).float(), y[rows])

        engine = InRunShapley(
            model, optimizer, SIZE, "first", validation=lambda: 1e-7 * loss(slice(SIZE, None)), late=late
        )
        with engine.step(range(SIZE)):
            with torch.autocast("cpu", half, enabled=mixed):
                train = loss(slice(SIZE))
            (256 * train).backward()
            optimizer.step()
        values.append(engine.values())
    assert relative_error(values[1], values[0]) < (2e-2 if half == torch.bfloat16 else 2e-3)
