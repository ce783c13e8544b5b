"""Rivals: the same work by another library, or by a plain loop, in the same process, taking turns.

- ``knn``: KNN-Shapley of 4000 MNIST digits judged by 1000, against pyDVL;
- ``knn-large``: KNN-Shapley of 60 000 points judged by 10 000, within 8 GiB of memory (nobody to compare with);
- ``logistic``: utilities of logistic regressions, 100 samples of breast cancer, against pyDVL;
- ``training-loop``: trainings of digits-mlp, against one model at a time;
- ``estimators``: what the estimators themselves cost, on a game that returns at once.

It needs ``pip install inrun-bench[rivals]`` and does not run unless it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inrun_bench.experiments.rivals import logistic, neighbours, overhead_of_estimators, training_loop
from inrun_bench.experiments.rivals.turns import threads
from inrun_bench.report.looks import in_order, legend, look, ratio_axis
from inrun_bench.report.markdown import markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.unit import Row, Unit

SUMMARY = "speed against pyDVL and against a training loop, and what estimators cost themselves (needs pydvl)"
EXCLUSIVE = True
DEFAULT = False

REPEATS = 5

_MEASURES: dict[str, Callable[[Unit], list[Row]]] = {
    "knn": neighbours.against_pydvl,
    "knn-large": neighbours.large,
    "logistic": logistic.against_pydvl,
    "training-loop": training_loop.against_batches,
    "estimators": overhead_of_estimators.overhead,
}

_TASKS = {"logistic": "breast-cancer-logreg", "training-loop": "digits-mlp", "estimators": "none"}


def units(plan: Plan) -> list[Unit]:
    """One unit a comparison."""
    return [
        Unit("rivals", _TASKS.get(what, "mnist-mlp"), what, plan.seeds[0], {"repeats": REPEATS}) for what in _MEASURES
    ]


def measure(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Run one comparison, on all cores."""
    with threads():
        return _MEASURES[unit.method](unit)


COMPARED = {
    "knn": "KNN-Shapley of 4000 MNIST digits\nagainst pyDVL",
    "logistic": "utilities of logistic regressions\nagainst pyDVL",
    "training-loop": "trainings of digits-mlp\nagainst a loop over models",
}
"""What is compared with a rival."""


def draw(rows: pd.DataFrame) -> Figure:
    """Draw how many times as fast as each rival we are, and what every estimator costs itself, medians of turns."""
    parts = {_speedups: rows[rows["method"].isin(COMPARED) & (rows["metric"] == "speedup")]}
    parts[_costs] = rows[rows["metric"] == "microseconds"]
    shown = {panel: own for panel, own in parts.items() if len(own)}
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    for place, (panel, own) in enumerate(shown.items(), 1):
        panel(figure.add_subplot(1, len(shown), place), own)
    legend(figure, in_order(parts[_costs]["contender"]))
    return figure


def _speedups(ax: Axes, rows: pd.DataFrame) -> None:
    speedups = rows.groupby("method")["value"].median()
    names = [name for name in COMPARED if name in speedups.index]
    ax.plot(speedups[names], range(len(names)), "o", color="black", markersize=6)
    for place, name in enumerate(names):
        ax.annotate(f"{speedups[name]:.3g}", (speedups[name], place), (0, 6), textcoords="offset points", ha="center")
    ax.set_yticks(range(len(names)), [COMPARED[name] for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ratio_axis(ax, "times as fast as the other (median of turns)")
    ax.set_xlim(0.8, 2 * speedups.max())


def _costs(ax: Axes, rows: pd.DataFrame) -> None:
    for method in in_order(rows["contender"]):
        own, style = rows[rows["contender"] == method].groupby("players")["value"].median(), look(method)
        ax.plot(own, color=style.color, marker=style.marker, markersize=5, linewidth=1.2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    players = sorted(rows["players"].unique())
    ax.set_xticks(players, [f"{n:,.0f}" for n in players])
    ax.minorticks_off()
    ax.set_xlabel("players of a game that returns at once")
    ax.set_ylabel("cost of an estimator itself\n(µs a coalition and player)")


def table(rows: pd.DataFrame) -> str:
    """Return all comparisons."""
    if rows.empty:
        return ""
    cells = [
        [
            str(row.method),
            "" if pd.isna(row.players) else f"{row.players:.0f}",
            "" if pd.isna(row.contender) else row.contender,
            row.metric.replace("_", " "),
            f"{row.value:.3g}",
        ]
        for row in rows.sort_values(["method", "players"], kind="stable").itertuples()
    ]
    return (
        "**Rivals** (medians of turns on the same cores): `knn_shapley` of 4000 MNIST digits judged by 1000, k = 5, "
        "against pyDVL 0.10; the same of 60 000 x 784 points judged by 10 000; utilities of logistic regressions on "
        "100 samples of breast cancer against pyDVL; trainings of digits-mlp against a loop over models; and what an "
        "estimator costs itself, in microseconds a coalition and player.\n\n"
        f"{markdown(cells, ['comparison', 'players', 'contender', 'metric', 'value'])}"
    )
