"""What cannot be made a task of, or could be meant in two ways, is refused by name, and the message says what to do."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import tasks
from tests.tasks.test_arrays import LABELS, NAMES, NUMBERS, SGD, D, N, X, linear

FRAME = pd.DataFrame(X, columns=["age", "height", "weight", "sex"])
TOKENS = np.arange(N * 5).reshape(N, 5) % 7


def put(value, at, of=X):
    changed = of.copy()
    changed[at] = value
    return changed


def column(values):
    return FRAME.assign(height=values)


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, LABELS, strict=True))


class Unlike(nn.Module):
    """Its weights are drawn from a generator of its own."""

    generator = torch.Generator()

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, 3, generator=self.generator))

    def forward(self, x):
        return x @ self.weight


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), None


SHARED = nn.Linear(D, 3)
SINGLE = put("fox", 7, of=NAMES)
LOW = pd.Series(LABELS, index=np.arange(N) + 1)

X_REFUSED = {
    "a gap": (
        {"x": put(np.nan, (7, 2))},
        ValueError,
        r"x must have no gaps \(NaN\), got 1 such rows, first at \[7, 2\]; fill",
    ),
    "infinity": ({"x": put(-np.inf, (7, 2))}, ValueError, r"x must have no infinite numbers, .* first at \[7, 2\]"),
    "beyond float32": ({"x": put(1e39, (7, 2))}, ValueError, r"x must have no numbers beyond 3\.4e\+38.*scale them"),
    "a gap in a tensor": ({"x": torch.tensor(put(np.nan, (7, 2)))}, ValueError, r"x must have no gaps .*\[7, 2\]"),
    "a column with gaps": (
        {"x": column(np.where(X[:, 1] > 1, np.nan, 1.0))},
        ValueError,
        rf"column 'height' of x must have no gaps \(NaN\), got {np.sum(X[:, 1] > 1)} such rows, first at row",
    ),
    "pandas' own gap": (
        {"x": column(pd.array([1, None] * 30, dtype="Int64"))},
        ValueError,
        r"column 'height' of x must have no gaps .* 30 such rows, first at row 1; fill them in, or leave them out",
    ),
    "a column of strings": (
        {"x": column(NAMES)},
        TypeError,
        r"column 'height' of x must be real numbers, got 'owl' .str.; encode .*get_dummies.* leave it out",
    ),
    "a column of categories": (
        {"x": column(pd.Categorical(LABELS))},
        TypeError,
        "column 'height' of x .*got categories",
    ),
    "a column of dates": ({"x": column(pd.Timestamp("2020-01-01"))}, TypeError, "column 'height' of x .*datetime64"),
    "complex": ({"x": X + 1j}, TypeError, "x must be real numbers, got an array of complex128"),
    "strings": ({"x": X.astype(str)}, TypeError, "x must be real numbers, got an array of <U"),
    "masked": ({"x": np.ma.array(X, mask=X > 1)}, ValueError, "x must have no masked entries"),
    "sparse": ({"x": scipy.sparse.csr_matrix(X)}, TypeError, r"x must be dense, got csr_matrix; x\.toarray\(\) is"),
    "a sparse tensor": ({"x": torch.tensor(X).to_sparse()}, TypeError, r"x must be a dense tensor, .*to_dense\(\)"),
    "rows of several lengths": ({"x": [[1.0], [1.0, 2.0]], "y": [0, 1]}, ValueError, "x must be rows of one length"),
    "one feature without an axis": (
        {"x": X[:, 0]},
        ValueError,
        r"x must have shape \[samples, \.\.\.\].*got \[60\]; x\[:, None\]",
    ),
    "a series": ({"x": FRAME["age"]}, ValueError, r"x must have shape .*got \[60\]"),
    "no sample": ({"x": X[:0], "y": LABELS[:0]}, ValueError, r"at least one sample and one feature, got \[0, 4\]"),
    "no column": ({"x": FRAME[[]]}, ValueError, r"at least one sample and one feature, got \[60, 0\]"),
    "a file's name": (
        {"x": "samples.csv"},
        TypeError,
        "x must be a NumPy array, pandas DataFrame, torch tensor .* got str",
    ),
    "a loader": (
        {"x": DataLoader(TensorDataset(torch.tensor(X)))},
        TypeError,
        "x must be .* map-style torch Dataset, got DataLoader",
    ),
    "integers that may be tokens": (
        {"x": TOKENS},
        ValueError,
        "x holds integers, which may be tokens or measurements: say scaling=None .* or scaling='feature' or 'global'",
    ),
    "a frame of integers": ({"x": FRAME.astype(int)}, ValueError, "x holds integers, which may be tokens"),
    "integers beyond int64": (
        {"x": np.full((N, D), 2**63, dtype=np.uint64), "scaling": "global"},
        ValueError,
        "x must be integers that int64 holds, got 9223372036854775808",
    ),
}

DATASETS_REFUSED = {
    "and targets beside it": (
        {"x": TensorDataset(torch.tensor(X))},
        TypeError,
        "y must be left out where x is a Dataset",
    ),
    "of features alone": (
        {"x": TensorDataset(torch.tensor(X)), "y": None},
        TypeError,
        r"pairs \(x, y\), got tuple of 1 as sample 0",
    ),
    "of dicts": ({"x": Items([{"x": 1}]), "y": None}, TypeError, r"pairs \(x, y\), got dict as sample 0"),
    "without samples": (
        {"x": Items([]), "y": None},
        ValueError,
        "x must have at least one sample, got a Dataset without any",
    ),
    "without length": ({"x": Stream(), "y": None}, TypeError, "map-style Dataset, .* got Stream; collect its samples"),
    "of several shapes": (
        {"x": Items([(X[0], 0), (X[0, :2], 1)]), "y": None},
        ValueError,
        r"the x of samples of x must all have one shape, got \(2,\) and \(4,\); crop",
    ),
    "none, and no targets": (
        {"y": None},
        TypeError,
        "y must be given, unless x is a torch Dataset of pairs, got ndarray",
    ),
}

Y_REFUSED = {
    "too few": ({"y": LABELS[:-1]}, ValueError, r"y must have a target for each of the 60 samples of x, .* got \[59\]"),
    "three axes": ({"y": LABELS[:, None, None]}, ValueError, r"shape \[60\] or \[60, 1\] .* got \[60, 1, 1\]"),
    "a number": ({"y": np.array(3)}, ValueError, r"y must have a target for each of the 60 samples"),
    "another index": (
        {"x": FRAME, "y": LOW},
        ValueError,
        r"x and y must have the same index.*y\.loc\[x\.index\], or reset_index",
    ),
    "a gap": (
        {"y": put(np.nan, 7, of=NUMBERS)},
        ValueError,
        "y must have no gaps .* in 1 of 60 samples, first in sample 7",
    ),
    "a gap among strings": (
        {"y": put(None, 7, of=NAMES.astype(object))},
        ValueError,
        "y must have no gaps .* sample 7",
    ),
    "a gap in a list": (
        {"y": [*NAMES[:-1], np.nan]},
        ValueError,
        "y must have no gaps .* sample 59; leave such samples out",
    ),
    "a gap among categories": (
        {"y": pd.Categorical(NAMES).remove_categories("owl")},
        ValueError,
        "y must have no gaps",
    ),
    "pandas' own gap": ({"y": pd.array([1, None] * 30, dtype="Int64")}, ValueError, "y must have no gaps .* 30 of 60"),
    "infinity": ({"y": put(np.inf, 7, of=NUMBERS)}, ValueError, "y must have no infinite numbers, .* at row 7"),
    "of two kinds": ({"y": [*NAMES[:-1], 3]}, TypeError, "y must be labels or numbers of one kind, got int and str"),
    "dates": ({"y": np.full(N, "2020", dtype="M8[D]")}, TypeError, "y must be labels .* or numbers, got datetime64"),
    "tuples": ({"y": pd.Series([(1, 2)] * N)}, TypeError, "y must be labels or numbers of one kind, got tuple"),
    "masked": ({"y": np.ma.array(LABELS, mask=LABELS > 1)}, ValueError, "y must have no masked entries"),
    "a dict": ({"y": {}}, TypeError, "y must be a NumPy array, pandas Series, .* got dict"),
    "floats that may be labels": (
        {"y": LABELS.astype(float)},
        ValueError,
        r"all whole numbers \(3 distinct ones\), which may be labels or numbers: say classification=True or",
    ),
    "one class": ({"y": ["cat"] * N}, ValueError, "y must have at least two classes, got only 'cat'"),
    "a class of one sample": ({"y": SINGLE}, ValueError, r"at least two samples, got one of 'fox' \(and 0 other"),
    "numbers that are integers": (
        {"y": np.arange(N)},
        ValueError,
        r"got one of 0 \(and 59 other such classes\).*; say classification=False if y holds numbers",
    ),
    "strings as numbers": ({"y": NAMES, "classification": False}, TypeError, "y must be real numbers, got"),
    "one-hot rows": (
        {"y": np.eye(3, dtype=int)[LABELS]},
        ValueError,
        r"with n_classes given, got int64 \[60, 3\].*argmax",
    ),
    "several numbers a sample": ({"y": X}, ValueError, r"y must be one target a sample, .* got float64 \[60, 4\]"),
    "sequences of numbers": ({"y": X, "n_classes": 3}, ValueError, r"y must be one target a sample"),
    "labels that sequences do not have": (
        {"x": TOKENS, "y": TOKENS, "n_classes": 6, "scaling": None},
        ValueError,
        r"y must be integers in 0 \.\. 5, since n_classes = 6, got int64 in 0 \.\. 6",
    ),
    "another number of classes": ({"n_classes": 4}, ValueError, "distinct labels in y, 3, got 4; leave it out"),
    "classes of numbers": ({"n_classes": 3, "classification": False}, ValueError, "n_classes must be left out with"),
    "half a class": ({"n_classes": 2.5}, TypeError, "n_classes must be an integer of at least 2, got 2.5"),
    "a kind of task": ({"classification": "yes"}, TypeError, "classification must be True or False, got 'yes'"),
}

HELD = (X[:10], LABELS[:10])
PARTS_REFUSED = {
    "all samples": ({"test": 1.0}, ValueError, r"test must be a share of the samples in \(0, 1\), or an int, got 1.0"),
    "no sample": ({"validation": 0}, ValueError, "validation must be at least 1, got 0"),
    "no share": ({"validation": 0.0}, ValueError, r"validation must be a share of the samples in \(0, 1\)"),
    "less than a sample": ({"test": 0.005}, ValueError, "test must be at least one sample, got 0.005 of 60; raise"),
    "a name": ({"test": "last"}, TypeError, r"test must be a share .* a number of them, a pair \(x, y\) .* got 'last'"),
    "a truth": ({"test": True}, TypeError, r"test must be a share .* got True \(bool\)"),
    "nothing to train on": (
        {"test": 0.5, "validation": 30},
        ValueError,
        "share the 60 samples of x.*validation 30, test 30; take less",
    ),
    "too many": ({"n_train": 40}, ValueError, "share the 60 samples of x.*got n_train 40, validation 12, test 12"),
    "none to train on": ({"n_train": 0}, ValueError, "n_train must be at least 1, got 0"),
    "a part of a sample": ({"n_train": 2.5}, TypeError, "n_train must be an integer of at least 1, got 2.5"),
    "three arrays": ({"test": (X, LABELS, X)}, ValueError, r"test must be a pair \(x, y\), got a tuple of 3"),
    "features alone": ({"test": (X[:10], None)}, TypeError, "y of test must be given"),
    "a gap": ({"test": (put(np.nan, 7), LABELS)}, ValueError, "x of test must have no gaps"),
    "fewer features": (
        {"test": (X[:10, :3], LABELS[:10])},
        ValueError,
        r"x of test must have samples of the shape .* \[4\], got \[3\]",
    ),
    "fewer labels": (
        {"test": (X, LABELS[:10])},
        ValueError,
        "y of test must have a target for each of the 60 samples of x of test",
    ),
    "an unknown label": (
        {"y": NAMES, "validation": (X[:2], ["newt", "cat"])},
        ValueError,
        r"y of validation must only have labels that y has \('cat', 'dog', 'owl'\), got also 'newt'; leave out",
    ),
    "floats where x has tokens": (
        {"x": TOKENS, "test": (TOKENS * 1.0, LABELS), "scaling": None},
        TypeError,
        "x of test must be integers",
    ),
    "columns in another order": (
        {"x": FRAME, "test": (FRAME[["height", "age", "weight", "sex"]], LABELS)},
        ValueError,
        "x and x of test must have the same columns in the same order, got 'age' and 'height' first",
    ),
    "a class that is not trained": (
        {"y": np.repeat(["cat", "dog", "owl"], [40, 18, 2]), "n_train": 2, "validation": 1, "test": 1},
        ValueError,
        r"class 'cat' has no sample in the training set of 2 .2 of 3 classes have none.; draw more",
    ),
    "a class that cannot be divided": (
        {"y": np.repeat(["cat", "dog", "owl"], [40, 18, 2]), "validation": 15, "test": 15},
        ValueError,
        "class 'owl' has a single sample among the 30 from which the next part is drawn.*hold out samples",
    ),
}

REST_REFUSED = {
    "scaling": (
        {"scaling": "minmax"},
        ValueError,
        "scaling must be one of 'auto', 'feature', 'global', None, got 'minmax'",
    ),
    "whole numbers as dtype": ({"dtype": torch.int64}, TypeError, r"dtype must be a floating one, .* got torch\.int64"),
    "NumPy's dtype": ({"dtype": np.float32}, TypeError, "dtype must be a floating one"),
    "numbers that the dtype does not hold": (
        {"x": X * 1e10, "dtype": torch.float16, "scaling": None},
        ValueError,
        r"x of the train set has numbers that torch\.float16 does not hold; scale them",
    ),
    "a name with a space": ({"name": "my task"}, ValueError, "name must be of letters, .* got 'my task'"),
    "a negative seed": ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    "a generator": ({"seed": np.random.default_rng(0)}, TypeError, "seed must be an integer of at least 0"),
    "too many wrong labels": ({"flipped": 1.5}, ValueError, r"flipped, .* must lie in \[0, 1\], got 1\.5"),
    "wrong labels by name": ({"flipped": "some"}, TypeError, "flipped must be a real number, got 'some'"),
    "the name of a recipe": ({"recipe": "sgd"}, TypeError, "recipe must be a tasks.Recipe, or a mapping .* got str"),
    "no recipe": (
        {"recipe": {}},
        TypeError,
        "recipe must be a tasks.Recipe, or a mapping of names to at least one of them",
    ),
    "recipes by name": ({"recipe": {"a": SGD, "b": "sgd"}}, TypeError, "got a mapping to Recipe and str"),
}

MODELS_REFUSED = {
    "no model": ({"model": None}, ValueError, "model must be an nn.Module or a callable .* failed with TypeError"),
    "a class that takes arguments": (
        {"model": nn.Linear},
        ValueError,
        r"callable without arguments .* such as lambda: .*missing 2",
    ),
    "a callable that returns none": (
        {"model": lambda: X},
        TypeError,
        "model must be an nn.Module, or a callable .* got ndarray",
    ),
    "the same model each time": (
        {"model": lambda: SHARED},
        ValueError,
        "fresh nn.Module each time .* or pass the model itself",
    ),
    "weights of its own generator": (
        {"model": Unlike},
        ValueError,
        "model must draw its weights from torch's global generator",
    ),
    "nothing to train": (
        {"model": nn.Softmax(dim=1)},
        ValueError,
        "model must have weights that are trained, got none in Softmax",
    ),
    "lazy layers": (
        {"model": nn.LazyLinear(3)},
        ValueError,
        "model must know the shapes of its weights, got lazy layers",
    ),
    "other features": (
        {"model": linear(3, 7)},
        ValueError,
        r"model must take samples x of torch.float32 \[2, 4\]; running it failed with RuntimeError",
    ),
    "too few outputs": (
        {"model": linear(2)},
        ValueError,
        r"a number for each of 3 classes of x \[2, \.\.\.\], got shape \[2, 2\]; give its last",
    ),
    "two outputs for a number": (
        {"y": NUMBERS, "model": linear(2)},
        ValueError,
        r"one number a sample of x .* got shape \[2, 2\]",
    ),
    "several outputs": ({"model": lambda: Pair(D, 3)}, TypeError, "model must return a tensor, got tuple; wrap it"),
}

GROUPS = (X_REFUSED, DATASETS_REFUSED, Y_REFUSED, PARTS_REFUSED, REST_REFUSED, MODELS_REFUSED)
ALL = [pytest.param(*case, id=name) for group in GROUPS for name, case in group.items()]


@pytest.mark.parametrize(("changes", "error", "message"), ALL)
def test_what_makes_no_task_is_refused(changes, error, message):
    given = {"x": X, "y": LABELS, "model": linear(), "recipe": SGD, **changes}
    with pytest.raises(error, match=message) as refused:
        tasks.from_arrays(given.pop("x"), given.pop("y"), **given)
    assert re.match(r"[a-z`]", str(refused.value))  # a sentence of the house, whoever found it
