r"""Exact Shapley values of the training points of nearest-neighbour models, for five utilities.

The players are training points; a coalition :math:`S` is judged by how well its :math:`k` nearest neighbours predict a
test point, and by the mean over the test points. Write :math:`m_j` for whether the :math:`j`-th nearest member of
:math:`S` has the right label, :math:`y_j` for its target and :math:`w_j` for its weight.

========================  ================================================================  ==========================
estimator                 utility of :math:`S` for a test point                             cost a test point
========================  ================================================================  ==========================
`knn_shapley`             :math:`\frac1k \sum_{j \le k} m_j`: a missing neighbour is wrong  :math:`O(n \log n)`
`soft_knn_shapley`        mean of :math:`m_j` over the neighbours that there are            :math:`O(n \log n)`
`weighted_knn_shapley`    whether right votes, weighted by distance, outweigh wrong ones    :math:`O(n k^2 2^{bits})`
`threshold_knn_shapley`   mean of :math:`m_j` over all members within a radius              :math:`O(n)`
`knn_regression_shapley`  :math:`-(\frac1k \sum_{j \le k} y_j - y)^2`                       :math:`O(n \log n)`
========================  ================================================================  ==========================

To these add the distances, :math:`O(n d)` a test point, or have them ready in a table or a k-NN graph (`KNNGraph`).
Each module derives its values; they share the distances (`distances`), the order of the neighbours with its rule for
ties (`neighbours`), the labels (`labels`), and the walk over the test points (`over_test_points`).
"""

from baselines.knn.graph import KNNGraph
from baselines.knn.hard import knn_shapley
from baselines.knn.regression import knn_regression_shapley
from baselines.knn.soft import soft_knn_shapley
from baselines.knn.threshold import threshold_knn_shapley
from baselines.knn.weighted import weighted_knn_shapley

__all__ = [
    "KNNGraph",
    "knn_regression_shapley",
    "knn_shapley",
    "soft_knn_shapley",
    "threshold_knn_shapley",
    "weighted_knn_shapley",
]
