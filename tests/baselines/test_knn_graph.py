"""A k-NN graph in place of features: the same values where it tells all, those of its own game where it does not."""

import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array, csr_matrix
from scipy.spatial.distance import cdist

from baselines import exact_shapley, knn_shapley
from baselines.knn import KNNGraph, threshold_knn_shapley, weighted_knn_shapley
from tests.baselines.neighbour_games import FAMILY, RADIUS, THRESHOLD, WEIGHTED, NearestNeighbours, dataset

each = pytest.mark.parametrize("case", FAMILY, ids=lambda case: case.__name__)
by_k = pytest.mark.parametrize("case", [case for case in FAMILY if case is not THRESHOLD], ids=lambda c: c.__name__)


def nearest(data, length):
    """Indices and distances of the nearest training points [t, length]."""
    distances = cdist(data[2], data[0])
    indices = np.argsort(distances, axis=1, kind="stable")[:, :length]
    return indices, np.take_along_axis(distances, indices, axis=1)


def sparse(indices, distances, n_train, *, kind=csr_array):
    """As `kneighbors_graph` makes it: rows are not sorted by column, and zeros are stored."""
    t, length = indices.shape
    return kind((distances.ravel(), indices.ravel(), np.arange(t + 1) * length), shape=(t, n_train))


def values(case, data, graph, k=5):
    return case.values(None, data[1], graph, data[3], k=k, metric="precomputed")


@each
def test_a_graph_of_all_training_points_is_their_distances(case):
    data = dataset(60, 12)
    indices, distances = nearest(data, 60)
    expected = case.values(*data)
    shuffle = np.random.default_rng(0).permuted(np.tile(np.arange(60), (12, 1)), axis=1)
    shuffled = [np.take_along_axis(x, shuffle, axis=1) for x in (indices, distances)]
    for graph in (
        KNNGraph(indices, distances, n_train=60),
        KNNGraph(indices.tolist(), distances.astype(np.float64).tolist(), n_train=60),
        KNNGraph(*shuffled, n_train=60),  # distances tell the order
        sparse(indices, distances, 60),
        sparse(*shuffled, 60, kind=csr_matrix),
        coo_array(sparse(indices, distances, 60)),
        sparse(indices, distances, 60).tocsc(),
    ):
        np.testing.assert_allclose(values(case, data, graph), expected, atol=1e-12)


@by_k
@pytest.mark.parametrize("length", [3, 5, 8])
def test_equals_enumeration_of_the_game_in_which_the_others_never_vote(case, length):
    *data, k = *dataset(9, 4, classes=2), 3
    graph = KNNGraph(*nearest(data, length), n_train=9)
    expected = exact_shapley(Listed(case.game(*data, k), graph.indices)).values
    np.testing.assert_allclose(values(case, data, graph, k), expected, atol=1e-12)


class Listed:
    """A game of which a test point sees but the training points that are listed for it."""

    def __init__(self, game, lists):
        self.n_players = game.n_players
        self.singles = []
        for squares, label, listed in zip(game.squares, game.tests, lists, strict=True):
            single = object.__new__(NearestNeighbours)
            single.__dict__ |= game.__dict__ | {"squares": [squares], "tests": [label]}
            self.singles.append((single, np.isin(np.arange(game.n_players), listed)))

    def __call__(self, coalitions):
        return np.mean([single(coalitions & seen) for single, seen in self.singles], axis=0)


@by_k
def test_values_add_up_to_the_same_however_few_are_listed(case):
    data = dataset()
    for length in (5, 20, 100):
        graph = KNNGraph(*nearest(data, length), n_train=300)
        assert values(case, data, graph).sum() == pytest.approx(case.values(*data).sum(), abs=1e-12)


@pytest.mark.parametrize("length", [5, 20, 100, 299])
def test_hard_votes_are_off_by_one_over_the_length_of_the_lists_at_most(length):
    data = dataset(t=7)
    indices, _ = nearest(data, length)
    of_lists = knn_shapley(None, data[1], KNNGraph(indices, n_train=300), data[3], metric="precomputed")
    assert np.abs(of_lists.values - knn_shapley(*data).values).max() <= 1 / length
    assert np.all(of_lists.values[np.setdiff1d(np.arange(300), indices)] == 0)
    assert of_lists.parameters["neighbours_listed"] == length


