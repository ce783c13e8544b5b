"""How methods look, the same in every figure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["TASKS_A_ROW", "Look", "in_order", "legend", "look", "panels"]

TASKS_A_ROW = 4
"""Where a figure shows all of them."""


@dataclass(frozen=True)
class Look:
    """Label, colour (Okabe-Ito, readable without colour vision) and marker of a method."""

    label: str
    color: str
    marker: str


_KNOWN = {
    "reference": Look("retraining reference", "black", "*"),
    "inrun-first": Look("In-Run, first order", "#9ecae1", "v"),
    "inrun-first-project": Look("In-Run, first order, project rule alone", "#a1d99b", "v"),
    "inrun-first-weight-gradient": Look("In-Run, first order, weight-gradient rule alone", "#31a354", "v"),
    "inrun-first-gram": Look("In-Run, first order, gram rule alone", "#006d2c", "v"),
    "inrun-second": Look("In-Run, second order", "#4292c6", "^"),
    "inrun-midpoint": Look("In-Run, midpoint", "#b2abd2", "<"),
    "inrun-trapezoid": Look("In-Run, trapezoid", "#8073ac", ">"),
    "inrun-integrated": Look("In-Run, integrated", "#08306b", "o"),
    "unrolled": Look("one differentiated run (unrolled)", "#fa9fb5", "d"),
    "few-run-4": Look("4 differentiated runs", "#dd1c77", "d"),
    "few-run-8": Look("8 differentiated runs", "#7a0177", "d"),
    "coalition-gradients-128": Look("128 differentiated coalitions", "#ae017e", "H"),
    "control-variate-10": Look("control variate, 10 trainings a sample", "#49006a", "*"),
    "mc-2": Look("Monte Carlo, 2 permutations", "#fdae6b", "s"),
    "mc-10": Look("Monte Carlo, 10 permutations", "#d55e00", "s"),
    "mc-shifted-10": Look("Monte Carlo, 10 shifted permutations", "#7f2704", "p"),
    "permutation-20": Look("Monte Carlo, 20 antithetic permutations", "#a63603", "p"),
    "tmc-10": Look("Truncated MC, 10 permutations", "#cc79a7", "D"),
    "permutation": Look("permutations", "#fdae6b", "s"),
    "permutation-antithetic": Look("permutations, antithetic", "#e6550d", "s"),
    "permutation-shifts": Look("permutations, antithetic, shifted", "#a63603", "o"),
    "tmc": Look("truncated permutations (TMC, 5 %)", "#cc79a7", "D"),
    "owen": Look("Owen sampling, antithetic", "#e6ab02", "<"),
    "complementary": Look("complementary contributions", "#66a61e", "^"),
    "kernel-leverage": Look("KernelSHAP, leverage sampling", "#08519c", "v"),
    "kernel": Look("KernelSHAP, kernel sampling", "#6baed6", "v"),
    "group-testing": Look("group testing", "0.55", "x"),
    "coalition-gradients": Look("differentiated coalitions", "#f768a1", "H"),
    "control-variate": Look("control variate of 8 differentiated runs", "#49006a", "*"),
    "knn": Look("KNN-Shapley", "#009e73", "P"),
    "knn-embedding": Look("KNN-Shapley on embeddings", "#66c2a4", "X"),
    "random": Look("random", "0.6", "x"),
    "regular": Look("regular step", "0.75", "s"),
    "validation": Look("validation gradient alone", "0.75", "s"),
    "per-sample-vmap": Look("per-sample vmap(grad), first order", "#c49a6c", "s"),
    "per-sample-loop": Look("per-sample loop, first order", "#994f00", "s"),
}
_OTHERS = ("#e69f00", "#56b4e9", "#f0e442", "#0072b2", "#994f00", "#40b0a6")


def look(method: str) -> Look:
    """Return how `method` looks; one that the house does not know gets a colour by its name."""
    return _KNOWN.get(method) or Look(method, _OTHERS[zlib.crc32(method.encode()) % len(_OTHERS)], "h")


def in_order(methods: Iterable[str]) -> list[str]:
    """Return methods in the house's order: reference, in-run, retraining, others; then what it does not know."""
    known = list(_KNOWN)
    return sorted(set(methods), key=lambda m: (known.index(m) if m in known else len(known), m))


def panels(
    rows: pd.DataFrame, n_rows: int, *, height: float = 2.6, most_columns: int | None = None, **subplots: Any
) -> tuple[Figure, list[str], list[list[Axes]]]:
    """Return a figure with one column a task and `n_rows` rows of axes, [n_rows][tasks].

    With more tasks than `most_columns`, the next ones begin new rows.
    """
    names = list(dict.fromkeys(rows["task"]))
    columns = min(len(names), most_columns or len(names))
    bands = -(-len(names) // columns)
    figure = Figure(figsize=(max(3.3 * columns, 4.5), height * n_rows * bands), layout="constrained")
    grid = figure.subplots(bands * n_rows, columns, squeeze=False, **subplots)
    axes = grid.reshape(bands, n_rows, columns).swapaxes(0, 1).reshape(n_rows, bands * columns)
    for ax, name in zip(axes[0], names, strict=False):
        ax.set_title(name)
    for ax in axes[:, len(names) :].flat:
        ax.remove()
    return figure, names, axes[:, : len(names)].tolist()


def legend(figure: Figure, methods: Sequence[str], extra: Sequence[Artist] = (), columns: int = 3) -> None:
    """Put one legend for all panels below the figure."""
    handles = [
        Line2D([], [], color=look(m).color, marker=look(m).marker, label=look(m).label, linewidth=1.5) for m in methods
    ]
    figure.legend(handles=[*handles, *extra], loc="outside lower center", ncols=columns)
