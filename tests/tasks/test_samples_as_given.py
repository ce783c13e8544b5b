"""What a learner's game is given is taken as it is or refused: labels, masks, columns of frames, collections."""

import copy

import numpy as np
import pandas as pd
import pytest
from sklearn.tree import DecisionTreeClassifier

import tasks
from baselines import CachedGame, UtilityStore
from tasks.learners import EstimatorGame, LogisticGame, RidgeGame
from tasks.learners.samples import class_codes, class_codes_of_outputs, real_targets

BIG = 2**53 + 1
X = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
CLASSES, NUMBERS = ["a", "b", "b"], [0.0, 1.0, 2.0]
GAMES = {
    "logistic": lambda x=X, y=CLASSES, xv=X, yv=CLASSES: LogisticGame(x, y, xv, yv),
    "ridge": lambda x=X, y=NUMBERS, xv=X, yv=NUMBERS: RidgeGame(x, y, xv, yv),
    "estimator": lambda x=X, y=CLASSES, xv=X, yv=CLASSES: EstimatorGame(DecisionTreeClassifier(), x, y, xv, yv),
}
EACH = pytest.mark.parametrize("game", GAMES.values(), ids=GAMES)


@pytest.mark.parametrize("labels", [["a", np.nan, "b"], ["a", None, "b"], ("a", pd.NA, "b")], ids=repr)
@pytest.mark.parametrize("game", [GAMES["logistic"], GAMES["estimator"]])
def test_what_is_missing_among_strings_is_no_class(game, labels):
    for wrong in ({"y": labels}, {"yv": labels}):
        with pytest.raises(
            ValueError, match=rf"y_{'train' if 'y' in wrong else 'validation'} must not have missing labels"
        ):
            game(**wrong)
    with pytest.raises(ValueError, match="missing labels"):
        class_codes_of_outputs([[label, "c"] for label in labels], [["a", "c"]], 3, 1)


@EACH
@pytest.mark.parametrize("argument", ["x", "y", "xv", "yv"])
def test_masked_entries_are_refused_by_name(game, argument):
    name = {"x": "x_train", "y": "y_train", "xv": "x_validation", "yv": "y_validation"}[argument]
    entries = X if "x" in argument else np.array(NUMBERS if game is GAMES["ridge"] else [0, 1, 1])
    masked = np.ma.array(entries, mask=entries == entries.flat[1])
    with pytest.raises(ValueError, match=f"{name} must have no masked entries"):
        game(**{argument: masked})
    coalitions = np.ma.array(np.ones((1, 3), bool), mask=[[True, False, False]])
    with pytest.raises(ValueError, match="coalitions must have no masked entries"):
        game()(coalitions)


@pytest.mark.parametrize("game", [GAMES["logistic"], GAMES["ridge"]])
def test_frames_whose_columns_differ_are_refused(game):
    frame = pd.DataFrame(X, columns=["a", "b"])
    assert game(x=frame, xv=frame).identity() == game().identity()
    for other in (frame[["b", "a"]], frame.rename(columns={"b": "c"})):
        with pytest.raises(ValueError, match="x_train and x_validation must have the same columns in the same order"):
            game(x=frame, xv=other)


LABELS = {
    "uint64 and int64": (np.array([BIG - 1, BIG], np.uint64), np.array([BIG]), [0, 1], [1]),
    "int64 and float64": (np.array([BIG - 1, BIG]), np.array([2.0**53]), [0, 1], [0]),
    "integers among floats": ([BIG - 1, BIG, 0.5], [BIG], [1, 2, 0], [2]),
    "int and bool": ([0, 1, 1], np.array([True, False]), [0, 1, 1], [1, 0]),
}


@pytest.mark.parametrize(("train", "judged", "codes", "judged_codes"), LABELS.values(), ids=LABELS)
def test_labels_are_not_merged_by_rounding(train, judged, codes, judged_codes):
    found = class_codes(train, judged, len(train), len(judged))
    assert (found[0].tolist(), found[1].tolist()) == (codes, judged_codes)
    with pytest.raises(ValueError, match="y_validation must only have labels that y_train has"):
        class_codes([BIG, 0], np.array([2.0**53]), 2, 1)


def test_labels_of_two_kinds_are_refused_and_not_made_strings():
    with pytest.raises(TypeError, match="labels must be of one kind"):
        class_codes([1, "a"], [1], 2, 1)


def test_targets_that_float64_does_not_hold_are_refused():
    with pytest.raises(ValueError, match="y_train must be numbers that float64 holds exactly"):
        real_targets([0.5, BIG], [0.0], 2, 1)
    with pytest.raises(ValueError, match="x_train must be numbers that float64 holds exactly"):
        RidgeGame([[0], [BIG]], [0.0, 1.0], [[0]], [0.0])


@pytest.mark.parametrize("x", [{0: [1.0], 1: [2.0]}, {1, 2}, (i for i in range(2)), "ab", 3])
def test_samples_are_rows_that_can_be_picked(x):
    with pytest.raises(TypeError, match="x_train must be an array, data frame, sparse matrix or list of samples, got"):
        EstimatorGame(DecisionTreeClassifier(), x, [0, 1], [[1.0]], [0])


def test_what_an_identity_follows_from_cannot_be_changed(tmp_path):
    task = tasks.load("iris-logreg", n_train=5)
    changes = {"l2": 50.0, "renormalised": True, "utility": "accuracy"}
    games = [(game, changes) for game in (GAMES["logistic"](), GAMES["ridge"]())]
    games.append((task.trajectory_game(), {"split": "test", "renormalised": True, "utility": "accuracy", "task": task}))
    for game, others in games:
        for name, value in others.items():
            with pytest.raises(AttributeError, match=rf"{name} of a \w+Game cannot be changed"):
                setattr(game, name, value)
        assert copy.deepcopy(game).identity() == game.identity()


def test_a_trajectory_game_whose_samples_were_changed_is_refused(tmp_path):
    task = tasks.load("iris-logreg", n_train=5)
    game, everyone = task.trajectory_game(), np.ones((1, 5), bool)
    cached = CachedGame(game, UtilityStore(tmp_path / "u.db"))
    cached(everyone)
    task.train.x.mul_(-1)
    for call in (lambda: game(everyone), lambda: cached(~everyone), game.identity):
        with pytest.raises(ValueError, match=r"train.x of the task was changed in place since this game"):
            call()
    assert task.trajectory_game()(everyone) != cached(everyone)
