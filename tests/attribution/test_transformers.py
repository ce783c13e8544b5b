"""Models of transformers, in tiny configurations: exact, or refused with the reason, as docs/engine.md says."""

import logging
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from inrun_bench import InRunShapley
from tests.attribution.watched import score_error

transformers = pytest.importorskip("transformers")

VOCABULARY, WIDTH = 17, 8
SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "attn_implementation": "eager",
}
DECODER = {**SHARED, "num_key_value_heads": 1}
EXPERTS = {"experts_implementation": "eager"}


def decoder(kind, **more):
    def build(dropout):
        config = getattr(transformers, f"{kind}Config")(**{**DECODER, "attention_dropout": dropout, **more})
        return getattr(transformers, f"{kind}ForCausalLM")(config)

    return build


def encoder(kind, **more):
    def build(dropout):
        drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        config = getattr(transformers, f"{kind}Config")(**{**SHARED, **drop, "num_labels": 3, **more})
        return getattr(transformers, f"{kind}ForSequenceClassification")(config)

    return build


def gpt2(dropout):
    drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    sizes = {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **drop, attn_implementation="eager"))


def t5(dropout):
    sizes = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, dropout_rate=dropout, decoder_start_token_id=0)
    )


def vit(dropout):
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    own = {name: value for name, value in SHARED.items() if name not in ("vocab_size", "max_position_embeddings")}
    config = transformers.ViTConfig(**own, **drop, image_size=8, patch_size=4, num_labels=3)
    return transformers.ViTForImageClassification(config)


MODELS = {
    "GPT-2": gpt2,
    "Llama": decoder("Llama"),
    "Mistral": decoder("Mistral"),
    "Qwen2": decoder("Qwen2"),
    "Gemma": decoder("Gemma", head_dim=4),
    "BERT": encoder("Bert"),
    "RoBERTa": encoder("Roberta", pad_token_id=1),
    "T5": t5,
    "ViT": vit,
    "Mixtral": decoder("Mixtral", num_local_experts=2, **EXPERTS),
    "Qwen2-MoE": decoder(
        "Qwen2Moe",
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        **EXPERTS,
    ),
}
TOLERANCE = {"Gemma": 1e-8}  # whose norm computes in single precision, as T5's did before version 5
if int(transformers.__version__.partition(".")[0]) < 5:
    TOLERANCE["T5"] = 1e-8


class Logits(nn.Module):
    def __init__(self, inner, name, padded):
        super().__init__()
        self.inner, self.name, self.padded = inner, name, padded

    def forward(self, x):
        if self.name == "ViT":
            return self.inner(pixel_values=x).logits
        mask = (torch.arange(x.shape[1]) < 3 + x[:, :1] % 3).long() if self.padded else None
        more = {"decoder_input_ids": x} if self.name == "T5" else {}
        return self.inner(input_ids=x, attention_mask=mask, **more).logits


def loss(output, y, reduction="mean"):
    if output.dim() == 2:
        return F.cross_entropy(output, y[:, 0] % 3, reduction=reduction)
    each = F.cross_entropy(output[:, :-1].transpose(1, 2), y[:, 1:], reduction="none").mean(1)
    return each.mean() if reduction == "mean" else each


def error(name, *, batch=3, positions=5, dropout=0.0, padded=False, checkpointed=False, **options):
    torch.manual_seed(0)
    model = MODELS[name](dropout)
    model.config.use_cache = False
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(2, VOCABULARY, (3 * batch, positions))
    x = torch.randn(3 * batch, 3, 8, 8, dtype=torch.float64) if name == "ViT" else ids
    return score_error(Logits(model.train(), name, padded), x, ids, batch, loss=loss, **options)


EXPERTS_REFUSED = (
    r"joins parameter .*experts|which layers are called.*depends on the samples|experts\.0.*sees a part of them"
)
REFUSED = {"Mixtral": EXPERTS_REFUSED, "Qwen2-MoE": EXPERTS_REFUSED}
HARDER = {"dropout": 0.1, "padded": True, "checkpointed": True}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in MODELS if name not in REFUSED])
@pytest.mark.parametrize("setting", [{}, HARDER], ids=["plain", "dropped, padded, checkpointed"])
def test_scores_are_exact(name, setting, caplog):
    caplog.set_level(logging.ERROR)
    assert error(name, **setting) < TOLERANCE.get(name, 1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BERT", "T5"])
def test_as_many_positions_as_samples(name):
    assert error(name, batch=5, positions=5) < TOLERANCE.get(name, 1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_experts_that_see_a_part_of_the_batch_are_refused(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        error(name)


def test_the_documentation_says_so():
    page = (Path(__file__).parents[2] / "docs/engine.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- transformers: begin -->(.*?)<!-- transformers: end -->", page, re.S)[1]
    rows = dict(re.findall(r"^\| ([^|]+?) \| (exact|refused)", table, re.M))
    told = {name.strip(): outcome for names, outcome in rows.items() for name in names.split(",")}
    assert told == {name: "refused" if name in REFUSED else "exact" for name in MODELS}


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_scored(monkeypatch):
    """ViT's bare parameters are followed; where they are, it is run as it is written."""
    monkeypatch.setitem(SHARED, "num_hidden_layers", 1)
    compiled = {}

    def call(model, x):
        if id(model) not in compiled:
            compiled[id(model)] = torch.compile(model, backend="aot_eager")
        return compiled[id(model)](x)

    try:
        assert error("ViT", call=call, last_digits=True) < 1e-12
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("half", [False, True])
def test_biases_alone_whose_gradients_may_be_nothing_but_rounding(half):
    """Attention does not depend on the biases of its keys; Adam multiplies what is left of their gradients."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = transformers.BertForSequenceClassification(config).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    x, y = torch.randint(50, (24, 7)), torch.randint(2, (24,))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def loss(index):
        return F.cross_entropy(model(x[index]).logits.float(), y[index])

    engine = InRunShapley(model, optimizer, 24, "first", validation=lambda: loss(torch.arange(16, 24)))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        for index in torch.randperm(16).split(4):
            with engine.step(index):
                loss(index).backward()
                optimizer.step()
                optimizer.zero_grad()
    assert len(engine.ledger.steps) == 4
