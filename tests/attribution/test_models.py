"""The engine on whole models: what belongs to no layer, what is used twice, what is compiled or checkpointed."""

import copy
import inspect
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from inrun_bench import InRunShapley
from inrun_bench.attribution.capture.fused import FusedLayers
from inrun_bench.attribution.capture.hooks import ForwardAsWritten
from tests.attribution.brute_force import relative_error
from tests.attribution.problem import N_VAL, N, perceptron, problem, tokens

VOCABULARY = 11


class Bare(nn.Module):
    """Parameters that belong to no layer, in all kinds of operations, and a weight that is used as an argument."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.position = nn.Parameter(torch.randn(4, 6))
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.scale = nn.Parameter(torch.rand(6))
        self.norm = nn.RMSNorm(6)
        self.mix = nn.Parameter(torch.randn(6, 6))
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(6, 7)

    def forward(self, x):
        h = self.embedding(x) + self.position[: x.shape[1]]
        h = torch.cat([self.token.expand(len(x), -1, -1), h], 1)
        h = h + self.scale * torch.tanh(self.norm(h) @ (self.mix / self.mix.norm()))
        h += self.scale  # in place
        return F.linear(h[:, 0], self.embedding.weight) * F.softplus(self.temperature) + self.head(h.mean(1))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False)
        self.up, self.head = nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Linear(3, 3)

    def forward(self, x):
        h = F.relu_(self.norm(self.first(x)))
        return self.head(torch.tanh(self.up(F.silu(self.second(h)))).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        y, (h, _) = self.lstm(x)
        return self.head(torch.cat([y.mean(1), h[0]], 1))


class Cell(nn.Module):
    """An operation with two outputs, one made from the other."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 4), nn.Linear(8, 3)

    def forward(self, x):
        h = c = torch.zeros(len(x), 4, dtype=x.dtype)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(torch.cat([h, c], 1))


class Relative(nn.Module):
    """A layer that sees positions alone, and whose output meets the samples in another form than a batch's."""

    def __init__(self):
        super().__init__()
        self.token, self.bias, self.head = nn.Embedding(7, 4), nn.Embedding(9, 2), nn.Linear(4, 3)

    def forward(self, x):
        n = x.shape[1]
        distance = torch.arange(n)[:, None] - torch.arange(n) + n
        bias = self.bias(distance).permute(2, 0, 1)  # [2, n, n]
        h = self.token(x).unflatten(2, (2, 2)).transpose(1, 2)  # [B, 2, n, 2]
        mixed = torch.softmax(h @ h.transpose(2, 3) + bias, -1) @ h
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.inner(x).mean(1))


class TimeFirst(nn.Module):
    """Samples along the second axis, as recurrent models have it."""

    def __init__(self):
        super().__init__()
        self.each, self.norm, self.head = nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.each(x.transpose(0, 1))))).mean(0)


class Folded(nn.Module):
    """Positions folded into the batch."""

    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.each(x.flatten(0, 1))).view(*x.shape[:2], -1).mean(1))