@by_k
def test_an_order_is_enough_where_distances_do_not_count(case):
    data = dataset(60, 12)
    indices, distances = nearest(data, 20)
    order = KNNGraph(indices, n_train=60)
    if case is WEIGHTED:
        with pytest.raises(ValueError, match="the k-NN graph has no distances, which these values need; pass them"):
            values(case, data, order)
    else:
        expected = values(case, data, KNNGraph(indices, distances, n_train=60))
        np.testing.assert_array_equal(values(case, data, order), expected)


def test_an_order_is_kept_and_equal_distances_tie():
    labels = [0, 1, 1], [0]
    by_order = knn_shapley(None, labels[0], KNNGraph([[2, 1, 0]], n_train=3), labels[1], 1, metric="precomputed")
    expected = knn_shapley(None, labels[0], [[3, 2, 1]], labels[1], 1, metric="precomputed")
    np.testing.assert_array_equal(by_order.values, expected.values)
    for graph in (KNNGraph([[2, 1, 0]], [[4, 4, 4]], n_train=3), csr_array([[4.0, 4.0, 4.0]])):
        tied = knn_shapley(None, labels[0], graph, labels[1], 1, metric="precomputed")
        expected = knn_shapley(None, labels[0], [[1, 2, 3]], labels[1], 1, metric="precomputed")
        np.testing.assert_array_equal(tied.values, expected.values)


def test_chunks_and_threads_change_nothing():
    data = dataset(500, 300)
    graph = KNNGraph(*nearest(data, 40), n_train=500)
    expected = knn_shapley(None, data[1], graph, data[3], metric="precomputed").values
    for options in ({"chunk_bytes": 1}, {"chunk_bytes": 8 * 40 * 7}, {"n_jobs": 1}):
        of_options = knn_shapley(None, data[1], graph, data[3], metric="precomputed", **options).values
        np.testing.assert_allclose(of_options, expected, atol=1e-13)


def radius_graph(data, radius):
    distances = cdist(data[2], data[0])
    rows, columns = np.nonzero(distances <= radius)
    return csr_array((distances[rows, columns], (rows, columns)), shape=distances.shape)


@pytest.mark.parametrize("radius", [0.5, 1.5, RADIUS])
def test_a_radius_needs_those_within_alone(radius):
    """As `radius_neighbors_graph` lists them, some test points having none; or in lists that reach beyond it."""
    data = dataset()
    expected = threshold_knn_shapley(*data, radius).values
    for graph in (radius_graph(data, radius), radius_graph(data, 3.0), KNNGraph(*nearest(data, 250), n_train=300)):
        of_graph = threshold_knn_shapley(None, data[1], graph, data[3], radius, metric="precomputed").values
        np.testing.assert_allclose(of_graph, expected, atol=1e-14)


def test_lists_must_reach_beyond_the_radius():
    data = dataset()
    indices, distances = nearest(data, 5)
    radius = float(np.sort(distances[:, -1])[1])  # two test points are left in doubt
    for graph in (KNNGraph(indices, distances, n_train=300), sparse(indices, distances, 300)):
        with pytest.raises(ValueError, match=r"must reach beyond the radius, but all 5 .* list more, or"):
            threshold_knn_shapley(None, data[1], graph, data[3], radius, metric="precomputed")


def test_graphs_of_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    data = dataset()
    search = neighbors.NearestNeighbors().fit(data[0])
    expected = values(WEIGHTED, data, KNNGraph(*nearest(data, 30), n_train=300))
    distances, indices = search.kneighbors(data[2], 30)
    for graph in (search.kneighbors_graph(data[2], 30, mode="distance"), KNNGraph(indices, distances, n_train=300)):
        np.testing.assert_allclose(values(WEIGHTED, data, graph), expected, atol=1e-12)
    within = search.radius_neighbors_graph(data[2], RADIUS, mode="distance")
    np.testing.assert_allclose(values(THRESHOLD, data, within), THRESHOLD.values(*data), atol=1e-14)
    with pytest.raises(ValueError, match=r"a sparse k-NN graph must hold distances, .*, or pass KNNGraph"):
        values(WEIGHTED, data, search.kneighbors_graph(data[2], 30))


