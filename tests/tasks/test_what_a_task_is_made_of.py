"""A task whose parts do not fit each other is refused, by the name of the part; so is a model that mixes samples."""

import numpy as np
import pytest
import torch
from torch import nn

from tasks import Recipe, Split, Task

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y, NUMBERS = (X[:, 0] > 0).long(), X[:, 0].clone()
EVERYONE = np.ones((1, 12), bool)


def task(train=(X, Y), validation=(X, Y), n_classes=2, architecture=lambda: nn.Linear(3, 2)):
    parts = {"train": Split(*train), "validation": Split(*validation), "test": Split(*train)}
    recipe = Recipe("sgd", learning_rate=0.1, batch_size=4, epochs=2)
    return Task(
        "mine",
        "sgd",
        0,
        **parts,
        n_classes=n_classes,
        flipped=np.array([], int),
        recipe=recipe,
        architecture=architecture,
    )


BAD = {
    "fewer labels": ({"train": (X, Y[:11])}, ValueError, "x and y of a Split must have as many samples"),
    "fewer samples": ({"validation": (X[:11], Y)}, ValueError, "x and y of a Split must have as many samples"),
    "arrays": ({"train": (X.numpy(), Y.numpy())}, TypeError, "x of a Split must be a tensor, got ndarray"),
    "widths": (
        {"validation": (X[:, :2], Y)},
        ValueError,
        "of the validation set .* got 2, 1, .*; there, 3, 1, ",
    ),
    "types": ({"validation": (X, Y.int())}, ValueError, "got 3, 1, torch.int32; there, 3, 1, torch.int64"),
    "floats": (
        {"train": (X, Y + 0.7), "validation": (X, Y + 0.7)},
        TypeError,
        "labels of the train .* got torch.float",
    ),
    "two targets": (
        {"train": (X, X[:, :2]), "validation": (X, X[:, :2]), "n_classes": None},
        ValueError,
        "targets of the train set .* one number a sample",
    ),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD)
def test_parts_that_do_not_fit_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        task(**changes)


class Centred(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


WRONG = {
    "three outputs for two classes": (2, lambda: nn.Linear(3, 3), "a number for each of 2 classes .* got shape .4, 3."),
    "one output for two classes": (2, lambda: nn.Linear(3, 1), "a number for each of 2 classes .* got shape .4, 1."),
    "two outputs for a number": (None, lambda: nn.Linear(3, 2), "one number a sample of x .* got shape .4, 2."),
    "a mean over the batch": (2, lambda: Centred(3, 2), "mixes the samples of a batch, or draws random numbers"),
}


@pytest.mark.parametrize(("n_classes", "architecture", "message"), WRONG.values(), ids=WRONG)
def test_a_model_that_does_not_fit_or_mixes_samples_is_refused(n_classes, architecture, message):
    samples = (X, NUMBERS if n_classes is None else Y)
    mine = task(samples, samples, n_classes, architecture)
    with pytest.raises(ValueError, match=message):
        mine.trajectory_game()(EVERYONE)


def test_a_model_of_numbers_may_return_them_in_a_column():
    assert np.isfinite(
        task((X, NUMBERS), (X, NUMBERS), None, lambda: nn.Linear(3, 1)).trajectory_game()(EVERYONE)
    ).all()