class Residual(nn.Module):
    """A small ResNet with group norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.one, self.two = self.block(8), self.block(8)
        self.head = nn.Linear(8, 3)

    @staticmethod
    def block(width):
        half = [nn.GroupNorm(2, width), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        return nn.Sequential(*half, *copy.deepcopy(half))

    def forward(self, x):
        h = self.stem(x)
        h = h + self.one(h)
        return self.head((h + self.two(h)).mean((2, 3)))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def gpt2(**config):
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": VOCABULARY, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**settings, **dropout, **{"attn_implementation": "eager", **config})
    )


CASES = {
    "bare": {"build": Bare, "shape": (3,), "ids": 7},
    "convolutions": {"build": Convolutions, "shape": (2, 7, 7)},
    "recurrent": {"build": Recurrent, "shape": (6, 3)},
    "cell": {"build": Cell, "shape": (4, 3)},
    "relative": {
        "build": Relative,
        "shape": (4,),
        "ids": 7,
    },
    "attention": {"build": Attention, "shape": (4, 8)},
    "time first": {"build": TimeFirst, "shape": (4, 3)},
    "folded": {"build": Folded, "shape": (4, 3)},
    "gpt2": {"build": gpt2, "shape": (6,), "ids": VOCABULARY, "loss": tokens},
}


@pytest.mark.parametrize(
    ("name", "order", "optimizer"),  # every pair of them at least once
    [
        (name, order, (sgd, adamw)[(i + j) % 2])
        for i, name in enumerate(CASES)
        for j, order in enumerate(["first", "second", "midpoint"])
    ],
)
def test_scores_equal_brute_force(name, order, optimizer):
    if (name, order) == ("recurrent", "second"):
        pytest.skip("torch has no second derivative of the fused LSTM")
    problem(optimizer=optimizer, **CASES[name]).check(order, tolerance=1e-9)


@pytest.mark.parametrize("rules", ["project", "weight-gradient", "gram"])
@pytest.mark.parametrize("name", [*CASES, "perceptron"])
def test_every_rule_gives_the_same_scores(name, rules):
    case = CASES.get(name, {"build": perceptron})
    p = problem(**{**case, "options": {**case.get("options", {}), "rules": rules}})
    engine = p.check("first", steps=4, tolerance=1e-9)
    chosen = set(engine.choices["rules"].values())
    if name in ("gpt2", "perceptron", "attention"):  # sizes are known, and validation positions seen, after a step
        assert rules in chosen


def classified(model, x, y, reduction="mean"):
    return F.cross_entropy(model(x).logits, y, reduction=reduction)


def llama(transformers):
    config = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=16, **config)
    )


def vit(transformers):
    config = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **config)
    )


@pytest.mark.parametrize("order", ["first", "midpoint"])
@pytest.mark.parametrize(
    ("build", "more"),
    [(llama, {"shape": (6,), "ids": VOCABULARY, "loss": tokens}), (vit, {"shape": (1, 8, 8), "loss": classified})],
)
def test_models_from_transformers(build, more, order):
    """Norms and embeddings that are classes of their own have no rule, and are exact."""
    transformers = pytest.importorskip("transformers")
    problem(lambda: build(transformers), adamw, **more).check(order, tolerance=1e-9)


def in_single_precision(p, order, steps=3):
    """The largest relative error of float32 steps against float64 ones from the same weights."""
    exact, rounded = copy.deepcopy(p), copy.deepcopy(p)
    rounded.model.float()
    rounded.x = p.x.float() if p.x.is_floating_point() else p.x
    rounded.optimizer = rounded.build_optimizer(rounded.model)
    exact.optimizer = exact.build_optimizer(exact.model)
    engine = rounded.engine(order)
    errors = []
    for _ in range(steps):
        exact.model.load_state_dict(rounded.model.state_dict())
        expected = exact.brute_force().scores(order)
        with engine.step(range(N)):
            rounded.take_step()
        errors.append(relative_error(engine.ledger.steps[-1].scores, expected))
    return max(errors)


@pytest.mark.parametrize("order", ["first", "midpoint"])
@pytest.mark.parametrize(
    "case",
    [CASES["gpt2"], {"build": Residual, "shape": (1, 8, 8)}],
    ids=["gpt2", "group norm resnet"],
)
def test_whole_models_in_single_precision(case, order):
    plain = lambda m: torch.optim.SGD(m.parameters(), lr=0.05)  # noqa: E731
    assert in_single_precision(problem(optimizer=plain, **case), order) < 1e-5


@pytest.mark.parametrize("order", ["first", "midpoint"])
def test_sparse_gradients(order):
    def build():
        return nn.Sequential(nn.EmbeddingBag(7, 4, sparse=True), nn.Tanh(), nn.Linear(4, 3))

    twin = problem(lambda: nn.Sequential(nn.EmbeddingBag(7, 4), nn.Tanh(), nn.Linear(4, 3)), shape=(3,), ids=7)
    p = problem(build, shape=(3,), ids=7)
    values, expected = p.train(p.engine(order)), twin.train(twin.engine(order))
    assert relative_error(values, expected) < 1e-10


def test_parameters_without_a_rule_are_announced_once(caplog):
    with caplog.at_level(logging.WARNING):
        problem(Bare, shape=(3,), ids=7).check("first", tolerance=1e-9)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages)) == 6
    assert any("parameter 'position' has no ghost rule where 'add' uses it" in m for m in messages)


def test_a_penalty_in_the_loss_belongs_to_no_sample_and_is_refused():
    p = problem(Bare, shape=(3,), ids=7)
    engine = p.engine("first")
    with pytest.raises(ValueError, match=r"joins parameter 'mix'.*weight_decay"), engine.step(range(N)):
        (p.batch_loss() + p.model.mix.square().sum()).backward()


def test_a_penalty_on_a_layers_weight_is_refused_too():
    p = problem()
    engine = p.engine("first")
    with pytest.raises(ValueError, match=r"joins parameter '0.weight'.*weight_decay"), engine.step(range(N)):
        (p.batch_loss() + p.model[0].weight.square().sum()).backward()


@pytest.mark.parametrize("rules", ["project", "weight-gradient"])
@pytest.mark.parametrize("name", ["perceptron", "bare"])
def test_several_backward_passes_through_one_graph_add_up(name, rules):
    case = {**CASES, "perceptron": {"build": perceptron}}[name]
    p = problem(**{**case, "options": {"rules": rules}})
    expected = p.brute_force().scores("first")
    engine = p.engine("first")
    with engine.step(range(N)):
        losses = p.losses()
        losses[:2].sum().backward(retain_graph=True)
        losses[2:].sum().backward()
        p.optimizer.step()
    assert relative_error(engine.values(), expected) < 1e-9


@pytest.mark.parametrize("rules", ["project", "weight-gradient"])
def test_a_gradient_penalty_is_refused(rules):
    p = problem(options={"rules": rules})
    p.x.requires_grad_()
    engine = p.engine("first")
    with (
        pytest.raises((ValueError, RuntimeError), match=r"scores add up to|once_differentiable"),
        engine.step(range(N)),
    ):
        loss = p.batch_loss()
        (slope,) = torch.autograd.grad(loss, p.x, create_graph=True)
        (loss + slope.square().sum()).backward()
        p.optimizer.step()


def test_a_loss_that_couples_samples_is_exact_as_long_as_it_is_a_sum_over_samples_gradients():
    """Contributions are parts of the batch's gradient, so that a contrastive loss has them, too."""

    def contrastive(model, x, y, reduction="mean"):
        z = F.normalize(model(x), dim=1)
        return F.cross_entropy(z @ z.t(), torch.arange(len(x)) // 2)

    p = problem(loss=contrastive)
    engine = p.engine("first")
    v = torch.autograd.grad(p.validation(), list(p.model.parameters()))
    with engine.step(range(N)):
        p.batch_loss().backward()
        gradient = [w.grad.clone() for w in p.model.parameters()]
        p.optimizer.step()
        p.optimizer.zero_grad()
    expected = 0.1 * sum(float((g * u).sum()) for g, u in zip(gradient, v, strict=True))
    assert engine.values().sum() == pytest.approx(expected, rel=1e-10)


def test_several_forward_passes_add_up():
    def twice(model, x, y, reduction="mean"):
        return (
            F.cross_entropy(model(x), y, reduction=reduction)
            + F.mse_loss(model(x * 0.5), model(-x), reduction=reduction)
            if reduction == "mean"
            else None
        )

    problem(loss=twice).check("midpoint")


@pytest.mark.parametrize("rules", ["project", "weight-gradient"])
@pytest.mark.parametrize("order", ["first", "midpoint"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant, order, rules):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = perceptron()[:3], perceptron()[3]

        def forward(self, x):
            return self.head(checkpoint(self.inner, x, use_reentrant=reentrant))

    p, twin = problem(Checkpointed, options={"rules": rules}), problem(options={"rules": rules})
    twin.model.load_state_dict(dict(zip(twin.model.state_dict(), p.model.state_dict().values(), strict=True)))
    if reentrant:  # torch's older form wants an input with a gradient
        p.x.requires_grad_()
        p.validation = lambda model=None: twin_validation(p, twin)
    values, expected = p.train(p.engine(order)), twin.train(twin.engine(order))
    np.testing.assert_allclose(values, expected, rtol=1e-10)


@pytest.mark.parametrize("order", ["first", "midpoint"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_a_loop_that_checkpoints_the_model_or_its_parts(whole, reentrant, order):
    """Torch's older form runs them without a graph at first."""

    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.inner(x.transpose(0, 1)))).mean(0)

    def parts(x):
        hidden = checkpoint(p.model.inner, x.transpose(0, 1), use_reentrant=reentrant)
        return p.model.head(torch.tanh(hidden)).mean(0)

    p = problem(Sequences, shape=(N if whole else N + 1, 4))  # of parts alone it is not seen which of two axes it is
    p.x.requires_grad_()
    model = p.model
    p.validation = lambda model=model: F.cross_entropy(model(p.x[N:].detach()), p.y[N:])
    run = (lambda x: checkpoint(model, x, use_reentrant=reentrant)) if whole else parts
    engine = p.engine(order)
    for step in range(3):
        expected = p.brute_force().scores(order)
        p.run = run
        with engine.step(range(N)):
            with torch.no_grad():
                model(p.x[: 2 + step])  # others, of which nothing is asked
            p.take_step()
        p.run = None
        np.testing.assert_allclose(engine.ledger.steps[-1].scores, expected, rtol=1e-9)


@pytest.mark.parametrize("rules", ["project", "weight-gradient"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_one_backward_pass_over_parts_that_checkpoints_compute_anew(reentrant, rules, bare):
    """Torch's older checkpoints run their layers in the backward pass alone, where nobody knows for which part."""

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = perceptron()[:3], nn.Linear(8, 3)
            self.scale = nn.Parameter(torch.rand(8))

        def forward(self, x):
            hidden = checkpoint(self.inner, x, use_reentrant=reentrant)
            return self.head(hidden * self.scale if bare else hidden)

    p = problem(Checkpointed, options={"rules": rules})
    p.x.requires_grad_()
    twin = copy.deepcopy(p.model)

    def plain(x):
        hidden = twin.inner(x)
        return twin.head(hidden * twin.scale if bare else hidden)

    def validation():
        model = p.model
        hidden = model.inner(p.x[N:].detach())
        return F.cross_entropy(model.head(hidden * model.scale if bare else hidden), p.y[N:])

    p.validation = validation
    probe = torch.autograd.grad(F.cross_entropy(plain(p.x[N:].detach()), p.y[N:]), list(twin.inner.parameters()))
    expected = torch.zeros(N, dtype=torch.float64)
    for i in range(4):
        loss = F.cross_entropy(plain(p.x[i : i + 1].detach()), p.y[i : i + 1]) / N
        own = torch.autograd.grad(loss, list(twin.inner.parameters()))
        expected[i] = 0.1 * sum((g * v).sum() for g, v in zip(own, probe, strict=True))
    for parameter in [*p.model.head.parameters(), p.model.scale]:
        parameter.requires_grad_(False)
    engine = p.engine("first")

    def train(*parts, together):
        p.optimizer.zero_grad()
        with engine.step() as step:
            losses = []
            for rows in parts:
                step.batch(rows)
                losses.append(F.cross_entropy(p.model(p.x[rows]), p.y[rows], reduction="sum") / N)
                if not together:
                    losses.pop().backward()
            if together:
                sum(losses).backward()
            p.optimizer.step()

    with pytest.raises(RuntimeError, match="parts of the step of different sizes were differentiated at once"):
        train([0], [1, 2, 3], together=True)
    if reentrant:
        with pytest.raises(RuntimeError, match="use_reentrant=True was differentiated for several parts"):
            train([0, 1], [2, 3], together=True)
    train([0, 1], [2, 3], together=not reentrant)
    np.testing.assert_allclose(engine.values(), expected, rtol=1e-10)


def twin_validation(p, twin):
    """The validation loss of `p` without checkpoints, which torch's older form cannot differentiate apart."""
    layers = nn.Sequential(*p.model.inner, p.model.head)
    return F.cross_entropy(layers(p.x[N:].detach()), p.y[N:])


def test_checkpointing_saves_the_memory_that_it_is_for():
    """What is saved for terms is not held where autograd would not hold it either."""
    held = []

    class Probe(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self):
            super().__init__(lambda t: held.append(t.shape) or t, lambda t: t)

    p = problem()
    engine = p.engine("first", rules="project")
    with engine.step(range(N)):
        with Probe():
            loss = p.batch_loss()
        loss.backward()
        p.optimizer.step()
    assert (N, 8) in held  # inputs of the second layer pass through the hooks of whoever governs saved tensors


DYNAMO = "ignore:.*should not be instantiated:DeprecationWarning"  # the compiler's own


class RootMeanSquare(nn.Module):
    """A norm as language models have it: a class of their own, whose rule is found by its form."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


@pytest.mark.filterwarnings(DYNAMO)
@pytest.mark.parametrize(
    ("case", "order", "rules"),  # a compilation takes seconds: every pair of them once
    [
        ("perceptron", "first", "auto"),
        ("perceptron", "integrated", "weight-gradient"),
        ("gpt", "first", "weight-gradient"),
        ("gpt", "integrated", "auto"),
        ("positions expanded", "first", "auto"),
    ],
)
def test_compiled_models_stay_one_graph(case, order, rules, monkeypatch):
    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Embedding(VOCABULARY, 8), nn.Embedding(6, 8)
            self.norm = nn.LayerNorm(8) if case == "gpt" else RootMeanSquare(8)
            self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, VOCABULARY)

        def forward(self, x):
            positions = torch.arange(x.shape[1])
            h = self.token(x) + self.position(positions if case == "gpt" else positions.expand_as(x))
            return self.head(F.gelu(self.inner(self.norm(h))))

    scored, plain = [], FusedLayers.score_compiled
    monkeypatch.setattr(FusedLayers, "score_compiled", lambda *a, **k: scored.append(a[1]) or plain(*a, **k))
    given = {"build": Gpt, "shape": (6,), "ids": VOCABULARY, "loss": tokens} if case != "perceptron" else {}
    p, twin = problem(**given), problem(**given)
    p.run = torch.compile(p.model, fullgraph=True, backend="aot_eager")
    try:
        values, expected = p.train(p.engine(order, rules=rules), 3), twin.train(twin.engine(order), 3)
        assert relative_error(values, expected) < 1e-10
        for w, u in zip(p.model.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(w, u, rtol=1e-10, atol=1e-12)
        # two linear maps, twice: the first step is run as the model is written
        assert len(scored) == (4 if rules == "weight-gradient" and order == "first" else 0)
    finally:
        torch._dynamo.reset()


class Biased(nn.Module):
    """A block with a table of relative positions, which the first one looks up for all, and a bare scale."""

    def __init__(self, has_table):
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 4), nn.Parameter(torch.rand(4))
        self.table = nn.Embedding(5, 1) if has_table else None

    def forward(self, x, bias=None):
        if self.table is not None:
            places = torch.arange(x.shape[1])
            bias = self.table((places[:, None] - places).clamp(-2, 2) + 2)[..., 0]
        weights = (x @ x.transpose(1, 2) + bias).softmax(-1)
        return self.scale * torch.tanh(self.inner(weights @ x)), bias


class BiasedBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Biased(True), Biased(False)]), nn.Linear(4, 3)

    def forward(self, x):
        bias = None
        for block in self.blocks:
            x, bias = block(x, bias)
        return self.head(x.mean(1))


class Attending(nn.Module):
    """Layers whose rules want all of their arguments, or their states."""

    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2, batch_first=True), "next": nn.GRU(4, 4)})
        self.inner, self.head = Called(self.block), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(torch.tanh(x))).mean(1))


class Called(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        x = self.block["attention"](x, x, x)[0]
        return self.block["next"](x.transpose(0, 1))[0].transpose(0, 1)


@pytest.mark.parametrize("build", [BiasedBlocks, Attending])
@pytest.mark.filterwarnings(DYNAMO, "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("order", ["first", "integrated"])
def test_what_a_compiled_graph_hides_is_run_as_it_is_written(order, build):
    p, twin = problem(build, shape=(6, 4)), problem(build, shape=(6, 4))
    p.run = torch.compile(p.model, backend="aot_eager")
    try:
        engine = p.engine(order)
        values, expected = p.train(engine, 3), twin.train(twin.engine(order), 3)
        assert relative_error(values, expected) < 1e-10
        for w, u in zip(p.model.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(w, u, rtol=1e-10, atol=1e-12)
        whole = torch.compile(p.model, backend="aot_eager", fullgraph=True)
        with pytest.raises(Exception, match="InRunShapley follows parameters of this module"):
            whole(p.x)
        copied = copy.deepcopy(p.model)
        assert not any(
            "forward" in vars(module) and module.forward.__self__ is not module for module in copied.modules()
        )
        engine.detach()
        assert not any("forward" in vars(module) for module in p.model.modules())
    finally:
        torch._dynamo.reset()


@pytest.mark.filterwarnings(DYNAMO)
@pytest.mark.parametrize("rules", ["project", "weight-gradient"])
def test_parts_of_a_compiled_model_that_are_differentiated_together_are_refused(rules):
    """A graph does not say for which part it is differentiated."""
    p = problem()
    engine = p.engine("first", rules=rules)
    p.train(engine, 1)
    p.run = torch.compile(p.model, backend="aot_eager")

    def train(together):
        with engine.step() as step:
            losses = []
            for rows in ([0, 1], [2, 3]):
                step.batch(rows)
                losses.append(F.cross_entropy(p.run(p.x[rows]), p.y[rows], reduction="sum") / N)
                if not together:
                    losses.pop().backward()
            if together:
                sum(losses).backward()
            p.optimizer.step()
            p.optimizer.zero_grad()

    try:
        train(together=False)
        with pytest.raises(RuntimeError, match="compiled model was called for several parts"):
            train(together=True)
    finally:
        torch._dynamo.reset()


def test_stand_ins_have_the_signature_of_what_they_stand_for():
    """A parent may hand its child what the child's forward names, and no more."""
    p = problem(BiasedBlocks, shape=(6, 4))
    engine = p.engine("first")
    p.train(engine, 2)
    layers = [module for module in p.model.modules() if "forward" in vars(module)]
    assert {type(layer) for layer in layers} >= {Biased, nn.Linear}
    for layer in layers:
        assert inspect.signature(layer.forward) == inspect.signature(copy_of(layer).forward)
    p.model.blocks[0].forward = user = p.model.blocks[0].forward.__call__
    engine.detach()
    assert vars(p.model.blocks[0])["forward"] is user  # what a user has put over it is the user's


@pytest.mark.parametrize("kept", ["saved", "copied"])
def test_a_model_that_was_saved_or_copied_while_it_was_watched_can_be_watched(kept, tmp_path):
    p = problem(BiasedBlocks, shape=(6, 4))
    p.train(p.engine("first"), 2)
    if kept == "saved":
        torch.save(p.model, tmp_path / "model.pt")
        model = torch.load(tmp_path / "model.pt", weights_only=False)
    else:
        model = copy.deepcopy(p.model)
    p.model, p.optimizer = model, p.build_optimizer(model)
    engine = p.check("first", steps=2)
    assert any(isinstance(vars(module).get("forward"), ForwardAsWritten) for module in model.modules())
    engine.detach()


def copy_of(layer):
    plain = copy.copy(layer)
    vars(plain).pop("forward", None)
    return plain


@pytest.mark.filterwarnings(DYNAMO)
def test_a_compiled_model_that_ran_before_the_engine_was_made_is_compiled_anew():
    p, twin = problem(), problem()
    p.run = torch.compile(p.model, fullgraph=True, backend="aot_eager")
    try:
        p.take_step()
        twin.take_step()
        values, expected = p.check("first").values(), twin.train(twin.engine("first"))
        assert relative_error(values, expected) < 1e-10
    finally:
        torch._dynamo.reset()


@pytest.mark.filterwarnings(DYNAMO)
def test_the_engine_may_be_given_a_compiled_model():
    values = []
    for given in (torch.compile, lambda model, **_: model):
        p = problem()
        p.run = torch.compile(p.model, backend="aot_eager")
        engine = InRunShapley(given(p.model, backend="aot_eager"), p.optimizer, N, "first", validation=p.validation)
        values.append(p.train(engine, steps=3))
    torch._dynamo.reset()
    assert np.array_equal(*values)


def test_a_layer_that_is_not_seen_is_missed():
    """Whatever keeps a layer's call from its hooks, its gradient without scores gives it away."""
    p = problem()
    engine = p.check("first", steps=3)
    forward = type(p.model[3]).forward
    p.run = lambda x: forward(p.model[3], p.model[:3](x))
    with pytest.raises(ValueError, match=r"step 3: parameter '3.weight' has a gradient, but nothing was seen"):
        p.check("first", engine=engine, steps=1)


def test_positions_and_samples_of_one_number_are_not_confused():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position, self.head = nn.Embedding(7, 4), nn.Embedding(N, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head((self.token(x) + self.position(torch.arange(x.shape[1]))).mean(1))

    problem(Positions, shape=(N,), ids=7).check("first")
    problem(Positions, shape=(N,), ids=7, options={"batch_axis": {"position": None}}).check("first")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"each": 0},
            r"layer 'each' \(Linear\) returned a tensor of shape \[20, 5\], whose axis 0 does not number them",
        ),
        ({"each": 2}, "whose axis 2 does not number them"),
        ({"each": -1}, r"batch_axis\['each'\] must be an axis from 0 on, 'folded' or None, got -1"),
        ("first", "batch_axis must be an axis from 0 on, 'folded' or None, got 'first'"),
        ({"nowhere": 1}, "batch_axis names 'nowhere', which is no layer of the model"),
    ],
)
def test_a_batch_axis_that_cannot_be_found(axes, message):
    p = problem(Folded, shape=(4, 3))
    with pytest.raises(ValueError, match=message):
        p.check("first", engine=p.engine("first", batch_axis=axes))


def test_batch_norm_is_served_frozen_and_refused_in_training():
    def build():
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        model(torch.randn(20, 4))
        return model.eval()

    p = problem(build)
    engine = p.check("midpoint")
    p.model.train()
    with (
        pytest.raises(TypeError, match=r"batch norm couples .*'1' \(BatchNorm1d\).*GroupNorm.*eval"),
        engine.step(range(N)),
    ):
        p.take_step()


def test_dropout_outside_of_rules_is_exact():
    """The scores are of the gradients that were, whatever random numbers made them."""
    p = problem(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)))
    p.validation = lambda model=None: F.cross_entropy(p.model.eval()(p.x[N:]), p.y[N:]) + 0 * p.model.train()(p.x).sum()
    engine = p.engine("first")
    for _ in range(3):
        v = torch.autograd.grad(p.validation(), list(p.model.parameters()))
        with engine.step(range(N)):
            p.batch_loss().backward()
            gradient = [w.grad.clone() for w in p.model.parameters()]
            p.optimizer.step()
            p.optimizer.zero_grad()
        expected = 0.1 * sum(float((g * u).sum()) for g, u in zip(gradient, v, strict=True))
        assert engine.ledger.steps[-1].scores.sum() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rules", ["project", "gram", "weight-gradient", "auto"])
