import pytest
import torch
from torch.nn import functional

from inrun_bench.attribution.products.embedding_dot import embedding_dot
from tests.attribution.products.cases import TOLERANCE, draw, error

TABLE = 11


def draw_ids(*shape):
    return torch.randint(TABLE, shape, generator=torch.Generator().manual_seed(sum(shape)))


def exact(ids, b, probe, padding_idx=None):
    """Scores from autograd's gradients of the table, sample by sample, in float64."""
    scores = []
    for ids_i, b_i in zip(ids, b.double(), strict=True):
        table = torch.zeros(probe.shape, dtype=torch.float64, requires_grad=True)
        functional.embedding(ids_i, table, padding_idx).backward(b_i)
        scores.append((table.grad * probe.double()).sum())
    return torch.stack(scores)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (37, 64), (2, 3, 65), (2, 2, 2, 300), (2, 3, 1030)])
def test_agrees_with_autograd(backend, dtype, shape):
    ids, b, probe = draw_ids(*shape[:-1]), draw(*shape, dtype=dtype), draw(TABLE, shape[-1])
    assert error(embedding_dot(ids, b, probe, backend=backend), exact(ids, b, probe)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("padding_idx", [0, 4, -1])
def test_padding_has_no_gradient(backend, padding_idx):
    ids, b, probe = draw_ids(6, 9), draw(6, 9, 5), draw(TABLE, 5)
    truth = exact(ids, b, probe, padding_idx)
    b[ids == padding_idx % TABLE] = torch.nan
    assert error(embedding_dot(ids, b, probe, padding_idx, backend), truth) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_any_strides(dtype):
    ids, probe = draw_ids(4, 3).to(dtype).t(), draw(20, TABLE).t()
    b = draw(3, 1, 20).expand(3, 4, 20)  # the gradient of a mean over positions
    for x, y in ((ids, b), (ids[:, ::2], b[:, ::2]), (ids, draw(20, 3, 4).permute(1, 2, 0))):
        assert error(embedding_dot(x, y, probe, backend="triton"), exact(x, y, probe)) <= 1e-5


def test_the_same_ids_in_another_order_score_the_same():
    ids, b, probe = draw_ids(3, 8), draw(3, 8, 5), draw(TABLE, 5)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = embedding_dot(ids[:, order], b[:, order], probe, backend="triton")
    torch.testing.assert_close(shuffled, embedding_dot(ids, b, probe, backend="triton"), rtol=1e-5, atol=1e-5)


def test_an_id_outside_the_table_is_seen_in_its_sample_alone():
    b, probe = draw(3, 2, 5), draw(TABLE, 5)
    scores = embedding_dot(torch.tensor([[0, TABLE], [0, 1], [-1, 1]]), b, probe, backend="triton")
    assert scores.isnan().tolist() == [True, False, True]


def test_the_same_bits_from_run_to_run():
    ids, b, probe = draw_ids(3, 20), draw(3, 20, 37), draw(TABLE, 37)
    assert torch.equal(embedding_dot(ids, b, probe, backend="triton"), embedding_dot(ids, b, probe, backend="triton"))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_scores_nothing(shape):
    scores = embedding_dot(draw_ids(*shape[:-1]), draw(*shape), draw(TABLE, shape[-1]), backend="triton")
    assert torch.equal(scores, torch.zeros(shape[0]))


def test_double_precision_is_kept_by_the_twin():
    ids, b, probe = draw_ids(2, 3), draw(2, 3, 4).double(), draw(TABLE, 4).double()
    torch.testing.assert_close(embedding_dot(ids, b, probe), exact(ids, b, probe), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.ones(2, 3)}, r"ids must be int32 or int64 \[B, ...\], got torch.float32 \[2, 3\]"),
        ({"b": torch.ones(2, 4, 4)}, r"b must be \[2, 3, 'd'\].*got \[2, 4, 4\]"),
        ({"probe": torch.ones(TABLE, 5)}, r"probe must be \['rows', 4\], as wide as b, got \[11, 5\]"),
        ({"padding_idx": 11}, "padding_idx must be -11 to 10 or None, got 11"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"ids": draw_ids(2, 3), "b": torch.ones(2, 3, 4), "probe": torch.ones(TABLE, 4)} | change
    with pytest.raises(ValueError, match=message):
        embedding_dot(**arguments)
