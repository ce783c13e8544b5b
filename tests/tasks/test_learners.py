"""Convex learners' games: agreement with scikit-learn, with the conditions of optimality, and among themselves."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import sklearn
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from baselines import Game, evaluate, exact_shapley
from inrun_bench.runs.peak_memory import peak_bytes
from tasks.learners import LogisticGame, RidgeGame, newton
from tasks.learners import coalitions as coalitions_module
from tasks.learners import design as design_module
from tasks.learners.identity import identity_of
from tasks.learners.newton import fit_logistic
from tests.tasks.small_samples import random_coalitions, regression, samples, with_constant


def utilities_one_by_one(data, coalitions, l2):
    """Loss utility and accuracy of scikit-learn's logistic regression on each coalition, [m, 2]."""
    x, y, xv, yv = data
    measured = []
    for coalition in coalitions:
        learner = LogisticRegression(
            C=1 / l2, fit_intercept=False, tol=1e-12, max_iter=10_000, solver="newton-cholesky"
        ).fit(with_constant(x[coalition]), y[coalition])
        right = learner.predict_proba(with_constant(xv))[np.arange(len(yv)), yv]
        measured.append([np.log(right).mean(), learner.score(with_constant(xv), yv)])
    return np.array(measured)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("l2", [1e-2, 1.0, 30.0])
def test_logistic_utilities_are_those_of_scikit_learn(n_classes, l2):
    if n_classes > 2 and tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 6):
        pytest.skip("before scikit-learn 1.6 the one solver that is as exact fits each class against the rest")
    data = samples(n_classes=n_classes)
    coalitions = random_coalitions(24)
    coalitions[:, :n_classes] = True  # scikit-learn only knows the classes that it sees
    np.testing.assert_allclose(
        LogisticGame(*data, l2=l2).measure(coalitions), utilities_one_by_one(data, coalitions, l2), atol=2e-9
    )


def test_with_more_features_than_samples():
    """The computation is in the samples' span, of 12 dimensions; scikit-learn's in all 41."""
    data = samples(n=12, d=40)
    coalitions = random_coalitions(12)
    coalitions[:, :2] = True
    expected = utilities_one_by_one(data, coalitions, 0.5)
    np.testing.assert_allclose(LogisticGame(*data, l2=0.5).measure(coalitions), expected, atol=2e-9)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_empty_coalition_predicts_all_classes_alike_and_a_single_class_is_preferred(n_classes):
    x, y, xv, yv = samples(n_classes=n_classes)
    game = LogisticGame(x, y, xv, yv)
    empty, of_first = game.measure(np.stack([np.zeros(24, bool), y == 0]))
    assert empty[0] == pytest.approx(-np.log(n_classes), rel=1e-14)
    assert empty[1] == (yv == 0).mean()  # ties go to the first class
    of_one_class = LogisticGame(x, y, xv[yv == 0], yv[yv == 0])
    assert of_one_class((y == 0)[None])[0] > of_one_class(np.zeros((1, 24), bool))[0]
    assert np.isfinite(of_first).all()


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_the_gradient_vanishes_at_the_coefficients_and_the_bound_holds(n_classes, l2):
    """Gradients by autograd of a loss written with torch's own cross-entropy; real weights, from a distant start."""
    x, y, _, _ = samples(n_classes=n_classes)
    x, labels = torch.from_numpy(x), torch.from_numpy(y)
    margins_of = torch.arange(n_classes)[1 if n_classes == 2 else 0 :, None]
    targets = (margins_of == labels).double()
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(7, 24, generator=generator, dtype=torch.float64)
    penalties = torch.full((7,), l2, dtype=torch.float64)
    start = 20 * torch.randn(7, len(targets), 4, generator=generator, dtype=torch.float64)

    def fit(tolerance):
        design = design_module.DesignMatrix(x)
        return fit_logistic(design, targets, weights, penalties, start, tolerance=tolerance, max_factors=200)

    coefficients, bounds = fit(1e-9)
    assert (bounds <= 1e-9).all()
    coefficients.requires_grad_()
    logits = torch.einsum("mcd,nd->mnc", coefficients, x)
    if n_classes == 2:
        logits = torch.cat([torch.zeros_like(logits), logits], -1)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(7), reduction="none").view(7, 24)
    ((weights * losses).sum() + (penalties / 2 * coefficients.square().sum((1, 2))).sum()).backward()
    # strongly convex: the distance from the minimiser is at most the gradient's norm over l2
    assert coefficients.grad.flatten(1).norm(dim=1).max() / l2 < 1e-8

    rough, rough_bounds = fit(1e-1)
    distance = (rough - coefficients.detach()).flatten(1).norm(dim=1)
    assert distance.max() > 1e-9  # it did stop early
    assert (distance <= 1.1 * rough_bounds + 1e-9).all()