def test_weights_after_a_run_are_those_of_a_run_without_the_engine(rules):
    for name, case in {**CASES, "residual": {"build": Residual, "shape": (1, 8, 8)}}.items():
        case = {**case, "options": {**case.get("options", {}), "rules": rules}}
        plain, watched = problem(**case), problem(**case)
        engine = watched.engine("first")
        for _ in range(3):
            plain.take_step()
            with engine.step(range(N)):
                watched.take_step()
        for w, u in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
            if rules in ("project", "gram"):
                assert torch.equal(w, u), name
            else:
                torch.testing.assert_close(w, u, rtol=1e-6, atol=1e-9)


def test_a_copy_of_a_watched_model_is_not_watched():
    p = problem(options={"rules": "weight-gradient"})
    engine = p.check("first", steps=1)
    twin = copy.deepcopy(p.model)
    with torch.no_grad():
        twin[0].weight.zero_()
    with engine.step(range(N)):
        loss = p.batch_loss()
        F.cross_entropy(twin(p.x[:N]), p.y[:N]).backward()  # somebody else's pass
        loss.backward()
        p.optimizer.step()
        p.optimizer.zero_grad()
    assert torch.equal(twin[0](p.x), twin[0].bias.expand(N + N_VAL, -1))


def test_detaching_leaves_nothing_behind():
    for case in CASES.values():
        p = problem(**{**case, "options": {**case.get("options", {}), "rules": "weight-gradient"}})
        engine = p.engine("first")
        with engine.step(range(N)):
            p.take_step()
        kept = engine.values()
        engine.detach()
        for module in p.model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert "forward" not in vars(module)
        for parameter in p.model.parameters():
            assert not parameter._post_accumulate_grad_hooks
        assert not p.optimizer._optimizer_step_pre_hooks
        assert not p.optimizer._optimizer_step_post_hooks
        p.take_step()
        np.testing.assert_array_equal(engine.values(), kept)


def test_parameters_that_are_replaced_or_moved():
    p = problem()
    engine = p.check("first", steps=1)
    p.model[0].weight = nn.Parameter(torch.randn(8, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"parameter '0.weight' was replaced"), engine.step(range(N)):
        pass
    p = problem()
    engine = InRunShapley(p.model, p.optimizer, N, validation=p.validation)
    p.model.to("meta")
    with (
        pytest.raises(RuntimeError, match=r"parameter '0.weight' (moved from cpu to meta|was replaced)"),
        engine.step(range(N)),
    ):
        pass
