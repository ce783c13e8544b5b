"""Coalitions worked off in chunks that fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch

from tasks.free_memory import free_bytes

__all__ = ["in_chunks"]

_CHUNK_BYTES = 2**25  # a chunk's tensors: of smaller ones Python takes the time, larger ones leave the caches
_SHARE_OF_FREE_MEMORY = 0.25
_torch_threads_are_set = Lock()


def in_chunks(evaluate: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, bytes_a_row: int) -> torch.Tensor:
    """Concatenate what `evaluate` returns for chunks of the rows.

    On a processor, as many chunks as torch has threads (`torch.get_num_threads`) are worked on at a time, each on one
    thread: an operation on a chunk is too small to be divided. While that lasts torch has one thread elsewhere too.

    Parameters
    ----------
    evaluate : callable
        From some of the rows, [k, ...], to one result for each, [k, ...].
    rows : tensor [m, ...]
        What to evaluate, where to evaluate it: on the processor, or on a GPU.
    bytes_a_row : int
        Memory that evaluating one row takes.

    Returns
    -------
    tensor [m, ...]
        Results in the order of the rows.
    """
    free = free_bytes(rows.device)
    if rows.is_cuda:
        chunks = rows.split(_rows_that_fit(_SHARE_OF_FREE_MEMORY * free, bytes_a_row))
        return torch.cat([evaluate(chunk) for chunk in chunks])
    threads = torch.get_num_threads()
    most = _rows_that_fit(min(_CHUNK_BYTES, _SHARE_OF_FREE_MEMORY * free / threads), bytes_a_row)
    chunks = rows.split(max(1, min(most, -(-len(rows) // threads))))
    if threads == 1 or len(chunks) == 1:
        return torch.cat([evaluate(chunk) for chunk in chunks])
    with _torch_threads_are_set:
        torch.set_num_threads(1)  # new threads start with this number
        try:
            with ThreadPoolExecutor(threads) as pool:
                return torch.cat(list(pool.map(evaluate, chunks)))
        finally:
            torch.set_num_threads(threads)


def _rows_that_fit(available: float, bytes_a_row: int) -> int:
    return max(1, int(available / bytes_a_row))
