"""Objectives against their definitions, alone and for many models at once."""

import math

import pytest
import torch
from torch.func import vmap

from tasks.objective import CLASSIFICATION, REGRESSION


def classified(n=40, n_classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(n_classes, (n,), generator=generator)


def regressed(n=40, seed=0):
    output, targets = torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return output[:, None], targets


CASES = pytest.mark.parametrize(("objective", "case"), [(CLASSIFICATION, classified()), (REGRESSION, regressed())])


def test_what_each_sample_loses():
    logits, labels = classified()
    surprise = [-math.log(row.exp()[label] / row.exp().sum()) for row, label in zip(logits, labels, strict=True)]
    torch.testing.assert_close(CLASSIFICATION.losses(logits, labels), torch.tensor(surprise, dtype=torch.float64))
    output, targets = regressed()
    errors = [(float(o) - float(t)) ** 2 for o, t in zip(output, targets, strict=True)]
    torch.testing.assert_close(REGRESSION.losses(output, targets), torch.tensor(errors, dtype=torch.float64))


@CASES
def test_the_utility_named_loss_is_minus_the_mean_loss(objective, case):
    torch.testing.assert_close(objective.utilities["loss"](*case), -objective.losses(*case).mean())


@CASES
def test_samples_do_not_see_each_other(objective, case):
    together = objective.losses(*case)
    alone = [objective.losses(output[None], target[None]) for output, target in zip(*case, strict=True)]
    assert together.shape == (40,)
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_sequence_loses_what_its_positions_lose_on_average():
    logits, labels = classified(n=42)
    sequences = logits.view(6, 7, 5), labels.view(6, 7)
    by_position = CLASSIFICATION.losses(logits, labels).view(6, 7)
    torch.testing.assert_close(CLASSIFICATION.losses(*sequences), by_position.mean(dim=1))
    for name, utility in CLASSIFICATION.utilities.items():
        torch.testing.assert_close(utility(*sequences), utility(logits, labels), msg=name)


def test_an_output_of_one_column_is_a_number_and_one_of_several_is_refused():
    output, targets = regressed(n=2)
    torch.testing.assert_close(REGRESSION.losses(output, targets), REGRESSION.losses(output[:, 0], targets))
    with pytest.raises(RuntimeError, match="shape"):
        REGRESSION.losses(output.expand(2, 2), targets)  # would broadcast to [2, 2]


def test_accuracy_is_the_share_of_largest_logits_that_are_right_and_does_not_depend_on_their_scale():
    logits, labels = classified()
    accuracy = CLASSIFICATION.utilities["accuracy"]
    right = sum(row.tolist().index(max(row.tolist())) == label for row, label in zip(logits, labels, strict=True))
    assert float(accuracy(logits, labels)) == float(right) / 40
    assert accuracy(3 * logits + 1, labels) == accuracy(logits, labels)
    assert accuracy(torch.eye(5)[labels], labels) == 1


@CASES
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_diverged_has_no_utility_of_any_kind(objective, case, bad):
    output, targets = case
    diverged = torch.full_like(output, bad)
    for name, utility in objective.utilities.items():
        assert not torch.isfinite(utility(diverged, targets)), name
        assert torch.isfinite(utility(output, targets)), name


@CASES
def test_many_models_are_judged_as_each_alone(objective, case):
    output, targets = case
    outputs = torch.stack([output, 2 * output, output.flip(0)])
    for measure in (objective.losses, *objective.utilities.values()):
        together = vmap(measure, in_dims=(0, None))(outputs, targets)
        torch.testing.assert_close(together, torch.stack([measure(o, targets) for o in outputs]))


def test_only_what_has_classes_has_an_accuracy():
    assert set(CLASSIFICATION.utilities) == {"loss", "accuracy"}
    assert set(REGRESSION.utilities) == {"loss"}