@pytest.mark.parametrize("penalty", [1e-8, 1e-3, 1.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_step_lowers_the_objective_and_fits_converge_from_anywhere(n_classes, penalty, monkeypatch):
    """Classes overlap, so that the optimum is near 0: full steps from afar overshoot it, further and further."""
    x = torch.tensor([[1.0], [1.0], [1.0], [-2.0], [-2.0], [-2.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2]) % n_classes
    targets = (torch.arange(n_classes)[1 if n_classes == 2 else 0 :, None] == labels).double()
    grid = torch.linspace(-30, 30, 21, dtype=torch.float64)
    start = torch.zeros(21, len(targets), 1, dtype=torch.float64)
    start[:, 0, 0] = grid
    weights, penalties = torch.ones(21, 6, dtype=torch.float64), torch.full((21,), penalty, dtype=torch.float64)

    def objective(factors, steps=2):
        monkeypatch.setattr(newton, "_STEPS_A_FACTOR", steps)
        fit = newton.fit_logistic(design, targets, weights, penalties, start, tolerance=1e-300, max_factors=factors)
        return newton._objective(fit[0], newton._margins(fit[0], x), targets, weights, penalties)

    design = design_module.DesignMatrix(x)
    path = [newton._objective(start, newton._margins(start, x), targets, weights, penalties)]
    path += [objective(1, steps=1), *(objective(factors) for factors in range(1, 6))]
    for before, after in pairwise(path):
        assert (after <= before + 1e-12).all()
    monkeypatch.undo()
    _, bounds = newton.fit_logistic(design, targets, weights, penalties, start, tolerance=1e-6, max_factors=60)
    assert (bounds <= 1e-6).all()


@pytest.mark.parametrize("l2", [1e-8, 1e3])
def test_separable_classes_with_hardly_any_penalty_converge_from_anywhere(l2):
    """One feature, classes apart: the optimum is far away, and full Newton steps overshoot on the way."""
    x = np.array([[-3.0], [-1.0], [1.0], [1.5], [2.0], [9.0]])
    y = np.array([0, 0, 1, 1, 1, 1])
    coalitions = random_coalitions(6, m=30)
    game = LogisticGame(x, y, x, y, l2=l2)
    alone = np.array([game(coalition[None])[0] for coalition in coalitions])
    np.testing.assert_allclose(game(coalitions), alone, atol=1e-9)
    if l2 < 1:
        assert game(np.ones((1, 6), bool))[0] > -1e-4


def all_games():
    classes, several, numbers = samples(n=10), samples(n=10, n_classes=3), regression(n=10)
    return {
        "logistic": lambda **p: LogisticGame(*classes, **p),
        "multinomial": lambda **p: LogisticGame(*several, **p),
        "ridge": lambda **p: RidgeGame(*numbers, **p),
    }


@pytest.mark.parametrize("name", ["logistic", "multinomial", "ridge"])
def test_the_mean_over_a_coalition_is_the_sum_with_a_penalty_times_its_size(name):
    make = all_games()[name]
    coalitions = random_coalitions(10, m=8)
    by_size = [make(l2=0.3 * max(1, coalition.sum()))(coalition[None])[0] for coalition in coalitions]
    np.testing.assert_allclose(make(l2=0.3, renormalised=True)(coalitions), by_size, atol=2e-9)


@pytest.mark.parametrize("name", ["logistic", "multinomial", "ridge"])
def test_neither_chunks_nor_threads_nor_the_table_of_products_matter(name, monkeypatch):
    make = all_games()[name]
    coalitions = random_coalitions(10, m=50)
    together = make()(coalitions)
    monkeypatch.setattr(coalitions_module, "_CHUNK_BYTES", 1)  # one coalition at a time
    np.testing.assert_allclose(make()(coalitions), together, atol=2e-9)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        np.testing.assert_allclose(make()(coalitions), together, atol=2e-9)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(design_module, "_TABLE_BYTES", 0)
    np.testing.assert_allclose(make()(coalitions), together, atol=2e-9)


@pytest.mark.parametrize("name", ["logistic", "multinomial", "ridge"])
def test_chunks_obey_the_free_memory(name, monkeypatch):
    """A chunk takes what was promised: a quarter of the free memory, shared by the threads."""
    game = all_games()[name]()
    bytes_each, evaluate_chunk = memory_and_work(game)
    sizes = []

    def watched(members, *rest):
        sizes.append(len(members))
        return evaluate_chunk(members, *rest)

    monkeypatch.setattr(game, evaluate_chunk.__name__, watched)
    free = 4 * 5 * bytes_each * torch.get_num_threads()
    monkeypatch.setattr(coalitions_module, "free_bytes", lambda device: free)
    game(random_coalitions(10, m=20))
    assert sum(sizes) == 22
    assert max(sizes) <= 5


@pytest.mark.parametrize("table_bytes", [0, 2**25])
@pytest.mark.parametrize("name", ["logistic", "multinomial", "ridge"])
def test_a_coalition_takes_no_more_memory_than_is_reckoned_with(name, table_bytes, monkeypatch):
    monkeypatch.setattr(design_module, "_TABLE_BYTES", table_bytes)
    if name == "ridge":
        game, more = RidgeGame(*regression(n=60, d=20)), ()
    else:
        game = LogisticGame(*samples(n=60, d=20, n_classes=2 if name == "logistic" else 4))
        more = (game._starts,)
    bytes_each, evaluate_chunk = memory_and_work(game)
    coalitions = torch.from_numpy(random_coalitions(60, m=30))
    evaluate_chunk(coalitions[:1], *more)  # the table, if there is one, is there for all
    peak = peak_bytes(lambda: evaluate_chunk(coalitions, *more))
    assert bytes_each / 4 < peak / len(coalitions) <= bytes_each


def memory_and_work(game):
    if isinstance(game, RidgeGame):
        return game._bytes_a_coalition(), game._mean_squared_errors
    return game._bytes_a_fit(), game._measure


@pytest.mark.parametrize("name", ["logistic", "multinomial", "ridge"])
def test_single_precision_agrees_to_single_precision(name):
    make = all_games()[name]
    coalitions = random_coalitions(10)
    np.testing.assert_allclose(make(dtype=torch.float32)(coalitions), make()(coalitions), rtol=1e-4)


@pytest.mark.parametrize("utility", ["loss", "r2"])
@pytest.mark.parametrize("d", [4, 40])
def test_ridge_utilities_are_those_of_scikit_learn(utility, d):
    x, y, xv, yv = regression(d=d)
    coalitions = random_coalitions(24)
    expected = []
    for coalition in coalitions[1:]:
        learner = Ridge(alpha=0.7, fit_intercept=False, solver="svd").fit(with_constant(x[coalition]), y[coalition])
        error = ((learner.predict(with_constant(xv)) - yv) ** 2).mean()
        expected.append(-error if utility == "loss" else learner.score(with_constant(xv), yv))
    game = RidgeGame(x, y, xv, yv, l2=0.7, utility=utility)
    np.testing.assert_allclose(game(coalitions)[1:], expected, rtol=1e-11)
    empty = -(yv**2).mean()  # it predicts 0
    assert game(coalitions[:1])[0] == pytest.approx(empty if utility == "loss" else 1 + empty / yv.var(), rel=1e-12)


@pytest.mark.parametrize("name", ["logistic", "multinomial", "ridge"])
def test_twins_have_the_same_value_and_values_add_up(name):
    (x, y, xv, yv), learner = (
        (regression(n=7), RidgeGame)
        if name == "ridge"
        else (samples(n=7, n_classes=2 if name == "logistic" else 3), LogisticGame)
    )
    x[6], y[6] = x[5], y[5]
    game = learner(x, y, xv, yv)
    assert isinstance(game, Game)
    values = exact_shapley(game).values
    assert values[5] == pytest.approx(values[6], abs=1e-8)
    empty, grand = evaluate(game, np.array([[False] * 7, [True] * 7]))
    assert values.sum() == pytest.approx(grand - empty, abs=1e-8)


def test_class_names_do_not_matter():
    x, y, xv, yv = samples(n_classes=3)
    names = np.array(["ant", "bee", "cat"])
    coalitions = random_coalitions(24)
    numbered = LogisticGame(x, y, xv, yv)
    named = LogisticGame(x, names[y], xv, names[yv])
    np.testing.assert_array_equal(named(coalitions), numbered(coalitions))
    assert named.identity() == numbered.identity()


@pytest.mark.parametrize("name", ["logistic", "multinomial", "ridge"])
def test_no_coalitions_have_no_utilities(name):
    assert all_games()[name]()(np.empty((0, 10), bool)).shape == (0,)


OTHER_SETTINGS = ({"l2": 2.0}, {"renormalised": True}, {"dtype": torch.float32}, {"tolerance": 1e-6})


def test_an_identity_tells_the_same_numbers_in_other_arrays_apart():
    numbers = np.arange(6.0)
    splits = [(numbers,), (numbers[:2], numbers[2:]), (numbers[:3], numbers[3:])]
    shapes = [(numbers.reshape(2, 3),), (numbers.reshape(3, 2),), (numbers.view(np.int64),)]
    assert len({identity_of("game", {}, *arrays) for arrays in splits + shapes}) == 6


def test_identity_changes_with_all_that_utilities_follow_from_and_with_nothing_else():
    data = samples()
    base = LogisticGame(*data).identity()
    assert base == LogisticGame(*data, utility="accuracy", l2=1).identity()  # both utilities come from one fit
    assert len(base) == 64
    others = [LogisticGame(*data, **p) for p in OTHER_SETTINGS]
    for part in (0, 2):
        changed = [array.copy() for array in data]
        changed[part][3, 1] = np.nextafter(changed[part][3, 1], 9)
        others.append(LogisticGame(*changed))
    for part in (1, 3):
        changed = [array.copy() for array in data]
        changed[part][3] = 1 - changed[part][3]
        others.append(LogisticGame(*changed))
    numbers = regression()
    others += [RidgeGame(*numbers), RidgeGame(*numbers, utility="r2"), RidgeGame(*numbers, l2=2.0)]
    others.append(RidgeGame(data[0], data[1].astype(float), data[2], data[3].astype(float)))
    identities = [base, *(game.identity() for game in others)]
    assert len(set(identities)) == len(identities)
    # pinned: a store of utilities outlives the process
    game = RidgeGame([[1.0], [2.0]], [0.0, 1.0], [[3.0]], [1.0])
    assert game.identity() == "d87d7157fe9fd2554b5ad94f85223a9f7fbab47a935e196fbe43bd1b6560c3e7"


def test_a_fit_that_does_not_converge_names_its_coalition():
    game = LogisticGame(*samples(), tolerance=1e-300, max_factors=3)
    coalitions = np.zeros((3, 24), bool)
    coalitions[1, [3, 5]] = coalitions[2, 4] = True  # the empty one starts at its optimum
    with pytest.raises(RuntimeError, match=r"size 2 with members \[3, 5\].*in this batch: 2 of 3"):
        game(coalitions)


def test_a_penalty_below_the_working_precision_is_refused():
    x = 2.0 ** np.array([[19], [20], [21]])  # exact, so that the second pivot of a single sample is exactly 0
    game = RidgeGame(x, [1.0, 2.0, 3.0], x, [1.0, 2.0, 3.0], l2=1e-12, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"l2=1e-12 is too small for torch.float32.*size 1 with members \[1\]"):
        game(np.array([[False, True, False]]))


def exact_ridge_utility(x, y, xv, yv, l2):
    """Minus the mean squared error of the ridge fitted to all samples, in fractions."""
    a, judged = ([[*map(Fraction, row), Fraction(1)] for row in part.tolist()] for part in (x, xv))
    targets, d = list(map(Fraction, y.tolist())), len(a[0])
    rows = [
        [sum((r[i] * r[j] for r in a), Fraction(l2) * (i == j)) for j in range(d)]
        + [sum((r[i] * t for r, t in zip(a, targets, strict=True)), Fraction(0))]
        for i in range(d)
    ]
    for i in range(d):  # Gauss and Jordan; no pivot is 0
        rows[i] = [number / rows[i][i] for number in rows[i]]
        for k in set(range(d)) - {i}:
            rows[k] = [b - rows[k][i] * p for b, p in zip(rows[k], rows[i], strict=True)]
    errors = [
        sum(c * row[d] for c, row in zip(r, rows, strict=True)) - Fraction(t)
        for r, t in zip(judged, yv.tolist(), strict=True)
    ]
    return -float(sum(error * error for error in errors) / len(errors))


SAMPLES_OF_RIDGE = {
    "as they are": lambda z: z,
    "far from zero": lambda z: z + 1e7,
    "farther": lambda z: z + 2e8,
    "one feature far from zero": lambda z: z + np.array([1e9, 0.0, 1.0]),
    "large": lambda z: z * 1e6,
    "of different sizes": lambda z: z * [1e-4, 1.0, 1e7],
    "powers of a year": lambda z: np.stack([z[:, 0] + 20, (z[:, 0] + 20) ** 2, (z[:, 0] + 20) ** 3], 1),
    "nearly the same": lambda z: z[:, :1] + 1e-7 * z,
}


@pytest.mark.parametrize("samples_of", SAMPLES_OF_RIDGE.values(), ids=SAMPLES_OF_RIDGE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("l2", [1.0, 1e-4, 1e-9, 1e-14])
def test_ridge_is_exact_or_refused(samples_of, dtype, l2):
    """Whatever the samples: the utilities of fractions, or an error that says what to do."""
    chance = np.random.default_rng(0)
    x, y = samples_of(chance.normal(size=(13, 3))), chance.normal(size=13)
    x, xv, y, yv = x[:9], x[9:], y[:9], y[9:]
    game, tolerance = RidgeGame(x, y, xv, yv, l2=l2, dtype=dtype), 1e-6 if dtype == torch.float64 else 1e-3
    for members in (9, 5, 2):
        coalition = np.arange(9) < members
        expected = exact_ridge_utility(x[coalition], y[coalition], xv, yv, l2)
        utility = utility_or_refusal(game, coalition)
        if isinstance(utility, float):
            assert abs(utility - expected) <= tolerance * max(-expected, 1e-3 * np.square(yv).mean())
        else:
            assert "raise l2, standardise the features" in utility
            assert dtype == torch.float32 or samples_of in list(SAMPLES_OF_RIDGE.values())[2:] or l2 < 1e-9


def utility_or_refusal(game, coalition):
    try:
        return float(game(coalition[None])[0])
    except ValueError as error:
        return str(error)


def test_normal_equations_that_rounding_makes_indefinite_are_refused_too():
    """Two samples, four features: below the working precision, pivots are as often negative as they are 0."""
    generator, pair, refused = np.random.default_rng(0), np.arange(6)[None] < 2, 0
    for _ in range(20):
        x, y = 10 * generator.normal(size=(6, 3)), generator.normal(size=6)
        try:
            RidgeGame(x, y, x, y, l2=1e-12, dtype=torch.float32)(pair)
        except ValueError as error:
            refused += "is too small for torch.float32" in str(error)
    assert refused >= 18


def test_ridge_stays_accurate_with_hardly_any_penalty():
    """Where there are fewer samples than features the normal equations alone lose as many digits as l2 is small."""
    x, y, xv, yv = regression(n=24, d=12)
    coalitions = random_coalitions(24, m=40)[1:]
    coalitions = coalitions[coalitions.any(1)]
    expected = []
    for coalition in coalitions:
        a, b = with_constant(x[coalition]), y[coalition]
        u, s, vt = np.linalg.svd(a, full_matrices=False)
        coefficients = vt.T @ (s / (s**2 + 1e-7) * (u.T @ b))
        expected.append(-((with_constant(xv) @ coefficients - yv) ** 2).mean())
    np.testing.assert_allclose(RidgeGame(x, y, xv, yv, l2=1e-7)(coalitions), expected, rtol=1e-8)


@pytest.mark.parametrize("learner", [LogisticGame, RidgeGame])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x_train": np.full((24, 4), np.nan)}, ValueError, "x_train must be finite, got NaN or infinity in 24 of 24"),
        ({"x_validation": np.full((30, 4), np.inf)}, ValueError, "x_validation must be finite"),
        ({"x_train": np.full((24, 4), "a")}, TypeError, "x_train must be real numbers, got an array of <U1"),
        ({"x_train": np.zeros(24)}, ValueError, r"x_train must have shape \(samples, features\).*got \(24,\)"),
        ({"x_train": np.zeros((0, 4))}, ValueError, "at least one of each"),
        ({"x_validation": np.zeros((30, 5))}, ValueError, "same number of features, got 4 and 5"),
        ({"y_train": np.zeros(23)}, ValueError, r"y_train must have one entry for each of the 24.*got \(23,\)"),
        ({"y_validation": np.full(30, np.nan)}, ValueError, "y_validation must"),
        ({"l2": 0.0}, ValueError, "l2 must be a positive finite number, got 0.0"),
        ({"l2": np.inf}, ValueError, "l2 must be a positive finite number, got inf"),
        ({"l2": "1"}, TypeError, r"l2 must be a positive number, got '1' \(str\)"),
        ({"utility": "f1"}, ValueError, "utility must be one of 'loss', .*, got 'f1'"),
        ({"dtype": torch.float16}, ValueError, "dtype must be one of torch.float64, torch.float32, got torch.float16"),
    ],
)
def test_bad_input(learner, change, error, message):
    names = ("x_train", "y_train", "x_validation", "y_validation")
    arguments = dict(zip(names, samples() if learner is LogisticGame else regression(), strict=True))
    with pytest.raises(error, match=message):
        learner(**arguments | change)


def test_bad_labels_and_targets():
    x, y, xv, yv = samples()
    with pytest.raises(ValueError, match="y_validation must only have labels that y_train has, got also 7"):
        LogisticGame(x, y, xv, np.where(yv == 0, 7, 1))
    with pytest.raises(ValueError, match="y_train must have at least two classes, got only"):
        LogisticGame(x, y * 0, xv, yv * 0)
    with pytest.raises(ValueError, match="features are too large to be squared in single precision, up to"):
        LogisticGame(1e25 * x, y, xv, yv)
    with pytest.raises(ValueError, match="tolerance must be a positive finite number"):
        LogisticGame(x, y, xv, yv, tolerance=0)
    with pytest.raises(ValueError, match=r"utility 'r2' needs y_validation to vary, got 1\.0 for each of 30"):
        RidgeGame(x, y, xv, np.ones(30), utility="r2")


@pytest.mark.parametrize("name", ["logistic", "ridge"])
@pytest.mark.parametrize("bad", [np.ones(10, bool), np.ones((2, 9), bool), np.ones((2, 10))])
def test_bad_coalitions(name, bad):
    with pytest.raises(ValueError, match=r"coalitions must be a bool array of shape \(m, 10\), got"):
        all_games()[name]()(bad)
