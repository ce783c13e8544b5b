"""The mean over test points of the values of the training points, in bounded memory and on all cores.

Chunks of test points are as large as the caller's memory allows, and what is done for a chunk (a matrix product) uses
all cores by itself. The rest is done for blocks of it by threads, a block and its companions small enough to stay in
the cache. Blocks are summed in their order, so that the number of threads changes nothing in the values.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import NDArray
from tqdm import tqdm

from baselines.arguments import whole_number
from baselines.knn.distances import Distances
from baselines.valuation import Valuation

__all__ = ["ValuesOfBlock", "mean_over_test_points"]

ValuesOfBlock: TypeAlias = Callable[[NDArray[np.float64], slice], NDArray[np.float64]]

_BLOCK_BYTES = 2**21  # of keys in a block


def mean_over_test_points(
    distances: Distances,
    values_of_block: ValuesOfBlock,
    *,
    method: str,
    parameters: Mapping[str, Any],
    start: float,
    chunk_bytes: int,
    n_jobs: int | None,
    progress: bool,
    block_rows: int | None = None,
) -> Valuation:
    """Mean of the values over all test points, exact for these.

    Parameters
    ----------
    distances : Distances
        Between t test points and n training points.
    values_of_block : callable
        Sum of the values (float64 [n]) over a block of test points, from their keys (float64 [b, w], its to overwrite)
        and which they are (a slice).
    method : str
        Name of the estimator.
    parameters : Mapping
        What the estimator was told; the metric, the length of the lists of a k-NN graph and the number of test points
        are added.
    start : float
        When it started, by `perf_counter`.
    chunk_bytes : int
        Memory for the keys of a chunk; those of one test point, 8 n bytes, are the least.
    n_jobs : int or None
        Threads, as joblib counts them.
    progress : bool
        Whether to show a progress bar, in test points, on stderr.
    block_rows : int, optional
        Most test points in a block; by default as many as fill the cache.

    Returns
    -------
    Valuation
        `values` float64 [n], no standard errors, no evaluations.
    """
    n, width = distances.n_train, distances.n_listed
    chunk_rows = min(distances.n_test, max(1, whole_number("chunk_bytes", chunk_bytes) // (8 * width)))
    block_rows = block_rows or max(1, _BLOCK_BYTES // (8 * width))
    totals, buffer = np.zeros(n), np.empty((chunk_rows, width))

    def sums(rows: slice, prepared: NDArray[np.float64]) -> NDArray[np.float64]:
        return values_of_block(distances.keys(rows, prepared), rows)

    with (
        ThreadPoolExecutor(effective_n_jobs(n_jobs)) as threads,
        tqdm(total=distances.n_test, desc=method, unit="test point", disable=not progress) as bar,
    ):
        for first in range(0, distances.n_test, chunk_rows):
            chunk = slice(first, min(first + chunk_rows, distances.n_test))
            prepared = buffer[: chunk.stop - first]
            distances.prepare(chunk, prepared)
            starts = range(first, chunk.stop, block_rows)
            blocks = [slice(start, min(start + block_rows, chunk.stop)) for start in starts]
            parts = [prepared[rows.start - first : rows.stop - first] for rows in blocks]
            for block_sums in threads.map(sums, blocks, parts):  # in this order, however many threads
                totals += block_sums
            bar.update(len(prepared))
    return Valuation(
        values=totals / distances.n_test,
        stderr=None,
        evaluations=0,
        seconds=perf_counter() - start,
        method=method,
        parameters={
            **parameters,
            "metric": distances.metric,
            **({"neighbours_listed": width} if width < n else {}),
            "n_test": distances.n_test,
        },
    )
