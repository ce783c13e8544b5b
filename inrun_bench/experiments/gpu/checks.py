"""Whether a kernel is right: against float64, in memory that held no number before, and twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from inrun_bench.experiments.gpu.rounds import Attempt, error_row, recover
from inrun_bench.runs.timing import Call, described
from inrun_bench.runs.unit import Row

__all__ = ["TOLERANCE", "Expected", "check_all"]

TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}  # ||got - expected|| / ||expected||

Expected: TypeAlias = Mapping[str, tuple[int, Tensor, tuple[Tensor, ...]]]
"""What is compared, by what it is of: the number of the result, the float64 reference, and where in the result, an
index for each of its first dimensions, the reference lies."""


def check_all(
    calls: Mapping[str, Call], expected: Callable[[str], Expected], tolerance: float, attempt: Attempt
) -> tuple[dict[str, Call], list[Row]]:
    """Check kernels and their twins in plain torch, named ``<kernel>-torch``.

    Parameters
    ----------
    calls : mapping of str to callable
        Kernels and twins by name.
    expected : callable
        Given a kernel's name, what it must return.
    tolerance : float
        Of relative errors.
    attempt : Attempt
        Of the unit.

    Returns
    -------
    calls : dict of str to callable
        Those that returned something: only these are worth timing.
    rows : list of Row
        Errors against float64, and whether one run gave the bits of the next, which is no promise of the twins.
    """
    alive, rows = dict(calls), []
    for name, call in calls.items():
        attempt.begin(name)
        said = ""
        try:
            rows += _check(name, call, expected(name.removesuffix("-torch")), tolerance)
        except Exception as error:  # the others go on
            said = described(error)
        if said:
            del alive[name]
            rows.append(error_row(name, said))
            recover(said)
    return alive, rows


def _check(name: str, call: Call, expected: Expected, tolerance: float) -> list[Row]:
    results = [_poisoned(call) for _ in range(2)]
    same = all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    rows = []
    for of, (number, reference, places) in expected.items():
        got = results[0][number]
        for axis, place in enumerate(places):
            got = got.index_select(axis, place)
        error = _relative(got, reference)
        row = {"method": name, "metric": "error", "value": error, "of": of}
        rows.append(_judged(row, error <= tolerance, f"above {tolerance}"))
    repeatable = {"method": name, "metric": "deterministic", "value": float(same)}
    return [*rows, _judged(repeatable, same or name.endswith("-torch"), "bits differ")]


def _relative(got: Tensor, expected: Tensor) -> float:
    """Return the relative error, infinite where it is not a number."""
    error = float((got.double() - expected).norm() / expected.norm())
    return error if np.isfinite(error) else float("inf")


def _judged(row: Row, passed: bool, otherwise: str) -> Row:
    if passed:
        return row
    return {**row, "status": "error", "message": f"{row['metric']} of {row['method']} is {row['value']:g}: {otherwise}"}


def _poisoned(call: Call) -> tuple[Tensor, ...]:
    """Return what `call` returns, computed in memory that held no number before."""
    found = call()
    old = found if isinstance(found, tuple) else (found,)
    for tensor in old:
        tensor.fill_(torch.nan)
    del found, old, tensor  # the allocator hands the same memory out again
    found = call()
    return found if isinstance(found, tuple) else (found,)