INDICES, DISTANCES = np.array([[0, 1], [2, 3]]), np.array([[1.0, 2.0], [1.0, 2.0]])
UNEVEN = csr_array((np.arange(1.0, 6.0), [0, 1, 0, 1, 2], [0, 2, 5]), shape=(2, 4))


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (KNNGraph(INDICES[0], n_train=4), ValueError, r"indices .* shape \(test points, neighbours\), got \(2,\)"),
        (KNNGraph(INDICES[:, :0], n_train=4), ValueError, r"indices .* got \(2, 0\)"),
        (KNNGraph(DISTANCES, n_train=4), TypeError, "indices of a k-NN graph must be integers, got .* float64"),
        (KNNGraph(INDICES, n_train=3), ValueError, "indices .* 0 to n_train - 1 = 2, got 3 for test point 1"),
        (KNNGraph(INDICES - 1, n_train=4), ValueError, "indices .* got -1 for test point 0"),
        (KNNGraph(INDICES * 0, n_train=4), ValueError, "list a training point once, got one twice for test point 0"),
        (KNNGraph(INDICES, DISTANCES[:1], n_train=4), ValueError, r"distances .* the shape .* \(2, 2\), got \(1, 2\)"),
        (
            KNNGraph(INDICES, DISTANCES.astype(str), n_train=4),
            TypeError,
            "distances .* must be real numbers, got .* <U",
        ),
        (KNNGraph(INDICES, -DISTANCES, n_train=4), ValueError, "not negative, got -1.0 between test point 0 and train"),
        (KNNGraph(INDICES, DISTANCES * np.nan, n_train=4), ValueError, "must be finite and not negative, got nan"),
        (KNNGraph(INDICES, n_train=5), ValueError, r"y_train must have one label for each point, shape \(5,\)"),
        (csr_array((2, 4)), ValueError, "equally many training points for each test point, got 0 to 1"),
        (csr_array((0, 4)), ValueError, r"at least one test point and one training point, got \(0, 4\)"),
        (csr_array(INDICES > 0), ValueError, "must hold distances"),
        (UNEVEN, ValueError, "equally many training points for each test point, got 2 to 3; make it with"),
        (csr_array((DISTANCES.ravel(), [0, 0, 1, 2], [0, 2, 4]), shape=(2, 4)), ValueError, "got one twice"),
        (
            csr_array(-DISTANCES @ np.eye(2, 4)),
            ValueError,
            "not negative, got -1.0 between",
        ),
    ],
)
def test_bad_graphs(graph, error, message):
    with pytest.raises(error, match=message):
        knn_shapley(None, [0, 1, 0, 1], graph, [0, 1], 1, metric="precomputed")


def test_k_is_at_most_the_length_of_the_lists():
    with pytest.raises(ValueError, match=r"k must be at most the number of neighbours listed .* 2, got 3"):
        knn_shapley(None, [0, 1, 0, 1], KNNGraph(INDICES, n_train=4), [0, 1], 3, metric="precomputed")


@each
def test_a_graph_is_told_by_its_metric(case):
    data = dataset(4, 2)
    for graph in (KNNGraph(INDICES, DISTANCES, n_train=4), sparse(INDICES, DISTANCES, 4)):
        with pytest.raises(ValueError, match="metric must be 'precomputed' with a k-NN graph, got 'euclidean'"):
            case.estimate(None, data[1], graph, data[3], case.arguments(1))
    with pytest.raises(ValueError, match="x_train must be None with metric='precomputed'"):
        case.estimate(*data[:2], KNNGraph(INDICES, n_train=4), data[3], case.arguments(1), metric="precomputed")


@each
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "cityblock"])
def test_sparse_features_are_refused_with_a_way_out(case, metric):
    data = dataset(6, 4)
    for name, position in (("x_train", 0), ("x_test", 2)):
        arguments = list(data)
        arguments[position] = csr_matrix(data[position])
        with pytest.raises(TypeError, match=f"{name} must be dense, got a sparse csr_matrix; pass .toarray.*KNNGraph"):
            case.estimate(*arguments, case.arguments(1), metric=metric)


def test_the_way_out_for_sparse_features():
    """A search that takes them, by angles; the values are those of dense features."""
    neighbors = pytest.importorskip("sklearn.neighbors")
    data = dataset(60, 12)
    search = neighbors.NearestNeighbors(metric="cosine").fit(csr_matrix(data[0]))
    graph = search.kneighbors_graph(csr_matrix(data[2]), 60, mode="distance")
    expected = weighted_knn_shapley(*data, metric="cosine").values
    np.testing.assert_allclose(values(WEIGHTED, data, graph), expected, atol=1e-12)


@each
def test_masked_features_are_refused(case):
    data = list(dataset(6, 4))
    data[0] = np.ma.array(data[0], mask=data[0] > 1)
    with pytest.raises(ValueError, match=r"x_train must have no masked entries, got .*; fill them in"):
        case.estimate(*data, case.arguments(1))
